"""pyllm-serve: the server as a command."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEEDS = "pyllm serve needs more packages: pip install 'pyllm[server]'"
OPEN_TO_ALL = "pyllm serve: whoever can reach {} can use this server: see --key"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GIB = 1 << 30


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(
        prog="pyllm serve",
        description="Serves a model over HTTP as OpenAI does: /v1/chat/completions, /v1/completions, ...",
    )
    add = p.add_argument
    add("-m", "--model", metavar="FILE", help="the model; default: the built-in one")
    add(
        "--name",
        action="append",
        type=not_empty,
        metavar="NAME",
        help="serve it as NAME; may be repeated (default: its own)",
    )
    add("--any-model", action="store_true", help="answer requests for models of any other name, too")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=number(0, 65535), default=8000, help="0: any free one (default: 8000)")
    add("--uds", metavar="PATH", help="listen on a Unix socket instead")
    group = p.add_argument_group("who may ask")
    add = group.add_argument
    add(
        "--key",
        action="append",
        type=not_empty,
        metavar="KEY",
        help="a key that requests must carry; may be repeated. Also: a line "
        "of --key-file, the environment variable PYLLM_API_KEY",
    )
    add("--key-file", type=Path, metavar="FILE", help="keys, one a line")
    add("--allow-host", action="append", metavar="NAME", help="a name that requests may call this server by")
    add(
        "--allow-origin", action="append", metavar="URL", help="pages from there may call this server; *: all"
    )
    add("--trust-messages", action="store_true", help="let control tokens in messages count as such")
    group = p.add_argument_group("how it runs")
    add = group.add_argument
    add(
        "-c",
        "--context",
        type=number(1, 2**32 - 1),
        help="tokens of prompt and answer (default: the model's)",
    )
    add("--threads", type=number(1, 2**32 - 1), help="processors to use (default: those that it may)")
    add("--kv", choices=("fp16", "int8"), help="how keys and values are kept")
    add(
        "--no-exact",
        action="store_true",
        help="fp16 files: compute prompts in integers, twice as fast, so that an "
        "answer's last bits depend on what runs beside it",
    )
    add(
        "--draft",
        metavar="FILE",
        help="a smaller model that guesses; off: none; default: what the text repeats",
    )
    add(
        "--running", type=number(1, 1024), default=16, help="requests that run at the same time (default: 16)"
    )
    add(
        "--kept",
        type=number(0, 4096),
        default=48,
        help="sequences kept for requests that begin alike (default: 48)",
    )
    add(
        "--itl",
        type=positive,
        default=100.0,
        metavar="MS",
        help="milliseconds between two tokens of an answer, at "
        "most, while others' prompts are read (default: 100)",
    )
    add("--throughput", action="store_true", help="read prompts as fast as possible, whatever --itl says")
    add(
        "--memory",
        type=positive,
        metavar="GIB",
        help="GiB of keys and values (default: half of what is free)",
    )
    add("--cache-dir", metavar="DIR", help="keep what several requests began with there, across restarts")
    add(
        "--overcommit", action="store_true", help="take requests by what they have, not by what they may need"
    )
    group = p.add_argument_group("limits")
    add = group.add_argument
    add(
        "--max-tokens", type=number(1, 2**31), help="that a request may ask for (default: as the context has)"
    )
    add("--default-max-tokens", type=number(1, 2**31), help="for requests that do not say")
    add(
        "--max-waiting",
        type=number(0, 1 << 20),
        default=64,
        help="requests that wait; more get 429 (default: 64)",
    )
    add(
        "--max-wait",
        type=positive,
        default=30.0,
        metavar="S",
        help="seconds to the first token; a request that would wait longer gets 429 (default: 30)",
    )
    add("--timeout", type=positive, metavar="S", help="seconds that a request may take (default: no limit)")
    add(
        "--drain",
        type=positive,
        default=30.0,
        metavar="S",
        help="seconds that requests get to end when the server is told to (default: 30)",
    )
    return p


def not_empty(text: str) -> str:
    """An argument that says something: a key that is empty would be none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def number(least: int, most: int) -> Any:
    """An argument that is an integer in a range."""

    def integer(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}, not {text}")
        return value

    return integer


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def keys_of(options: argparse.Namespace) -> frozenset[str]:
    """All keys that were given."""
    keys = [*(options.key or ())]
    if options.key_file:
        try:
            keys += [line.strip() for line in options.key_file.read_text().splitlines()]
        except UnicodeDecodeError:
            raise ValueError(f"{options.key_file} is not a text file") from None
        if not any(keys):
            raise ValueError(f"{options.key_file} has no keys")
    if "PYLLM_API_KEY" in os.environ:
        keys.append(os.environ["PYLLM_API_KEY"])
    return frozenset(filter(None, keys))


def hosts_of(options: argparse.Namespace) -> frozenset[str]:
    """The names that requests may call the server by; none where it may be called by any."""
    named = [name.lower() for name in options.allow_host or ()]
    if options.uds or (options.host not in LOOPBACK and not named):
        return frozenset()
    return frozenset([*LOOPBACK, options.host.lower(), *named])


def free_memory() -> int:
    """Bytes that the system could give, about; 2 GiB where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration, ValueError):
        return 2 * GIB


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 after a signal, 1 when it cannot serve; wrong usage exits with 2."""
    options = parser().parse_args(argv)
    try:
        import uvicorn  # noqa: F401

        from pyllm.server.app import build_app  # noqa: F401
    except ImportError as error:
        print(f"{NEEDS} ({error})", file=sys.stderr)
        return 1
    from pyllm import LLMError

    try:
        return serve(options)
    except (LLMError, OSError, ValueError) as error:
        print(f"pyllm serve: {error}", file=sys.stderr)
        return 1


def serve(options: argparse.Namespace) -> int:
    """main, with the options read."""
    from pyllm import LLM, Policy
    from pyllm.server.app import build_app
    from pyllm.server.run import Server
    from pyllm.server.settings import Settings

    settings = Settings(
        names=tuple(options.name or ()),
        any_model=options.any_model,
        keys=keys_of(options),
        hosts=hosts_of(options),
        origins=frozenset(options.allow_origin or ()),
        max_tokens=options.max_tokens,
        default_tokens=options.default_max_tokens,
        max_waiting=options.max_waiting,
        max_wait=options.max_wait,
        timeout=options.timeout,
        drain=options.drain,
        trust_messages=options.trust_messages,
    )
    memory = int(options.memory * GIB) if options.memory else free_memory() // 2
    policy = Policy(
        max_running=options.running,
        max_idle=options.kept,
        itl=None if options.throughput else options.itl / 1000,
        throughput=options.throughput,
        memory=memory,
        overcommit=options.overcommit,
        folder=options.cache_dir,
    )
    draft = {None: None, "off": False}.get(options.draft, options.draft)
    shared = dict(threads=options.threads, context=options.context)
    smaller = LLM(draft, **shared) if isinstance(draft, str) else None
    with LLM(
        options.model,
        draft=smaller or draft,
        kv=options.kv,
        exact=not options.no_exact,
        policy=policy,
        **shared,
    ) as llm:
        app = build_app(llm, settings)
        with listening(options) as sock:
            if not (settings.keys or options.uds or options.host in LOOPBACK):
                print(OPEN_TO_ALL.format(options.host), file=sys.stderr, flush=True)
            Server(app, address(options, sock)).run([sock])
    return 0


def address(options: argparse.Namespace, sock: socket.socket) -> str:
    """Where the server is, for people."""
    if options.uds:
        return str(options.uds)
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{sock.getsockname()[1]}"


@contextmanager
def listening(options: argparse.Namespace) -> Iterator[socket.socket]:
    """The socket that requests come to. OSError that says where when it cannot be had."""
    where = options.uds or f"{options.host}:{options.port}"
    family = socket.AF_UNIX if options.uds else socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio sends what is written at once only where it knows that it is TCP's
    protocol = 0 if options.uds else socket.IPPROTO_TCP
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        try:
            if options.uds:
                remove_left_over(options.uds)
                sock.bind(options.uds)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((options.host, options.port))
            sock.listen(1024)
        except OSError as error:
            raise OSError(f"cannot listen on {where}: {error.strerror or error}") from None
        try:
            yield sock
        finally:
            if options.uds:
                Path(options.uds).unlink(missing_ok=True)


def remove_left_over(path: str) -> None:
    """Removes a socket that nobody listens on any more; nothing else."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
