"""python -m pyllm: runs the command `pyllm` that was installed with this package."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def places() -> Iterator[Path]:
    """Where the command may be: where pip says that it put it, or else among the programs of this Python."""
    for distribution in metadata.distributions(name="pyllm"):
        for file in distribution.files or []:
            if file.name == "pyllm":
                yield Path(str(distribution.locate_file(file))).resolve()
    yield Path(__file__).resolve().parents[1] / "bin" / "pyllm"  # pip install --target
    yield Path(sysconfig.get_path("scripts")) / "pyllm"
    yield Path(sys.executable).parent / "pyllm"


def main() -> None:
    looked = list(dict.fromkeys(places()))
    for path in looked:
        if path.is_file():
            try:
                os.execv(path, [str(path), *sys.argv[1:]])
            except OSError as error:
                sys.exit(f"python -m pyllm: {path}: {error.strerror}")
    sys.exit(f"python -m pyllm: the command is not installed: there is no {' nor '.join(map(str, looked))}")


if __name__ == "__main__":
    main()
