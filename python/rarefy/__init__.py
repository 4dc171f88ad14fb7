"""Rarefy: sparse decode attention, called from Python. README.md beside this file has an example."""
from ._abi import RarefyError
from .attention import DecodePlan, IndexSet, MergePlan, PagedKv

__version__ = "0.1.0"
__all__ = ["DecodePlan", "IndexSet", "MergePlan", "PagedKv", "RarefyError", "set_num_threads", "version"]


def version() -> str:
    """Of the library that is loaded."""
    from ._abi import library
    return library().version_string().decode()


def set_num_threads(num_threads: int):
    """Threads of the CPU backend; 0 = all processors."""
    from ._abi import library
    library().set_num_threads(num_threads)
