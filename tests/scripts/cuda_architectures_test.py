"""Configures a CUDA build for several architectures: its list of them compiles, and every kernel is to be compiled for each.

Use: python3 cuda_architectures_test.py SOURCE CMAKE CUDA_COMPILER
Only the host file that reads the list is compiled: kernels take minutes for each architecture.
"""
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = ("80", "89", "90a")


def main():
    source, cmake, compiler = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([cmake, "-S", source, "-B", folder, "-G", "Ninja", "-DRAREFY_ENABLE_CUDA=ON", "-DRAREFY_BUILD_TESTS=OFF",
                        "-DRAREFY_BUILD_APPS=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DCMAKE_CUDA_COMPILER={compiler}",
                        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(ARCHITECTURES)}"], check=True, stdout=subprocess.DEVNULL)
        commands = {entry["file"]: entry for entry in json.loads((Path(folder) / "compile_commands.json").read_text(encoding="utf-8"))}
        kernels = [file for file in commands if file.endswith(".cu")]
        assert kernels, "expected CUDA sources in compile_commands.json, got none"
        for file in kernels:
            for architecture in ARCHITECTURES:
                assert f"sm_{architecture}" in commands[file]["command"], f"{file} is not compiled for {architecture}"
        [host] = [entry for file, entry in commands.items() if file.endswith("cuda/host/architectures.cc")]
        wanted = ",".join(ARCHITECTURES)
        assert wanted in host["command"], f"expected the list {wanted} in: {host['command']}"
        subprocess.run([*shlex.split(host["command"]), "-fsyntax-only", "-o", "/dev/null"], cwd=host["directory"], check=True)


if __name__ == "__main__":
    main()
