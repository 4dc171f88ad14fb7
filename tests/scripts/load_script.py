"""Scripts without .py as modules, for their tests. Standard library only."""
import importlib.machinery
import importlib.util
import pathlib
import sys

sys.dont_write_bytecode = True
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"


def load(name):
    """The module that scripts/`name` is."""
    module_name = name.replace("/", "_")  # never that of the standard library's
    loader = importlib.machinery.SourceFileLoader(module_name, str(SCRIPTS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(module_name, loader))
    loader.exec_module(module)
    return module
