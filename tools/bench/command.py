"""Measures how fast pyllm runs and how exact it is, beside other programs and beside what the machine can do.

    python -m tools.bench --shapes 135M --out speed
    python -m tools.bench --gguf model.gguf --llama-cpp llama.cpp/build --out speed

A model is one of random weights (models.py), written in the format of every program from the same numbers;
or a GGUF file, which every program gets in types of its own. Prompts, decoding and sequences that decode
together are timed on the CPU, the programs taking turns (timing.py); the predictions of a real model are
compared with float32's on texts (accuracy.py); the machine's read bandwidth and arithmetic are measured in
between (peaks.c). What comes out is a table with a row an engine, the raw seconds and plots.

Every program runs in a process of its own, which loads the model once and answers commands (workers.py). A
program that is missing or fails is a dash in the table and a reason under it. Before anything is timed, all
programs compute logits for the same tokens: one whose logits are another model's is not compared.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Iterator, Sequence

from tools.bench.arguments import parser
from tools.bench.cases import ALL_CASES, CASES, QUICK_CASES
from tools.bench.common import Unavailable, one_line, say, write_text
from tools.bench.engines import ENGINES, QUICK, REFERENCES
from tools.bench.machine import machine
from tools.bench.models import Model, gguf_model, random_model
from tools.bench.peaks import Peaks
from tools.bench.plots import draw_accuracy, draw_lengths
from tools.bench.runs import Result, Settings, run_model
from tools.bench.tables import as_json, as_markdown
from tools.bench.workers import worker


def models(options: argparse.Namespace) -> list[Model]:
    """Those that were asked for."""
    work = options.work.absolute()
    shapes = options.shapes or ([] if options.gguf else ["tiny" if options.quick else "135M"])
    found = [random_model(name, work) for name in shapes]
    return found + [gguf_model(path, work) for path in options.gguf or []]


def settings(options: argparse.Namespace) -> Settings:
    """What is measured, with the defaults filled in."""
    threads = options.threads
    if threads is None:
        from pyllm._llm import lib

        threads = int(lib.llm_default_threads())
    engines = options.engines
    if engines is None:
        known = QUICK if options.quick else tuple(ENGINES)
        engines = [name for name in known if ENGINES[name].installed]
        if missing := [ENGINES[name].label for name in known if not ENGINES[name].installed]:
            say(f"not installed, left out: {', '.join(missing)}")
    default = QUICK_CASES if options.quick else ALL_CASES if options.all else CASES
    return Settings(
        engines=engines,
        cases=default if options.cases is None else options.cases,
        repeat=options.repeat or (2 if options.quick else 5),
        threads=threads,
        texts=options.texts,
        accuracy=not options.no_accuracy,
        random_accuracy=options.quick and not options.no_accuracy,
        references=[name for name in REFERENCES if name in QUICK or not options.quick],
        llama_cpp=options.llama_cpp,
        llama_bench=options.llama_bench,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when a folder cannot be written or nothing could be measured; wrong usage
    exits with 2."""
    given = sys.argv[1:] if argv is None else list(argv)
    p = parser()
    options = p.parse_args(given)
    if options.llama_bench and not options.llama_cpp:
        p.error("--llama-bench needs --llama-cpp, llama.cpp's build folder")
    try:
        if options.worker:
            return worker(options.worker, models(options)[0], options.threads, options.llama_cpp)
        return run(options, shlex.join(["python", "-m", "tools.bench", *without_folders(given)]))
    except (OSError, Unavailable) as error:
        say(f"bench: {one_line(error)}")
        return 1
    except ImportError as error:
        say(f"bench: {error}; build or install pyllm first (pip install .)")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130


def without_folders(given: Sequence[str]) -> Iterator[str]:
    """The arguments but for --work and --out, which do not change what is measured."""
    following = iter(given)
    for argument in following:
        if argument in ("--work", "--out"):
            next(following, None)
        elif not argument.startswith(("--work=", "--out=")):
            yield argument


def run(options: argparse.Namespace, command: str) -> int:
    """main, with the arguments parsed."""
    chosen = settings(options)
    for folder in (options.work, options.out):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    about = {
        "date": date,
        "command": command,
        "repeat": chosen.repeat,
        **machine(chosen.engines, chosen.threads),
    }
    peaks = Peaks(options.work, chosen.threads, options.read_mib or (64 if options.quick else 1024))
    if peaks.failed:
        say(peaks.failed)
    results: list[Result] = []
    for model in models(options):
        results.append(run_model(model, chosen, peaks))
        text = as_markdown(results, about, peaks, chosen.engines)
        if options.out:  # after each model: an interrupted run has what it measured
            write_text(options.out / "speed.md", text)
            write_text(options.out / "speed.json", as_json(results, about, peaks, chosen.engines))
            try:
                draw_lengths(results, about, chosen.engines, options.out / "speed.png")
                draw_accuracy(results, about, chosen.engines, options.out / "accuracy.png")
            except ImportError as error:
                say(f"no plots: {error}")
    print(text)
    return 0 if any(found(result) for result in results) else 1


def found(result: Result) -> bool:
    """Whether anything was measured."""
    return any(m.seconds for m in result.measurements) or any(a.kl for a in result.accuracy.values())
