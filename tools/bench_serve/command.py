"""Measures servers that speak OpenAI's API: pyllm's, llama.cpp's, and any other.

    python -m tools.bench_serve -m model.llm --llama-server bin/llama-server --gguf model.gguf --out serve
    python -m tools.bench_serve -m model.llm --scenarios streams --streams 1,8 --rounds 1

Each scenario (scenarios.py) is a load on a server. In each round every scenario is run on all servers in
turn, so that what disturbs the machine disturbs all of them; a server is a process of its own (servers.py),
which is started for its turn, so that only one runs at a time. What is measured is what vLLM's `bench serve`
measures (measures.py). What comes out is a table a scenario with a row a server, all raw numbers, and a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.common import say, write_text
from tools.bench.machine import machine, version
from tools.bench_serve.client import Client
from tools.bench_serve.plots import draw_streams
from tools.bench_serve.scenarios import SCENARIOS, measured
from tools.bench_serve.servers import Server, ServerError, Used, servers_of
from tools.bench_serve.tables import Results, as_json, as_markdown


def number(kind: type, least: float = 0) -> Callable[[str], Any]:
    """An argument type: a number from `least` on, and above 0 if that is 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not (value >= least if least else value > 0):
            bound = f"at least {least}" if least else "above 0"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argument type: values separated by commas."""
    return lambda text: [kind(part) for part in text.split(",") if part.strip()]


def scenario(text: str) -> str:
    """An argument type: a scenario's name."""
    if text not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"unknown scenario {text!r}; known are {', '.join(SCENARIOS)}")
    return text


def limit(text: str) -> tuple[str, float]:
    """An argument type: a measure and its milliseconds."""
    name, _, value = text.partition(":")
    if name not in ("ttft", "tpot", "e2el"):
        raise argparse.ArgumentTypeError(f"{text!r} is not ttft, tpot or e2el with milliseconds (ttft:500)")
    return name, float(value)


def named(text: str) -> tuple[str, str]:
    """An argument type: NAME=VALUE."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def named_url(text: str) -> tuple[str, str]:
    """An argument type: NAME=URL."""
    name, url = named(text)
    Client(url)  # ValueError
    return name, url


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


COUNT, ABOVE = number(int, 1), number(float)
# Name, type, default and meaning
SIZES: tuple[tuple[str, Callable[[str], Any], Any, str], ...] = (
    ("--input-len", COUNT, 512, "tokens of prompts"),
    ("--output-len", COUNT, 128, "tokens of answers"),
    ("--shared", float, 0.0, "share of prompts that all of a scenario begin with"),
    ("--lengths", listed(COUNT), [32, 128, 512, 2048], "ttft: tokens of prompts"),
    ("--repeat", COUNT, 5, "ttft, cached: requests a point; schema: four times as many"),
    ("--streams", listed(COUNT), [1, 4, 16, 64], "streams: how many"),
    ("--per-stream", COUNT, 2, "streams: requests of each, but 4 together at least"),
    ("--requests", COUNT, 60, "poisson: requests a point"),
    ("--capacity-streams", COUNT, 16, "poisson: of the closed loop that tells what a server can do"),
    ("--loads", listed(ABOVE), [0.5, 0.8, 1.2], "poisson: shares of that"),
    ("--request-rate", ABOVE, None, "poisson: requests a second, in place of shares"),
    ("--burstiness", ABOVE, 1.0, "poisson: shape of the gamma distribution of gaps; 1: a Poisson process"),
    ("--joining-len", COUNT, 4000, "joining: tokens of the prompt that joins"),
    ("--joining-streams", COUNT, 8, "joining: streams that it joins"),
    ("--joining-output", COUNT, 1024, "joining: their tokens, at most"),
    ("--chats", COUNT, 50, "turns: chats"),
    ("--turns", COUNT, 5, "turns: turns of each"),
    ("--turn-len", COUNT, 64, "turns: words of a message, and tokens of an answer"),
    ("--clients", COUNT, 4, "turns, schema: clients at once"),
    ("--prefix-len", COUNT, 1000, "prefix: tokens of the system prompt"),
    ("--prefix-requests", COUNT, 32, "prefix: requests that begin with it"),
    ("--leaving-clients", COUNT, 16, "leaving: clients, of which a quarter leaves"),
    ("--soak-streams", COUNT, 64, "soak: clients at once"),
    ("--soak-seconds", ABOVE, 60.0, "soak: for how long"),
)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m tools.bench_serve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures servers that speak OpenAI's API, under loads of several kinds, taking turns.",
        epilog="scenarios:\n" + "\n".join(f"  {name:9}{one.about}" for name, one in SCENARIOS.items()),
    )
    add = p.add_argument_group("servers (default: pyllm-serve with its built-in model)").add_argument
    add("-m", "--model", type=Path, metavar="FILE", help="measure pyllm-serve with this model")
    add("--pyllm-options", default="", metavar="TEXT", help="more options of pyllm-serve: '--itl 50'")
    add("--llama-server", type=Path, metavar="FILE", help="measure this llama-server, with --gguf")
    add("--gguf", type=Path, metavar="FILE", help="its model")
    add("--llama-options", default="", metavar="TEXT", help="more options of llama-server")
    command = "measure one that is started so; {port} is the port, {room} the tokens that a request may have"
    add("--command", type=named, action="append", default=[], metavar="NAME=TEXT", help=command)
    url = "measure one that runs already"
    add("--url", type=named_url, action="append", default=[], metavar="NAME=URL", help=url)
    add("--threads", type=COUNT, default=processors(), help="of the servers (default: the processors)")
    add("--keep", action="store_true", help="start each server once: all run, but take turns")
    add("--start-timeout", type=ABOVE, default=120.0, metavar="S", help="seconds to start (default: 120)")
    add = p.add_argument_group("what is measured").add_argument
    every = list(SCENARIOS)
    add("--scenarios", type=listed(scenario), default=every, metavar="NAMES", help="see below (default: all)")
    add("--rounds", type=COUNT, default=3, help="(default: 3)")
    goodput = "what a good request keeps to, of ttft, tpot and e2el (default: ttft:2000 tpot:100)"
    limits = {"ttft": 2000.0, "tpot": 100.0}
    add("--goodput", type=limit, nargs="+", default=limits.items(), metavar="NAME:MS", help=goodput)
    repeat = "at 0 small models repeat themselves, which helps servers that guess (default: 1)"
    add("--temperature", type=float, default=1.0, metavar="T", help=repeat)
    add(
        "--seed",
        type=int,
        default=0,
        help="that prompts follow from: another one for a server that knows them",
    )
    add("--body", type=json.loads, default={}, metavar="JSON", help="more fields of all requests")
    add("--timeout", type=ABOVE, default=600.0, metavar="S", help="seconds of a request (default: 600)")
    add("--out", type=Path, metavar="DIR", help="write serve.md, serve.json and serve.png there")
    add = p.add_argument_group("sizes").add_argument
    for name, kind, default, about in SIZES:
        many = isinstance(default, list)
        shown = ",".join(map(str, default)) if many else default
        more = "" if default is None else f" (default: {shown})"
        add(name, type=kind, default=default, metavar="LIST" if many else "N", help=about + more)
    return p


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; wrong usage exits with 2."""
    p = parser()
    options = p.parse_args(argv)
    if bool(options.llama_server) != bool(options.gguf):
        p.error("--llama-server and --gguf need each other")
    for path in (options.model, options.llama_server, options.gguf):
        if path and not path.is_file():
            p.error(f"there is no file {path}")
    if not 0 <= options.shared <= 1:
        p.error(f"--shared must be from 0 to 1, not {options.shared}")
    if not isinstance(options.body, dict):
        p.error("--body is not a JSON object")
    names = [server.name for server in servers_of(options)]
    if len(set(names)) < len(names):
        p.error(f"two servers have one name: {', '.join(names)}")
    options.goodput = dict(options.goodput)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when anything could not be measured; wrong usage exits with 2."""
    given = sys.argv[1:] if argv is None else list(argv)
    options = options_of(given)
    try:
        return run(options, shlex.join(["python", "-m", "tools.bench_serve", *given]))
    except OSError as error:
        say(f"bench_serve: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench_serve: interrupted")
        return 130


def run(options: argparse.Namespace, command: str) -> int:
    """main, with the arguments parsed."""
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    servers = servers_of(options)
    about = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "rounds": options.rounds,
        "goodput": options.goodput,
        **machine((), options.threads),
        "versions": {"pyllm": version("pyllm")},
    }
    results = Results(servers, options.scenarios)
    try:
        for round_ in range(options.rounds):
            for name in options.scenarios:
                for server in servers:
                    say(f"round {round_ + 1} of {options.rounds}: {name}, {server.name}")
                    measure(results, server, name, round_, options)
                write(results, about, options.out)  # an interrupted run has what it measured
    finally:
        for server in servers:
            server.stop()
    print(as_markdown(results, about))
    return 1 if results.failed else 0


def measure(results: Results, server: Server, name: str, round_: int, options: argparse.Namespace) -> None:
    """A scenario on a server: adds to the results."""
    try:
        with server.running(SCENARIOS[name].room(options)):
            before = server.used()
            points = asyncio.run(server.guarded(measured(server, name, round_, options)))
            after = server.used()
    except ServerError as error:
        say(f"bench_serve: {error}")
        results.failed[name, server.name] = str(error)
        return
    results.points.setdefault((name, server.name), []).append(points)
    if before and after:
        took = Used(after.bytes, after.seconds - before.seconds)
        results.used.setdefault((name, server.name), []).append(took)


def write(results: Results, about: dict[str, Any], out: Path | None) -> None:
    """The files."""
    if out is None:
        return
    write_text(out / "serve.md", as_markdown(results, about))
    write_text(out / "serve.json", as_json(results, about))
    try:
        draw_streams(results, about, out / "serve.png")
    except ImportError as error:
        say(f"no plot: {error}")
