"""The command's options."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.bench.accuracy import TEXTS
from tools.bench.cases import ALL_CASES, BATCH_CONTEXT, CASES, DECODE_STEPS, Case
from tools.bench.engines import ENGINES
from tools.bench.models import CONTEXT, SHAPES


def names(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """An argument type: names from `known`, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}; known are {', '.join(known)}")
        if not chosen:
            raise argparse.ArgumentTypeError(f"no {what} given")
        return chosen

    return parse


def cases(text: str) -> list[Case]:
    """An argument type: cases such as prompt512,decode0,batch16."""
    if text == "none":
        return []
    found = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"(prompt|decode|batch)(\d{1,5})", name)
        if not match:
            raise argparse.ArgumentTypeError(
                f"unknown case {name!r}; known are prompt, decode and batch with a number, as in prompt512"
            )
        case = Case(match[1], int(match[2]))
        room = {"prompt": CONTEXT, "decode": CONTEXT - DECODE_STEPS, "batch": 64}[case.kind]
        if not (case.kind != "decode") <= case.n <= room:
            least = int(case.kind != "decode")
            raise argparse.ArgumentTypeError(f"case {name!r}: the number must be from {least} to {room}")
        found.append(case)
    if not found:
        raise argparse.ArgumentTypeError("no case given")
    return list(dict.fromkeys(found))


def positive(text: str) -> int:
    """An argument type."""
    if not re.fullmatch(r"\d{1,4}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def gguf(text: str) -> Path:
    """An argument type: a GGUF file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise argparse.ArgumentTypeError(f"{text} is no GGUF file")
    return path


def build_folder(text: str) -> Path:
    """An argument type: where llama.cpp was built, which has llama-quantize."""
    folder = Path(text).absolute()
    if not any((where / "llama-quantize").is_file() for where in (folder, folder / "bin")):
        raise argparse.ArgumentTypeError(f"there is no llama-quantize in {text} or its folder bin")
    return folder


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m tools.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures how fast and how exact pyllm and other programs run the same model, on the "
        "CPU, taking turns.",
        epilog="engines: " + ", ".join(ENGINES) + "\n"
        "cases:   promptN   one pass over N tokens into an empty cache, the logits of the last\n"
        "         decodeN   single tokens after N tokens\n"
        f"         batchN    N sequences decoding together, each after {BATCH_CONTEXT} tokens\n"
        "All programs hold their model at the same time: with all engines 1B takes about 24 GB of memory\n"
        "and 14 GB of disk, 135M 5 GB and 2 GB. All engines, their model files and the plots need\n"
        "    pip install llama-cpp-python openvino-genai ctranslate2 transformers torch gguf matplotlib\n"
        "and llama.cpp's 4-bit types, and any type of a GGUF file, llama-quantize of a build of llama.cpp:\n"
        "--llama-cpp. Its library then also takes the place of the one in llama-cpp-python.",
    )
    p.add_argument(
        "--shapes",
        type=names(list(SHAPES), "shape"),
        metavar="NAMES",
        help=f"shapes of random models, of {', '.join(SHAPES)}: only their speed is measured "
        "(default: 135M, without --gguf)",
    )
    p.add_argument(
        "--gguf",
        type=gguf,
        action="append",
        metavar="FILE",
        help="a real model, whose accuracy is measured as well; may be given several times",
    )
    p.add_argument(
        "--engines",
        type=names(list(ENGINES), "engine"),
        metavar="NAMES",
        help="programs to measure, see below (default: all that are installed)",
    )
    p.add_argument(
        "--llama-cpp",
        type=build_folder,
        metavar="DIR",
        help="llama.cpp's build folder, for its other types than F16 and Q8_0",
    )
    p.add_argument(
        "--llama-bench",
        action="store_true",
        help="run llama.cpp's own llama-bench as well, after all others: a table to compare with",
    )
    p.add_argument(
        "--cases",
        type=cases,
        metavar="NAMES",
        help=f"cases, see below (default: {','.join(map(str, CASES))}; none: only accuracy)",
    )
    p.add_argument("--all", action="store_true", help=f"these cases: {','.join(map(str, ALL_CASES))}")
    p.add_argument(
        "--texts",
        type=Path,
        default=TEXTS,
        metavar="DIR",
        help="folder of the texts (*.txt) that accuracy is measured on (default: those of the checkout)",
    )
    p.add_argument("--no-accuracy", action="store_true", help="measure only speed")
    p.add_argument(
        "--quick",
        action="store_true",
        help="a tiny random model, short cases, 2 rounds, pyllm and llama.cpp: shows that all of it works",
    )
    p.add_argument(
        "--repeat",
        type=positive,
        metavar="N",
        help="rounds (default: 5; half for slow cases)",
    )
    p.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads (default: the processors that this process may use)",
    )
    p.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "pyllm-bench",
        metavar="DIR",
        help="where model files are made, and reused the next time (default: %(default)s)",
    )
    p.add_argument(
        "--read-mib",
        type=positive,
        metavar="N",
        help="MiB that are read to measure the bandwidth, far more than caches hold (default: 1024)",
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write speed.md, speed.json, speed.png and accuracy.png there",
    )
    p.add_argument("--worker", help=argparse.SUPPRESS)
    return p
