"""In a checkout, Python finds this folder before the package that was installed from it, and only the
installed one has the compiled module. This puts it in its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def is_compiled(folders: list[str]) -> bool:
    """Whether the package in these folders has its compiled module."""
    return PathFinder.find_spec("pyllm._llm", folders) is not None


def candidates() -> Iterator[ModuleSpec]:
    """Every package pyllm on sys.path, and those of other finders: an editable installation elsewhere."""
    for entry in sys.path:
        if spec := PathFinder.find_spec("pyllm", [entry]):
            yield spec
    for finder in sys.meta_path:
        if finder is not PathFinder and (spec := finder.find_spec("pyllm", [])):
            yield spec


def become_installed(package: ModuleType) -> None:
    """Makes this package the installed one: its folder, its submodules and its names."""
    here = package.__path__[0]
    for found in candidates():
        folders = list(found.submodule_search_locations or [])
        if not found.loader or not is_compiled(folders):
            continue
        package.__path__[:] = folders
        package.__file__, package.__loader__ = found.origin, found.loader
        if spec := package.__spec__:
            spec.origin, spec.loader, spec.submodule_search_locations = found.origin, found.loader, folders
        del sys.modules[__name__]  # the installed one has its own
        found.loader.exec_module(package)
        return
    raise ImportError(
        f"pyllm is not installed, and {here} is its source without the compiled module pyllm._llm: "
        f"run pip install . in {Path(here).parent}",
        name=package.__name__,
        path=here,
    )
