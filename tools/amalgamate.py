"""Writes the C library as one file, as SQLite's amalgamation is: pyllm.c, which with llm.h is all that a C or
C++ program needs.

    python tools/amalgamate.py --output app
    cc -O3 -ffp-contract=off -fopenmp app/app.c app/pyllm.c -lm

Its parts stand one after the other under banners with their names: the headers that only the library itself
includes, then the sources, in which a file that ends with .inc stands wherever it is included. What sources
share becomes static, so that a linker sees the names of llm.h and no others; the macros of a source end with
it. The same checkout gives the same bytes. Needs nothing but Python."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = "llm.h"

INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*\n', re.MULTILINE)
FEATURES = re.compile(r"^#ifndef _GNU_SOURCE\n#define _GNU_SOURCE[^\n]*\n#endif\n", re.MULTILINE)
MACRO = re.compile(r"^#define ([A-Za-z]\w*)", re.MULTILINE)
# Declarations and definitions begin a line; nothing else that has these forms does.
PROTOTYPE = re.compile(r"^(?!static\b|extern\b|typedef\b)(?=\w[\w ]*[ *]+(\w+)\([^;{}]*\);)", re.MULTILINE)
FUNCTION = re.compile(r"^(?!static\b|typedef\b)\w[\w ]*[ *]+([a-z]\w*)\([^;{}]*\) \{", re.MULTILINE)
VARIABLES = re.compile(r"^extern ((?:const |_Thread_local )*\w+ ([^;()]+);)", re.MULTILINE)


class AmalgamationError(Exception):
    """The sources have something that this program does not understand."""


class Amalgamation:
    """The library's sources in one text."""

    def __init__(self, folder: Path, sources: list[str]) -> None:
        self.folder, self.sources = folder, sources
        self.headers: list[str] = []
        self.functions: set[str] = set()  # that sources share
        self.variables: set[str] = set()
        for name in sources:
            self._find_headers(name, [])

    def text(self) -> str:
        """All parts."""
        parts = ["#ifndef _GNU_SOURCE\n#define _GNU_SOURCE\n#endif\n", f'#include "{PUBLIC}"\n']
        parts += [banner(name) + self._header(name) for name in self.headers]
        parts += [banner(name) + self._source(name) for name in self.sources]
        return "\n".join(parts)

    def _read(self, name: str) -> str:
        return FEATURES.sub("", (self.folder / name).read_text())

    def _find_headers(self, name: str, within: list[str]) -> None:
        """Adds the headers that a file includes to self.headers, each behind those that it needs itself."""
        if name in within:
            raise AmalgamationError(f"{name} includes itself")
        for other in INCLUDE.findall(self._read(name)):
            if other == PUBLIC or other in self.headers:
                continue
            self._find_headers(other, [*within, name])
            if other.endswith(".h"):
                self.headers.append(other)
            elif not other.endswith(".inc"):
                raise AmalgamationError(f"{name} includes {other}, which is no header and no .inc file")

    def _header(self, name: str) -> str:
        """A header, with what it declares made static."""
        text = INCLUDE.sub("", self._read(name))
        self.functions.update(PROTOTYPE.findall(text))
        for _, names in VARIABLES.findall(text):
            self.variables.update(re.findall(r"(\w+)(?:\[[^]]*\])*(?:, |$)", names))
        return VARIABLES.sub(r"static \1", PROTOTYPE.sub("static ", text))

    def _source(self, name: str) -> str:
        """A source with what it includes, and the end of its macros."""
        text = self._with_includes(name)
        for function in FUNCTION.findall(text):  # static if a header says so, by C's rules
            if not function.startswith("llm_") and function not in self.functions:
                raise AmalgamationError(f"{name}: {function}() is neither static nor declared in a header")
        for variable in sorted(self.variables):
            words = r"(?!static\b|extern\b|typedef\b)(?:const |_Thread_local )*\w+ "
            definition = rf"^(?={words}[^;(={{]*\b{variable}\b[^;(={{]*[=;])"
            text = re.sub(definition, "static ", text, flags=re.MULTILINE)
        macros = dict.fromkeys(MACRO.findall(text))
        return text + "".join(f"#undef {macro}\n" for macro in macros)

    def _with_includes(self, name: str) -> str:
        def replace(found: re.Match[str]) -> str:
            return self._with_includes(found[1]) if found[1].endswith(".inc") else ""

        return INCLUDE.sub(replace, self._read(name))


def banner(name: str) -> str:
    """The comment above a part."""
    return f"/* {' csrc/' + name + ' ':=^104} */\n\n"


def amalgamate() -> str:
    """The text of pyllm.c."""
    library = runpy.run_path(str(ROOT / "pyllm" / "_build.py"))["LIBRARY"]
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    version = found[1] if found else "unknown"
    licence = "\n".join(f" * {line}".rstrip() for line in (ROOT / "LICENSE").read_text().strip().splitlines())
    head = f"""\
/* pyllm.c - the C library of pyllm {version} in one file; {PUBLIC} is its interface.
 *
 * Made by tools/amalgamate.py from the files that the banners name: change those, and make it anew.
 *
 *     cc -O3 -ffp-contract=off -fopenmp app.c pyllm.c -lm
 *
 * It is C (gnu11 or later, GCC or Clang), and {PUBLIC} is C++ as well. Without -fopenmp: -pthread.
 * Without -ffp-contract=off processors differ in the last bits.
 *
{licence} */
"""
    return head + Amalgamation(ROOT / "csrc", [Path(name).name for name in library]).text()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    what = f"Writes the C library as one file, pyllm.c, with {PUBLIC} beside it."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--output", metavar="FOLDER", default=".", help="where to (default: here)")
    folder = Path(parser.parse_args(arguments).output)
    try:
        text, header = amalgamate(), (ROOT / "csrc" / PUBLIC).read_text()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyllm.c").write_text(text)
        (folder / PUBLIC).write_text(header)
    except (AmalgamationError, OSError) as error:
        print(f"amalgamate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
