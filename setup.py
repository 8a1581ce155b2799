"""Builds pyllm: the extension module (pyllm/_build.py) and the command `pyllm`; metadata is in
pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py  # noqa: F401  (setuptools before distutils)

from distutils.command.build_scripts import build_scripts  # isort: skip

ROOT = Path(__file__).resolve().parent
BUILD = runpy.run_path(str(ROOT / "pyllm" / "_build.py"))


class BuildCommand(build_scripts):
    """Compiles the command where a Python script would be copied: pip then installs it on PATH."""

    def run(self) -> None:
        self.mkpath(self.build_dir)
        BUILD["build_command"](Path(self.build_dir) / "pyllm", self.distribution.get_version())


setup(
    cffi_modules=["pyllm/_build.py:make_ffi"],
    scripts=["csrc/main.c"],
    cmdclass={"build_scripts": BuildCommand},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
