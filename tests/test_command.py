"""The command `pyllm`, run as a program over pipes, with tiny random models made here and the story model."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from common import BOS, COMMAND, IM_END, IM_START, NONE, SPECIAL, byte_tokenizer, is_hostile, on_terminal
from pyllm._llm import ffi, lib
from reference import (
    FP16,
    GELU,
    INT4,
    INT8,
    INT8R,
    LAYER_SCALED,
    POST_NORM,
    QK_NORM,
    QKV_BIAS,
    ROUTER_BIAS,
    ROUTER_SIGMOID,
    SHARED_GATE,
    TIED,
    V_IS_K,
    V_NORM,
    log_softmax,
    make_model,
)

# PYLLM_BINARY is a script that runs the build for another processor in an emulator: the program is not beside
# itself then, and its float32 sums have another order than those of the bindings.
EMULATED = bool(os.environ.get("PYLLM_EMULATED"))
emulated = pytest.mark.skipif(EMULATED, reason="the program is run by a script")

CHATML = [
    "<|im_start|>system\n",
    "<|im_end|>\n<|im_start|>user\n",
    "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>\n<|im_start|>user\n",
    "",
]
# Every option that is documented, and the commands that take it.
OPTIONS = {
    "--model": "generate chat next info tokenize perplexity bench",
    "--max-tokens": "generate chat next bench",
    "--temperature": "generate chat",
    "--top-k": "generate chat",
    "--top-p": "generate chat",
    "--min-p": "generate chat",
    "--repeat-penalty": "generate chat",
    "--presence-penalty": "generate chat",
    "--frequency-penalty": "generate chat",
    "--seed": "generate chat",
    "--stop": "generate chat",
    "--draft": "generate chat",
    "--system": "chat",
    "--hide-thinking": "chat",
    "--no-thinking": "chat",
    "--context": "generate chat next info perplexity",
    "--stride": "perplexity",
    "--no-special": "generate next tokenize perplexity",
    "--no-bos": "generate next tokenize perplexity",
    "--no-echo": "generate",
    "--ids": "tokenize",
    "--kv": "generate chat next perplexity bench",
    "--exact": "generate chat next perplexity bench",
    "--speed": "info",
    "--verify": "info",
    "--prompt-tokens": "bench",
    "--repeat": "bench",
    "--threads": "generate chat next info perplexity bench",
    "--verbose": "generate chat perplexity",
    "--help": "generate chat next info tokenize perplexity bench",
}
COMMANDS = OPTIONS["--model"].split()


# ----------------------------------------------------------------------------------------------------------
# Models and running


def tiny_model(
    parts: list[str] | None = CHATML,
    more: dict[int, bytes] | None = None,
    *,
    bos: int = BOS,
    eos: int = IM_END,
    flags: int = lib.LLM_ADD_BOS,
    texts: dict[int, bytes] | None = None,
    **arguments,
) -> bytes:
    """A flat file of random weights over byte_tokenizer, that can chat if `parts` are given."""
    sections = {
        lib.LLM_NAME: b"Tiny",
        lib.LLM_ABOUT: b"family: test\nlicence: \x1b[31mnone",
        lib.LLM_STOP: struct.pack("<I", IM_END),
        **byte_tokenizer(flags, bos, eos, texts=texts),
    }
    if parts:
        sections[lib.LLM_CHAT_PARTS] = "".join(part + "\0" for part in parts).encode()
    return make_model(
        5, vocab_size=256 + len(SPECIAL), dtype=INT8, sections={**sections, **(more or {})}, **arguments
    )


@pytest.fixture(scope="session")
def pyllm_binary() -> str:
    """The command: $PYLLM_BINARY, or the one installed with this Python."""
    if not COMMAND:
        pytest.skip("the command pyllm is not installed, and PYLLM_BINARY does not name one")
    return os.path.abspath(COMMAND)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The path of tiny_model()."""
    path = tmp_path_factory.mktemp("command") / "tiny.llm"
    path.write_bytes(tiny_model())
    return str(path)


@pytest.fixture(scope="session")
def run(pyllm_binary):
    """run(*arguments, input=b"", rc=0, **environment) -> (stdout, stderr), both bytes.

    Threads wait passively: spinning ones make every test take seconds where processors are busy.
    """

    def run(*arguments, input: bytes = b"", rc: int = 0, **environment) -> tuple[bytes, bytes]:
        done = subprocess.run(
            [pyllm_binary, *arguments],
            input=input,
            capture_output=True,
            timeout=120,
            env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        )
        assert done.returncode == rc, (arguments, done)
        return done.stdout, done.stderr

    return run


def start(pyllm_binary, *arguments) -> subprocess.Popen:
    """The command with pipes, and with Ctrl-C as in a terminal even if this process ignores it."""
    return subprocess.Popen(
        [pyllm_binary, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Model:
    """A model opened through the bindings: what the command's output is checked against."""

    def __init__(self, path: str, context: int = 0):
        self.err = ffi.new("char[256]")
        self.model = self.check(lib.llm_open(os.fsencode(path), self.err, 256), lib.llm_close)
        self.header = lib.llm_model_header(self.model)
        self.layers = lib.llm_model_layers(self.model)
        self.tokenizer = self.check(
            lib.llm_tokenizer_open(self.model, self.err, 256), lib.llm_tokenizer_close
        )
        options = ffi.new("llm_options *", {"context": context, "threads": 1})
        self.session = self.check(
            lib.llm_session_open(self.model, options, self.err, 256), lib.llm_session_close
        )

    def check(self, pointer, close):
        assert pointer, ffi.string(self.err)
        return ffi.gc(pointer, close)

    def encode(self, text: bytes, flags: int) -> list[int]:
        tokens = ffi.new("uint32_t[]", len(text) + 16)
        return list(
            tokens[
                0 : lib.llm_encode(self.tokenizer, text, len(text), flags, tokens, len(tokens), self.err, 256)
            ]
        )

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(len(tokens), vocab_size) float64, of a sequence that begins with them."""
        n, vocab = len(tokens), self.header.vocab_size
        out = np.zeros((n, vocab), dtype=np.float32)
        assert not lib.llm_truncate(self.session, 0, 0, self.err, 256)
        assert not lib.llm_forward(
            self.session, n, tokens, ffi.NULL, b"\1" * n, ffi.from_buffer("float *", out), self.err, 256
        ), ffi.string(self.err)
        return out.astype(np.float64)

    def greedy(self, tokens: list[int], n: int) -> list[int]:
        """The n most likely next tokens, or those up to a stop token."""
        made = []
        while len(made) < n:
            token = int(np.argmax(self.logits(tokens + made)[-1]))
            if lib.llm_token_is_stop(self.tokenizer, token):
                break
            made.append(token)
        return made

    def decode(self, tokens: list[int], before: list[int]) -> bytes:
        """The text of tokens that come after others."""
        decoder, out, room = ffi.new("llm_decoder *"), b"", lib.llm_token_max_bytes(self.tokenizer)
        buffer = ffi.new("char[]", room)
        for i, token in enumerate(before + tokens):
            n = lib.llm_decode(self.tokenizer, decoder, token, 0, buffer, room)
            out += ffi.buffer(buffer, n)[:] if i >= len(before) else b""
        return out + ffi.buffer(buffer, lib.llm_decode_end(decoder, buffer, room))[:]


class Terminal:
    """The command in a terminal of its own, where Ctrl-C and Ctrl-Z work. `out`: its stdout, if that is not
    the terminal."""

    def __init__(self, command: list[str], out: int | None = None, **environment: str):
        self.main, self.side = os.openpty()
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.side)
        self.seen = b""
        self.give_up = time.monotonic() + 300
        self.process = subprocess.Popen(
            command,
            stdin=self.side,
            stdout=self.side if out is None else out,
            stderr=self.side,
            start_new_session=True,
            preexec_fn=self.prepare,
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "TERM": "xterm", **environment},
        )

    @staticmethod
    def prepare() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)

    def exchange(self, data: bytes = b"") -> bytes:
        """Sends some of data, or reads; returns what is still to be sent. Fails when neither goes on."""
        read, write, _ = select.select([self.main], [self.main] if data else [], [], 60)
        going = (read or write) and time.monotonic() < self.give_up
        assert going, f"nothing that is waited for comes after {self.seen[-500:]}"
        if read:
            self.seen += os.read(self.main, 65536)
        return data[os.write(self.main, data[:256]) :] if write else data

    def send(self, data: bytes) -> None:
        while data:
            data = self.exchange(data)

    def wait_for(self, text: bytes) -> bytes:
        """What comes up to `text` and that itself."""
        while text not in self.seen:
            self.exchange()
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def end(self) -> bytes:
        """Waits until the command ends; all that came and was not waited for."""
        while self.process.poll() is None or select.select([self.main], [], [], 0)[0]:
            if select.select([self.main], [], [], 0.02)[0]:
                self.seen += os.read(self.main, 65536)
            assert time.monotonic() < self.give_up, f"does not end after {self.seen[-500:]}"
        return self.seen

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.side) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.main)
        os.close(self.side)


@pytest.fixture
def terminal(pyllm_binary) -> Iterator:
    """terminal(*arguments, out=None, **environment) -> Terminal, with the command in it."""
    opened = []

    def terminal(*arguments: str, **more) -> Terminal:
        opened.append(Terminal([pyllm_binary, *arguments], **more))
        return opened[-1]

    yield terminal
    for each in opened:
        each.close()


HOSTILE = [c.encode() for c in map(chr, range(0x11000)) if not "\ud800" <= c <= "\udfff" and is_hostile(c)]
ATTACKS = [b"\x1b[2J", b"\x1b]0;title\x07", "\u009b31m".encode(), b"a\rb", b"x\x7f\x08", "\u202e".encode()]
# Text on both sides of what a token may cut, so that characters come in two pieces.
HALVES = [b"<%c\xc2" % c for c in range(65, 85)] + [b"\x9b%c>" % c for c in range(65, 85)]


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> str:
    """The path of a model that makes control characters of all kinds."""
    texts = dict(enumerate((HOSTILE + ATTACKS + HALVES)[:250], 3))
    path = tmp_path_factory.mktemp("hostile") / "hostile.llm"
    path.write_bytes(tiny_model(texts=texts, more={lib.LLM_STOP: b""}, eos=NONE, context=4096))
    return str(path)


# ----------------------------------------------------------------------------------------------------------
# The command line


def test_without_a_command_prints_usage_to_stderr(run):
    out, err = run(rc=2)
    assert out == b"" and err.startswith(b"usage: pyllm ")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command_on_stdout(run, flag):
    out, err = run(flag)
    assert err == b""
    assert [line.split()[0] for line in out.decode().splitlines() if line.startswith("  ")] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_lists_its_options_on_stdout(run, command):
    out, err = run(command, "--help")
    assert err == b"" and out.startswith(f"usage: pyllm {command} ".encode())
    listed = re.findall(r"^  (?:-\w, |    )(--[\w-]+)", out.decode(), re.MULTILINE)
    assert sorted(listed) == sorted(name for name, commands in OPTIONS.items() if command in commands.split())


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_filled_to_the_width_of_a_terminal(run, command):
    """A line ends where the next word would not fit into 80 columns, or where its paragraph ends."""
    out = run(*([command] if command else []), "--help")[0].decode()
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for line, below in zip(lines, lines[1:], strict=False):
        names = below.startswith(("  -", "      -")) or re.match(r"  \w+  +\w", below)
        if line and below and not names and line not in ("commands:", "options:"):
            assert len(line) + 1 + len(below.split()[0]) > 80, (line, below)


def test_help_wins_over_what_is_missing(run):
    assert run("tokenize", "-h") == run("tokenize", "--help")


def test_version(run):
    out, err = run("--version")
    assert re.fullmatch(rb"pyllm \S+\n", out) and err == b""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["generate", "--nonsense"],
            "'pyllm generate' has no option '--nonsense'; see pyllm generate --help",
        ),
        (["generate", "--mode", "x"], "has no option '--mode'"),
        (["generate", "-x"], "has no option '-x'"),
        (["info", "--seed", "1"], "'pyllm info' has no option '--seed'"),
        (["generate", "-n"], "--max-tokens needs a value"),
        (["generate", "-n", "0"], "--max-tokens takes a whole number from 1 to"),
        (["generate", "-n", "-3"], "--max-tokens takes a whole number"),
        (["generate", "-n", "1.5"], "not '1.5'"),
        (["generate", "-n", ""], "--max-tokens"),
        (["generate", "-n", " 1"], "--max-tokens"),
        (["generate", "-n", "99999999999999999999999"], "--max-tokens"),
        (["generate", "-t", "hot"], "--temperature takes a number from 0 to 1000, not 'hot'"),
        (["generate", "-t", "nan"], "--temperature"),
        (["generate", "-t", "-1"], "--temperature"),
        (["generate", "-t", "0.5x"], "--temperature"),
        (["generate", "--top-p=0"], "--top-p"),
        (["generate", "--top-p=1.01"], "--top-p"),
        (["generate", "--min-p=2"], "--min-p"),
        (["generate", "--top-k=-2"], "--top-k"),
        (["generate", "--top-k=4294967296"], "--top-k"),
        (["generate", "--repeat-penalty=0"], "--repeat-penalty"),
        (["generate", "--seed=-2"], "--seed"),
        (
            ["generate", "--seed=18446744073709551616"],
            "--seed takes a whole number from 0 to 18446744073709551615",
        ),
        (["generate", "--stop="], "--stop must not be empty"),
        (["generate", "--threads=0"], "--threads"),
        (["generate", "--context=0"], "--context"),
        (["generate", "--no-echo=1"], "--no-echo takes no value"),
        (["generate", "two", "words"], "'words' is one too many (quote a text with spaces)"),
        (["next"], "'pyllm next' needs a TEXT"),
        (["perplexity"], "'pyllm perplexity' needs a FILE"),
        (["info", "x"], "'pyllm info' takes no argument, and 'x' is one too many"),
        (["chat", "hello"], "'pyllm chat' takes no argument"),
        (["bench", "--repeat", "0"], "--repeat"),
        (["nonsense"], "pyllm: 'nonsense' is not a command; see pyllm --help"),
        (["-m", "x", "generate"], "'-m' is not a command"),
        (["../evil"], "is not a command"),
        ([""], "is not a command"),
        (["x" * 5000], "is not a command"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_usage_errors_name_what_is_wrong(run, arguments, message):
    out, err = run(*arguments, rc=2)
    assert out == b"" and err.count(b"\n") == 1
    assert message in err.decode()


@pytest.mark.parametrize("prompt", ["-5 degrees", "--- title", "-t is hot", "-very", "--stop here", "---"])
@pytest.mark.parametrize("command", ["generate", "next", "tokenize"])
def test_a_prompt_that_begins_with_a_dash_is_told_of_two_dashes(run, tiny, command, prompt):
    if command == "generate" or prompt != "-t is hot":
        err = run(command, prompt, rc=2)[1]
        assert err.count(b"\n") == 1 and b"put -- before an argument that begins with a dash" in err
    assert run(command, "-m", tiny, "--", prompt)[0]


def test_minus_one_means_random_or_off(run, tiny):
    base = ["generate", "-m", tiny, "ab", "-n", "40"]
    seeds = {re.search(rb"seed (\d+);", run(*base, "--seed", "-1", "-v")[1])[1] for _ in range(3)}
    assert len(seeds) == 3
    assert run(*base, "--seed", "5", "--top-k", "-1") == run(*base, "--seed=5", "--top-k=0")
    assert run(*base, "--seed", "5", "--top-k=-1") != run(*base, "--seed=5", "--top-k=2")


def test_of_an_option_given_twice_the_last_one_counts(run, tiny):
    base = ["generate", "-m", tiny, "ab", "-n", "20"]
    assert run(*base, "--seed", "1", "--seed", "2", "-t", "0", "-t", "1") == run(*base, "--seed=2", "-t1")
    assert run(*base, "--seed", "-1", "--seed", "2") == run(*base, "--seed", "2")
    assert len({run(*base, "--seed", "2", "--seed", "-1") for _ in range(3)}) > 1


def test_values_may_follow_in_three_ways(run, tiny):
    expected = run("generate", "-m", tiny, "-n", "5", "-t", "0", "ab")
    assert run("generate", f"--model={tiny}", "--max-tokens=5", "--temperature=0", "ab") == expected
    assert run("generate", "ab", f"-m{tiny}", "-n5", "-t0") == expected
    assert run("generate", "-m", tiny, "-n", "5", "-t", "0", "--", "ab") == expected


def test_after_two_dashes_nothing_is_an_option(run, tiny):
    assert run("tokenize", "-m", tiny, "--no-bos", "--ids", "--", "--ids")[0].split() == [
        b"%d" % c for c in b"--ids"
    ]


def make_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_unknown_command_runs_a_program_on_path(run, tmp_path):
    make_program(tmp_path, "pyllm-probe", 'echo "$#:$1:$2"; exit 7')
    out, err = run("probe", "a b", "--help", rc=7, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (out, err) == (b"2:a b:--help\n", b"")


@emulated
def test_unknown_command_prefers_the_program_beside_pyllm(pyllm_binary, tmp_path):
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir()
        make_program(folder, "pyllm-probe", f"echo {folder.name}")
    shutil.copy(pyllm_binary, beside / "pyllm")
    link = tmp_path / "link"
    link.symlink_to(beside / "pyllm")
    done = subprocess.run(
        [link, "probe"], capture_output=True, env={"PATH": f"{elsewhere}:{os.environ['PATH']}"}
    )
    assert done.stdout == b"beside\n"


@emulated
def test_a_program_that_cannot_run_is_reported(run, tmp_path):
    (tmp_path / "pyllm-probe").write_text("not executable")
    _, err = run("probe", rc=1, PATH=str(tmp_path))
    assert err.startswith(b"pyllm: pyllm-probe: ")


# ----------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    "command", [["generate"], ["chat"], ["next", "x"], ["info"], ["tokenize", "x"], ["bench"]], ids=str
)
def test_a_missing_model_is_reported(run, command):
    out, err = run(*command, "-m", "/nonexistent/model.llm", rc=1)
    assert (
        out == b""
        and err.startswith(b"pyllm: ")
        and b"/nonexistent/model.llm" in err
        and err.count(b"\n") == 1
    )


@pytest.mark.parametrize("what", ["empty", "text", "truncated", "longer", "directory"])
def test_a_broken_model_is_reported(run, tiny, tmp_path, what):
    path, whole = tmp_path / "broken.llm", Path(tiny).read_bytes()
    if what == "directory":
        path.mkdir()
    else:
        broken = {
            "empty": b"",
            "text": b"hello" * 1000,
            "truncated": whole[:-1000],
            "longer": whole + bytes(64),
        }
        path.write_bytes(broken[what])
    out, err = run("generate", "-m", str(path), "x", rc=1)
    assert out == b"" and err.startswith(b"pyllm: ") and b"broken.llm" in err and err.count(b"\n") == 1


def test_a_model_without_a_tokenizer_still_has_info_and_bench(run, tmp_path):
    path = tmp_path / "bare.llm"
    path.write_bytes(make_model())
    assert b"tokenizer         none" in run("info", "-m", str(path))[0]
    run("bench", "-m", str(path), "--prompt-tokens", "4", "-n", "2", "--repeat", "1")
    out, err = run("generate", "-m", str(path), "x", rc=1)
    assert out == b"" and b"tokenizer" in err


def test_the_builtin_model_runs_or_is_named_as_missing(pyllm_binary):
    done = subprocess.run([pyllm_binary, "generate", "Once", "-n", "3", "-t", "0"], capture_output=True)
    if done.returncode:
        assert done.stderr == b"pyllm: this build has no built-in model; name one with -m FILE\n"
    else:
        assert done.stdout.startswith(b"Once")


# ----------------------------------------------------------------------------------------------------------
# generate


def generate(run, model, *arguments, **more) -> bytes:
    out, err = run("generate", "-m", model, *arguments, **more)
    assert err == b""
    assert out.endswith(b"\n")
    return out[:-1]


def test_generate_echoes_the_prompt_unless_told_not_to(run, tiny):
    text = generate(run, tiny, "Hello", "-n", "20", "--seed", "1")
    assert text.startswith(b"Hello") and len(text) > len(b"Hello")
    assert generate(run, tiny, "Hello", "-n", "20", "--seed", "1", "--no-echo") == text[len(b"Hello") :]


@pytest.mark.parametrize(
    "prompt", ["Once upon a time", "a", "", "caf\u00e9 \U0001f600", "<|im_start|>user\nHi<|im_end|>"]
)
def test_temperature_zero_is_the_argmax_of_the_bindings(run, tiny, prompt):
    model = Model(tiny)
    tokens = model.encode(prompt.encode(), lib.LLM_SPECIAL)
    expected = model.decode(model.greedy(tokens, 24), tokens)
    assert generate(run, tiny, prompt, "-t", "0", "-n", "24") == prompt.encode() + expected


def test_story_model_at_temperature_zero_is_the_argmax_of_the_bindings(run, story_model):
    prompt, model = "Once upon a time", Model(story_model)
    tokens = model.encode(prompt.encode(), lib.LLM_SPECIAL)
    expected = model.decode(model.greedy(tokens, 30), tokens)
    assert generate(run, story_model, prompt, "-t", "0", "-n", "30") == prompt.encode() + expected


def test_same_seed_same_text_on_any_number_of_threads(run, tiny):
    texts = {generate(run, tiny, "ab", "-n", "40", "--seed", "9", "--threads", n) for n in ("1", "2", "4")}
    assert len(texts) == 1
    assert generate(run, tiny, "ab", "-n", "40", "--seed", "10") not in texts


def test_story_model_same_seed_same_text_on_any_number_of_threads(run, story_model):
    texts = {
        generate(run, story_model, "Once", "-n", "40", "--seed", "9", "--threads", n) for n in ("1", "2", "4")
    }
    assert len(texts) == 1


def test_without_a_seed_texts_differ_and_verbose_tells_the_seed(run, tiny):
    out, err = run("generate", "-m", tiny, "ab", "-n", "40", "-v")
    assert err.count(b"\n") == 1
    seed = re.search(
        rb"seed (\d+); prompt of 3 tokens, 3 of them run in .*; (\d+) tokens made in .*threads\n", err
    )
    assert 1 <= int(seed[2]) <= 40
    assert generate(run, tiny, "ab", "-n", "40", "--seed", seed[1].decode()) == out[:-1]
    assert generate(run, tiny, "ab", "-n", "40") != out[:-1]


def test_generate_makes_at_most_max_tokens(run, tiny):
    for n in ("1", "7"):
        err = run("generate", "-m", tiny, "ab", "-t", "0", "-n", n, "-v")[1].decode()
        assert f" {n} tokens made" in err


def test_generate_ends_when_the_context_is_full(run, tiny):
    out, err = run("generate", "-m", tiny, "x" * 100, "--no-echo", "-v", "-t", "1", "--seed", "3")
    made = int(re.search(rb"(\d+) tokens made", err)[1])
    assert made == 128 - 101 + 1  # the last token need not go into the context


@pytest.mark.parametrize("prompt, context", [("x" * 128, None), ("x" * 20, "8"), ("x" * 50_000, None)])
def test_a_prompt_longer_than_the_context_is_an_error_with_both_lengths(run, tiny, prompt, context):
    out, err = run("generate", "-m", tiny, prompt, *(["--context", context] if context else []), rc=1)
    assert out == b""
    assert f"{len(prompt) + 1} tokens, more than the context of {context or 128}" in err.decode()


def test_a_longer_context_may_be_asked_for(run, tiny):
    assert len(generate(run, tiny, "x" * 300, "--context", "400", "-n", "2")) > 300


def test_stop_ends_before_the_text(run, tiny):
    text = generate(run, tiny, "ab", "-n", "60", "--seed", "4", "--no-echo")
    for i in (5, 20, 33):  # a stop of several tokens in the middle, chosen from what comes anyway
        stop = text[i : i + 4]
        arguments = ["ab", "-n", "60", "--seed", "4", "--no-echo", "--stop", os.fsdecode(stop)]
        assert generate(run, tiny, *arguments) == text[: text.index(stop)]
        other = ["--stop", os.fsdecode(text[i + 2 : i + 12] + b"-"), "--stop", "never there"]
        assert generate(run, tiny, *arguments, *other) == text[: text.index(stop)]


@pytest.fixture(scope="session")
def controls(tmp_path_factory) -> str:
    """The path of a model that ends at no token by itself, and soon makes <|im_start|> and <|im_end|>."""
    path = tmp_path_factory.mktemp("controls") / "controls.llm"
    path.write_bytes(tiny_model(more={lib.LLM_STOP: b""}, eos=NONE, context=1024))
    return str(path)


def sampled(run, path: str, command: list[str], *arguments: str, seed: int = 0) -> bytes:
    flags = ["-n", "100", "-t", "3", "--top-p", "1", "--seed", str(seed)]
    return run(*command, "-m", path, *flags, *arguments, input=b"Hello")[0]


@pytest.mark.parametrize("command", [["generate", "--no-echo", "ab"], ["chat"]], ids=lambda x: x[0])
@pytest.mark.parametrize("stops", [{"<|im_end|>": IM_END}, {"<|im_end|>": IM_END, "<|im_start|>": IM_START}])
def test_a_stop_text_that_is_a_control_token_stops_at_that_token(run, controls, tmp_path, command, stops):
    """As a model does whose file names this token as one that ends a text."""
    path = tmp_path / "stops.llm"
    ids = struct.pack(f"<{len(stops)}I", *sorted(stops.values()))
    path.write_bytes(tiny_model(more={lib.LLM_STOP: ids}, eos=NONE, context=1024))
    options = ["--stop", "never there"] + [word for name in stops for word in ("--stop", name)]
    for seed in range(100):  # until the model makes such a token
        whole = sampled(run, controls, command, seed=seed)
        expected = sampled(run, str(path), command, seed=seed)
        assert sampled(run, controls, command, *options, seed=seed) == expected
        if expected != whole:
            break
    assert len(expected) < len(whole) and whole.startswith(expected[:-1])


@pytest.mark.parametrize("stop", ["<|im_end|>\n", "x<|im_end|>", "<|im_end|><|im_start|>"])
@pytest.mark.parametrize("command", [["generate", "ab"], ["chat"]], ids=lambda x: x[0])
def test_a_stop_text_with_a_control_token_in_it_is_an_error(run, controls, command, stop):
    out, err = run(*command, "-m", controls, "--stop", "fine", "--stop", stop, rc=1)
    assert out == b"" and err.count(b"\n") == 1
    assert stop.replace("\n", "\\n").encode() in err and b'"<|im_end|>" is a control token' in err


def test_a_stop_text_that_almost_is_a_control_token_is_text(run, controls):
    text = sampled(run, controls, ["generate", "ab"])
    assert sampled(run, controls, ["generate", "ab"], "--stop", "<|im_end|") == text


def test_text_held_back_for_a_stop_that_does_not_come_is_printed(run, tiny):
    arguments = ["ab", "-n", "60", "--seed", "6", "--no-echo"]
    text = generate(run, tiny, *arguments)
    assert b"\0" not in text  # which could not be an argument
    for stop in (text[-3:] + b"!", text[10:20] + b"!", text + b"!"):
        assert generate(run, tiny, *arguments, "--stop", os.fsdecode(stop)) == text


def test_stop_token_ends_without_being_printed(run, tmp_path):
    path = tmp_path / "stops.llm"
    data = tiny_model(more={lib.LLM_STOP: np.arange(0, 200, dtype="<u4").tobytes()})
    path.write_bytes(data)
    text = generate(run, str(path), "ab", "--seed", "4", "--no-echo")
    assert not any(c < 128 for c in text) and len(text) < 120


def test_generate_reads_the_prompt_from_stdin(run, tiny):
    arguments = ["-n", "10", "-t", "0"]
    expected = generate(run, tiny, "two\nlines", *arguments)
    for given in (b"two\nlines", b"two\nlines\n"):  # one newline at the end is the shell's
        assert generate(run, tiny, "-", *arguments, input=given) == expected
    assert generate(run, tiny, "-", *arguments, input=b"two\nlines\n\n") != expected


def test_generate_takes_bytes_that_are_not_utf8(run, tiny):
    for prompt in (b"\xff\xfe", b"\xc3", b"a\xf0\x9f\x98z", b"\xed\xa0\x80"):
        out = generate(run, tiny, prompt, "-n", "5", "-t", "0")
        assert out.startswith(prompt)
        assert out[len(prompt) :] == generate(
            run, tiny, prompt.decode(errors="replace"), "-n", "5", "-t", "0", "--no-echo"
        )
    generate(run, tiny, "-", "-n", "5", input=b"nul \0 inside")


def test_generated_text_is_valid_utf8_and_streamed(run, tiny):
    for seed in range(8):
        generate(run, tiny, "ab", "-n", "100", "--seed", str(seed), "--no-echo", "-t", "2").decode()


def test_an_empty_prompt_needs_a_bos(run, tiny, tmp_path):
    assert generate(run, tiny, "-n", "5") and generate(run, tiny, "", "-n", "5")
    quiet, none = tmp_path / "quiet.llm", tmp_path / "none.llm"
    quiet.write_bytes(tiny_model(flags=0))  # has a BOS, but does not add it by itself
    none.write_bytes(tiny_model(flags=0, bos=NONE))
    assert generate(run, str(quiet), "-t", "0", "-n", "5") == generate(run, tiny, "-t", "0", "-n", "5")
    out, err = run("generate", "-m", str(none), rc=1)
    assert out == b"" and b"no BOS" in err
    assert b"no BOS" in run("generate", "-m", tiny, "--no-bos", rc=1)[1]


def test_sampling_flags_reach_the_sampler(run, tiny):
    base = ["ab", "-n", "40", "--seed", "2"]
    plain = generate(run, tiny, *base, "-t", "1")
    greedy = generate(run, tiny, *base, "-t", "0")
    for flags in (["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]):
        assert generate(run, tiny, *base, *flags) == greedy
    for flags in (
        ["--repeat-penalty", "3"],
        ["--presence-penalty", "5"],
        ["--frequency-penalty", "5"],
        ["--top-k", "3"],
    ):
        assert generate(run, tiny, *base, "-t", "1", *flags) != plain


def test_control_characters_are_escaped_on_a_terminal_and_nowhere_else(run, terminal, hostile):
    """The same text through a pipe, where the bytes stay what they are."""
    arguments = ["-m", hostile, "ab", "-n", "500", "-t", "3", "--top-p", "1", "--seed", "1"]
    plain = generate(run, hostile, *arguments[2:]) + b"\n"
    assert len({c for c in plain.decode() if is_hostile(c)}) > 40
    assert re.search("<.\u009b.>", plain.decode())  # a character in two tokens
    assert terminal("generate", *arguments).end() == on_terminal(plain)


def test_a_prompt_with_control_characters_is_escaped_on_a_terminal(run, terminal, tiny, tmp_path):
    prompt = b"a\x1b[31m\r\n\tb \xc2\x9b c \xff\xc2 \xe2\x80\xae " + "caf\u00e9 \u05d0\u200f".encode()
    plain = generate(run, tiny, "-", "-n", "3", "-t", "0", input=prompt) + b"\n"
    assert plain.startswith(prompt)
    (tmp_path / "prompt").write_bytes(prompt)
    shell = terminal("generate", "-m", tiny, prompt, "-n", "3", "-t", "0")
    assert shell.end() == on_terminal(plain)


def test_text_of_a_prompt_longer_than_a_part_is_escaped_as_a_whole(run, terminal, tiny):
    prompt = "\u00e9".join("x" * (n % 7) for n in range(80)) + "\U0001f600\u0085" * 60
    arguments = ["generate", "-m", tiny, prompt, "-n", "1", "-t", "0", "--context", "1000"]
    assert terminal(*arguments).end() == on_terminal(run(*arguments)[0])


@pytest.mark.parametrize(
    "command",
    [["info"], ["next", "ab", "-n", "259"], ["tokenize", "\x1b \u009b \u202e \r"], ["bench"]],
    ids=lambda x: x[0],
)
def test_nothing_of_a_model_reaches_a_terminal_raw(terminal, hostile, tmp_path, command):
    path, name = tmp_path / "named.llm", b"".join(ATTACKS + HOSTILE) + b"\xff\xc2"
    data = tiny_model(more={lib.LLM_NAME: name, lib.LLM_ABOUT: name, lib.LLM_CHAT_WHY: name}, context=4096)
    path.write_bytes(data)
    bench = ["--prompt-tokens", "4", "-n", "2", "--repeat", "1"] if command == ["bench"] else []
    for model in (hostile, str(path)):
        out = terminal(*command, "-m", model, *bench).end().decode()
        assert len(out) > 50 and not [c for c in out.replace("\r\n", "") if is_hostile(c)]


def test_errors_name_files_and_texts_without_raw_control_characters(run, tmp_path):
    nasty = "".join(a.decode() for a in ATTACKS)
    path = tmp_path / "why.llm"
    path.write_bytes(tiny_model(None, {lib.LLM_CHAT_WHY: nasty.encode()}))
    for arguments, rc in (
        (["info", "-m", f"/nonexistent/{nasty}"], 1),
        (["perplexity", f"/nonexistent/{nasty}"], 1),
        (["chat", "-m", str(path)], 1),
        (["generate", "--seed", nasty], 2),
        (["generate", f"--{nasty}"], 2),
        (["generate", "a", nasty], 2),
        ([nasty], 2),
    ):
        err = run(*arguments, rc=rc)[1]
        assert on_terminal(nasty.encode()) in err and err.count(b"\n") == 1
        assert not [c for c in err[:-1].decode() if is_hostile(c)]


def read_some(process, n: int) -> bytes:
    """n bytes of the process's output, or what there is when it ends."""
    data = b""
    while len(data) < n and (more := process.stdout.read1(n - len(data))):
        data += more
    return data


@pytest.fixture
def endless(tmp_path) -> list[str]:
    """Arguments with which generate does not end by itself for minutes."""
    path = tmp_path / "endless.llm"
    path.write_bytes(tiny_model(more={lib.LLM_STOP: b""}, eos=NONE, n_layers=1))
    return ["-m", str(path), "--context", "200000", "--seed", "1"]


def finish(process, seconds: float = 30) -> tuple[bytes, bytes]:
    """Waits for a process, and ends it if it does not end."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        return process.communicate()
    finally:
        timer.cancel()


def test_ctrl_c_ends_generate_with_a_newline_and_130(pyllm_binary, endless):
    process = start(pyllm_binary, "generate", *endless, "ab")
    assert read_some(process, 20).startswith(b"ab")
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert process.returncode == 130
    assert out.endswith(b"\n") and err == b""


def test_a_closed_pipe_ends_generate_quietly(pyllm_binary, endless):
    process = start(pyllm_binary, "generate", *endless, "ab")
    read_some(process, 20)
    process.stdout.close()
    process.stdin.close()
    timer = threading.Timer(30, process.kill)
    timer.start()
    err = process.stderr.read()
    assert process.wait() in (-signal.SIGPIPE, 1)
    timer.cancel()
    assert err == b""


def test_a_closed_pipe_is_quiet_where_sigpipe_is_ignored(pyllm_binary, endless):
    command = [pyllm_binary, "generate", *endless, "ab"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
        restore_signals=False,
    )
    read_some(process, 20)
    process.stdout.close()
    timer = threading.Timer(30, process.kill)
    timer.start()
    err = process.stderr.read()
    timer.cancel()
    assert (process.wait(), err) == (1, b"")


WRITING = {
    "generate": ["generate", "-n", "5", "ab"],
    "chat": ["chat", "-n", "5"],
    "next": ["next", "ab"],
    "tokenize": ["tokenize", "x" * 20_000],  # more than stdio's buffer
    "info": ["info"],
    "--help": ["--help"],
    "generate --help": ["generate", "--help"],
    "--version": ["--version"],
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_output_that_cannot_be_written_is_an_error_that_says_why(pyllm_binary, tiny, command, where):
    if where != "closed" and not os.path.exists(where):
        pytest.skip("needs /dev/full")
    arguments = WRITING[command] + ([] if command.startswith("-") else ["-m", tiny])
    to = ">&-" if where == "closed" else f">{where}"
    shell = ["sh", "-c", f'exec "$@" {to}', "sh", pyllm_binary, *arguments]
    done = subprocess.run(shell, input=b"Hello\nHello\n", stderr=subprocess.PIPE)
    why = os.strerror(errno.EBADF if where == "closed" else errno.ENOSPC)
    assert (done.returncode, done.stderr.decode()) == (1, f"pyllm: cannot write to standard output: {why}\n")


READING = {
    "generate": ["generate", "-"],
    "next": ["next", "-"],
    "tokenize": ["tokenize", "-"],
    "perplexity": ["perplexity", "-"],
    "chat": ["chat"],
}


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("source", ["directory", "closed", "write-only"])
def test_input_that_cannot_be_read_is_an_error_that_says_why(pyllm_binary, tiny, tmp_path, command, source):
    redirect = {
        "directory": f"<'{tmp_path}'",
        "closed": "<&-",
        "write-only": f"0>'{tmp_path}/file'",
    }[source]
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh", pyllm_binary, *READING[command], "-m", tiny]
    done = subprocess.run(shell, capture_output=True, timeout=120)
    why = os.strerror(errno.EISDIR if source == "directory" else errno.EBADF)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"pyllm: standard input: {why}\n"


# ----------------------------------------------------------------------------------------------------------
# next


ROW = re.compile(r'^"(.*)" +(\d+\.\d\d) % ([\u2588-\u258f]*)$')


def next_rows(out: bytes) -> list[tuple[str, float, str]]:
    rows = [ROW.match(line) for line in out.decode().split("\n")[:-1]]
    assert all(rows)
    return [(row[1], float(row[2]), row[3]) for row in rows]


def test_next_shows_the_probabilities_of_the_model(run, tiny):
    out, err = run("next", "-m", tiny, "The cat sat on a", "-n", "259")
    rows, model = next_rows(out), Model(tiny)
    p = np.exp(log_softmax(model.logits(model.encode(b"The cat sat on a", lib.LLM_SPECIAL))[-1]))
    assert err == b"" and len(rows) == 259
    assert sum(row[1] for row in rows) == pytest.approx(100, abs=259 * 0.005)
    np.testing.assert_allclose([row[1] for row in rows], np.sort(p)[::-1] * 100, atol=0.0051)
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)


def test_next_shows_ten_by_default_with_bars_scaled_to_the_first(run, tiny):
    rows = next_rows(run("next", "-m", tiny, "The cat sat on a")[0])
    assert len(rows) == 10
    assert rows[0][2] == "\u2588" * 40
    for _, percent, bar in rows:
        eighths = sum(8 - (ord(c) - 0x2588) for c in bar)
        assert eighths == pytest.approx(320 * percent / rows[0][1], abs=1 + 320 * 0.01 / rows[0][1])


def test_next_makes_every_token_visible(run, tiny):
    texts = {row[0] for row in next_rows(run("next", "-m", tiny, "x", "-n", "1000")[0])}
    assert {"\\n", "\\t", "\\x00", "\\x1b", '\\"', "\\\\", " ", "a", "<|im_end|>", "\\xc3", "\\xf0"} <= texts


# ----------------------------------------------------------------------------------------------------------
# info


def info(run, *arguments) -> dict[str, str]:
    out, err = run("info", *arguments)
    assert err == b""
    lines: dict[str, str] = {}
    name = ""
    for line in out.decode().splitlines():
        name = line[:18].strip() or name
        lines[name] = lines[name] + "\n" + line[18:] if name in lines else line[18:]
    return lines


def test_info_agrees_with_the_header(run, tiny):
    lines, model = info(run, "-m", tiny), Model(tiny)
    h = model.header  # as long as the model is open
    assert lines["name"] == "Tiny"
    assert (
        lines["about"] == "family: test\nlicence: \\x1b[31mnone"
    )  # nothing in a file reaches the terminal raw
    assert lines["file"].startswith(f"{os.path.getsize(tiny)} bytes (")
    assert lines["weights"].startswith("int8, with an fp16 scale for every 64; ")
    per_layer = 2 * h.dim + (4 + 2 * 2) * 16 * h.dim + h.dim * 64 + 3 * h.dim * model.layers[0].ffn_dim
    assert lines["parameters"] == str(2 * h.vocab_size * h.dim + h.dim + h.n_layers * per_layer)
    assert lines["shape"] == "2 layers, width 64, feed-forward 128"
    assert lines["attention"] == "4 heads of 16, 2 for keys and values"
    assert lines["vocabulary"] == "259" and lines["context"] == "128"
    assert lines["BOS"] == '256 "<s>"' and lines["EOS"] == lines["ends a text"] == '258 "<|im_end|>"'
    assert lines["chat"] == "yes"
    assert lines["variant"] == "output of its own"
    assert lines["keys and values"] == "256 bytes a token, 32.0 KiB at a context of 128"
    assert info(run, "-m", tiny, "--context", "4096")["keys and values"].endswith(
        "1.0 MiB at a context of 4096"
    )
    assert info(run, "-m", tiny, "--threads", "3")["runs with"].endswith(", 3 threads")


def test_info_counts_experts(run, tmp_path):
    path = tmp_path / "experts.llm"
    path.write_bytes(make_model(n_experts=8, n_active=2, n_layers=3))
    lines = info(run, "-m", str(path))
    expert = 3 * 64 * 128
    every = 2 * 96 * 64 + 64 + 3 * (2 * 64 + 8 * 16 * 64 + 64 * 64 + 8 * 64)
    assert lines["parameters"] == f"{every + 3 * 8 * expert}, {every + 3 * 2 * expert} of them for each token"
    assert lines["shape"] == "3 layers, width 64, feed-forward 128 in 8 experts, 2 for each token"


def test_info_tells_of_latents(run, tmp_path):
    """What is kept of a position is the latent, for keys and for values; and the sizes in other precisions
    are those of files with the matrices of heads."""
    kind = dict(n_heads=3, n_kv_heads=1, head_dim=24, n_layers=1)
    kind["extra"] = dict(latent_dim=40, turn_dim=8, q_rank=20, value_dim=12, latent_eps=1e-6)
    files = {name: tmp_path / name for name in ("fp16", "int8")}
    for name, dtype in (("fp16", FP16), ("int8", INT8R)):
        files[name].write_bytes(make_model(dtype=dtype, **kind))
    lines = info(run, "-m", str(files["fp16"]))
    assert lines["attention"] == (
        "3 heads of 24, a latent of 40 and 8 that turn for keys and values of 12, queries of rank 20"
    )
    assert lines["keys and values"].startswith("192 bytes a token")  # 40 + 8, and 40 padded to 48, in fp16
    assert f"{files['int8'].stat().st_size} bytes" in lines["weights"]
    assert lines["weights"].startswith("fp16; ")


def test_info_names_the_size_in_the_other_precisions(run, tmp_path):
    """Of the same model and texts, to the byte; int4 files have an embedding, an output and the first layers'
    down projections of int8r."""
    files, once = {}, {"embed": INT8R, "output": INT8R}
    first = [dict(dtypes={**once, "down": INT8R})] * 2  # of 25 layers
    for name, dtype, others in (("fp16", FP16, {}), ("int8", INT8R, {}), ("int4", INT4, once)):
        files[name] = tmp_path / name
        kind = dict(dim=40, ffn_dim=30, n_layers=25, layers=first if name == "int4" else ())
        data = make_model(dtype=dtype, dtypes=others, sections={lib.LLM_NAME: b"x"}, **kind)
        files[name].write_bytes(data)
    begins = {
        "fp16": "fp16; ",
        "int8": "int8r, with an fp16 scale for every 64; ",
        "int4": "int8r and int4, with an fp16 scale for every 64 or 32; ",
    }
    for name in files:
        weights = info(run, "-m", str(files[name]))["weights"]
        assert weights.startswith(begins[name])
        sizes = re.findall(r"(\d+) bytes \([^)]*\) as (\w+)", weights)
        assert sizes == [(str(files[x].stat().st_size), x) for x in files if x != name]
    files["int4"].write_bytes(make_model(dtype=INT4))
    weights = info(run, "-m", str(files["int4"]))["weights"]
    assert weights.startswith("int4, with an fp16 scale for every 32; ")


def test_info_names_what_a_model_computes_otherwise(run, tmp_path):
    path = tmp_path / "gemma.llm"
    flags = TIED | QKV_BIAS | QK_NORM | POST_NORM
    numbers = dict(activation=GELU, attn_cap=50.0, logit_cap=30.0, embed_scale=8.0)
    path.write_bytes(make_model(flags=flags, n_layers=4, windows=[0, 32], **numbers))
    lines = info(run, "-m", str(path))
    assert lines["variant"] == (
        "output tied to the embedding, bias on q, k and v, norm on q and k, norm after a block, GELU, "
        "scores up to 50, logits up to 30, embedding times 8"
    )
    assert lines["attention"] == "4 heads of 16, 2 for keys and values, in 2 layers over 32 positions at most"
    weights, all_read = (float(x) for x in re.findall(r"([\d.]+) KiB", lines["decode reads"]))
    assert all_read - weights == pytest.approx((2 * 128 + 2 * 32) * 128 / 1024, abs=0.2)
    flags = ROUTER_SIGMOID | ROUTER_BIAS | SHARED_GATE
    path.write_bytes(make_model(flags=flags, n_experts=4, n_active=2, shared_dim=72, expert_scale=2.5))
    lines = info(run, "-m", str(path))
    assert lines["variant"] == (
        "output of its own, experts by sigmoid, bias on their choice, gate on the shared expert, "
        "experts times 2.5"
    )
    assert lines["shape"].endswith("feed-forward 128 in 4 experts, 2 for each token and a shared one of 72")


def test_info_names_what_differs_between_layers(run, tmp_path):
    path = tmp_path / "sinks.llm"
    flags = lib.LLM_SINK | lib.LLM_FFN_BIAS | lib.LLM_ROUTER_LOGIT_BIAS | lib.LLM_ATTN_OUT_BIAS
    gates = lib.LLM_OUT_GATE | lib.LLM_OUT_GATE_HEAD | lib.LLM_OUT_GATE_SOFTPLUS
    late = lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE
    layers = [
        {"n_heads": 4, "value_dim": 12, "gate_limit": 7.0, "gate_slope": 1.702, "up_shift": 1.0},
        {
            "n_heads": 6,
            "value_dim": 12,
            "n_groups": 2,
            "n_active_groups": 1,
            "query_growth": 0.5,
            "query_span": 8,
        },
    ]
    numbers = dict(n_experts=4, n_active=2, windows=[8, 0], layers=layers)
    path.write_bytes(make_model(flags=flags | gates | late, **numbers))
    lines = info(run, "-m", str(path))
    assert lines["variant"] == (
        "output of its own, norm on q and k, bias on the router, bias in feed-forward blocks, "
        "bias on attention's output, sinks, after the rotation, gate on attention's output, for each head, "
        "by softplus, gates up to 7, their slope 1.702, up plus 1, queries growing by 0.5"
    )
    assert lines["attention"] == (
        "4 heads of 16, 2 for keys and values of 12 in 1 layers; 6 heads of 16, 2 for keys and values of 12 "
        "in 1 layers, in 1 layers over 8 positions at most"
    )
    assert "2 for each token from 1 of 2 groups in 1 layers" in lines["shape"]
    path.write_bytes(
        make_model(flags=lib.LLM_CHUNKED | lib.LLM_EXPERT_INPUT, n_experts=4, n_active=2, windows=[8])
    )
    variant = info(run, "-m", str(path))["variant"]
    assert variant == "output of its own, experts' inputs weighted, chunks instead of windows"


def test_info_names_embeddings_by_layer_and_counts_one_row_of_them(run, tmp_path):
    path = tmp_path / "ple.llm"
    shared = [{}, {}, dict(kv_layer=0)]
    flags = TIED | V_NORM | V_IS_K | LAYER_SCALED
    kind = dict(n_layers=3, ple_dim=32, ple_scale=4.0, flags=flags, layers=shared)
    path.write_bytes(make_model(**kind))
    lines = info(run, "-m", str(path))
    assert lines["variant"] == (
        "output tied to the embedding, norm on v, values that are keys, a scale for each layer, "
        "embeddings of 32 for each layer"
    )
    assert lines["features"] == "tied, v_norm, v_is_k, layer_scaled"
    assert lines["attention"] == "4 heads of 16, 2 for keys and values, in 1 layers with those of another"
    layer = 2 * 64 * 64 + 64 * 128 * 3 + 2 * 64 + 2 * 32 * 64 + 64 + 1
    once = 96 * 64 + 64 + 96 * 96 + 96 * 64 + 32
    assert lines["parameters"] == str(once + 3 * layer + 2 * 32 * 64)
    small = re.findall(r"(\d+) bytes \([^)]*\) as int8", lines["weights"])
    path.write_bytes(make_model(dtype=INT8R, **kind))
    assert small == [str(path.stat().st_size)]
    kind = dict(n_streams=3, ple_dim=32, ple_scale=4.0, extra=dict(low_rank=8))
    path.write_bytes(make_model(**kind))
    lines = info(run, "-m", str(path))
    assert lines["variant"] == "output of its own, 3 residual streams, embeddings of 32 for each layer"
    assert re.findall(r"(\d+) bytes \([^)]*\) as int8", lines["weights"]) == [
        str(len(make_model(dtype=INT8R, **kind)))
    ]


def test_info_verifies_checksums_when_asked_to(run, tmp_path):
    path = tmp_path / "sound.llm"
    path.write_bytes(make_model(checksums=True))
    assert info(run, "-m", str(path))["checksums"] == "there, see --verify"
    assert info(run, "-m", str(path), "--verify")["checksums"] == "right"
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1  # of the last tensor; behind it are 64 zeros
    path.write_bytes(damaged)
    out, err = run("info", "-m", str(path), "--verify", rc=1)
    assert out == b"" and err.startswith(f"pyllm: {path}: ".encode()) and err.count(b"\n") == 1
    path.write_bytes(make_model())
    assert info(run, "-m", str(path))["checksums"] == "none"
    assert b"no checksums" in run("info", "-m", str(path), "--verify", rc=1)[1]


def test_info_measures_speed_when_asked_to(run, tiny):
    """Bandwidth / bytes for a token, rounded as they are printed."""
    lines = info(run, "-m", tiny, "--speed", "--threads", "1")
    assert "decode" not in info(run, "-m", tiny)
    bandwidth = float(lines["read bandwidth"].removesuffix(" GB/s")) * 1e9
    assert float(lines["memory"].split()[0]) == pytest.approx(os.path.getsize(tiny) / 1024 + 32, abs=0.1)
    first, last = (float(x) * 1024 for x in re.findall(r"([\d.]+) KiB", lines["decode reads"]))
    assert last - first == pytest.approx(32 << 10, abs=110)
    rates = re.fullmatch(r"at most ([\d.]+) tokens/s, ([\d.]+) at the end of that context", lines["decode"])
    assert float(rates[1]) == pytest.approx(bandwidth / first, rel=0.01)
    assert float(rates[2]) == pytest.approx(bandwidth / last, rel=0.01)


def test_info_counts_what_is_kept(run, tmp_path):
    path = tmp_path / "windows.llm"
    path.write_bytes(tiny_model(CHATML, context=8000, windows=(20, 0)))
    out, _ = run("info", "-m", str(path))
    (a_token,) = re.findall(rb"keys and values +(\d+) bytes a token, ", out)
    all_layers = int(a_token) * 8000
    (kept,) = re.findall(rb"a token, ([\d.]+) MiB at a context of 8000", out)
    first = (8000 - lib.LLM_REWIND - 256 - 19) // 64 * 64  # that the layer with a window keeps
    assert float(kept) == pytest.approx((all_layers - first * int(a_token) / 2) / (1 << 20), abs=0.06)


def test_info_says_why_a_model_cannot_chat(run, tmp_path):
    path = tmp_path / "nochat.llm"
    path.write_bytes(
        tiny_model(None, {lib.LLM_CHAT_TEMPLATE: b"{{ x }}", lib.LLM_CHAT_WHY: b"it calls tools"})
    )
    assert info(run, "-m", str(path))["chat"] == "only from Python\nit calls tools"
    out, err = run("chat", "-m", str(path), rc=1)
    assert out == b"" and err == b"pyllm: this model cannot chat here: it calls tools\n"
    path.write_bytes(tiny_model(None))
    assert info(run, "-m", str(path))["chat"] == "no"
    assert b"no chat template" in run("chat", "-m", str(path), rc=1)[1]


# ----------------------------------------------------------------------------------------------------------
# tokenize


def test_tokenize_prints_ids_and_pieces(run, tiny):
    out, err = run("tokenize", "-m", tiny, 'a "b\n')
    assert err == b""
    assert out.decode().splitlines() == [
        '    256  "<s>"',
        '     97  "a"',
        '     32  " "',
        '     34  "\\""',
        '     98  "b"',
        '     10  "\\n"',
    ]


def test_tokenize_ids_are_those_of_the_bindings(run, tiny):
    text, model = "<|im_start|>user caf\u00e9<|im_end|>", Model(tiny)
    for flags, bits in [
        ([], lib.LLM_SPECIAL),
        (["--no-special"], 0),
        (["--no-bos"], lib.LLM_SPECIAL | lib.LLM_NO_BOS),
    ]:
        out = run("tokenize", "-m", tiny, text, "--ids", *flags)[0]
        assert list(map(int, out.split())) == model.encode(text.encode(), bits)
        assert out.count(b"\n") == 1


def test_tokenize_reads_stdin_as_it_is(run, tiny):
    out = run("tokenize", "-m", tiny, "-", "--ids", "--no-bos", input=b"a\0b\n\n")[0]
    assert out == b"97 0 98 10 10\n"
    assert run("tokenize", "-m", tiny, "-", "--ids", "--no-bos", input=b"")[0] == b"\n"
    long = b"0123456789" * 50_000
    assert len(run("tokenize", "-m", tiny, "-", "--ids", input=long)[0].split()) == len(long) + 1


# ----------------------------------------------------------------------------------------------------------
# perplexity


def expected_losses(path: str, text: bytes, context: int, stride: int, bos: int | None) -> np.ndarray:
    """Of every token the loss in the first window that has it, window by window with the bindings."""
    model = Model(path, context)
    tokens, first = model.encode(text, lib.LLM_SPECIAL | lib.LLM_NO_BOS), [] if bos is None else [bos]
    losses: dict[int, float] = {}
    for at in range(0, len(tokens), stride):
        window = first + tokens[at : at + context - len(first)]
        logprobs = log_softmax(model.logits(window))
        for i in range(1, len(window)):
            losses.setdefault(at + i - len(first), -logprobs[i - 1, window[i]])
        if at + context - len(first) >= len(tokens):
            break
    assert sorted(losses) == list(range(1 - len(first), len(tokens)))
    return np.array(list(losses.values()))


@pytest.mark.parametrize(
    "bos, length, context, stride",
    [
        (1, 100, 128, None),
        (1, 127, 128, None),
        (1, 128, 128, None),
        (1, 1000, 64, None),
        (1, 300, 32, 31),
        (1, 300, 32, 1),
        (1, 300, 32, 1000),
        (0, 100, 128, None),
        (0, 129, 128, None),
        (0, 500, 50, 20),
        (0, 300, 32, 1000),
        (1, 1, 2, None),
        (0, 20, 2, None),
        (1, 20, 2, 5),
    ],
)
def test_perplexity_is_that_of_the_bindings(run, tmp_path, bos, length, context, stride):
    model, text = tmp_path / "m.llm", tmp_path / "text"
    model.write_bytes(tiny_model(flags=lib.LLM_ADD_BOS if bos else 0))
    text.write_bytes((b"The quick brown fox jumps over the lazy dog. " * 30)[:length])
    flags = ["--context", str(context)] + (["--stride", str(stride)] if stride else [])
    out, err = run("perplexity", "-m", str(model), str(text), *flags)
    assert err == b""
    room = context - bos
    step = min(stride or (room + 1) // 2, room - (not bos))
    losses = expected_losses(str(model), text.read_bytes(), context, step, BOS if bos else None)
    mean, error = losses.mean(), losses.std() / math.sqrt(max(1, len(losses) - 1))
    lines = out.decode().splitlines()
    assert lines[0] == f"tokens      {length} ({len(losses)} predicted)"
    numbers = [float(x) for line in lines[1:] for x in re.findall(r"\d+\.\d+", line)]
    # printed with 5 and 4 decimals; the log-probabilities are float32. Another order of sums can turn the
    # rounding of a key to fp16 (2^-11), which in a model of random weights moves one of them by some 1e-4.
    # So can a build that does not fuse multiplications with additions (-O1, for the sanitizers).
    bound = 1e-3 if EMULATED else 1e-4 if "PYLLM_BINARY" in os.environ else 2e-5
    np.testing.assert_allclose(numbers[:2], [mean, error], atol=bound)
    np.testing.assert_allclose(numbers[2:], [math.exp(mean), math.exp(mean) * error], rtol=bound, atol=1e-4)


def test_perplexity_begins_every_window_with_all_that_goes_before_a_text(run, tmp_path):
    """As with GLM-4's two tokens; an EOS that is the BOS too begins none."""
    first, text = [IM_START, BOS], b"The quick brown fox jumps. " * 4
    around = struct.pack("<4I", 2, 0, *first)
    path = tmp_path / "m.llm"
    path.write_bytes(tiny_model(more={lib.LLM_AROUND: around}))
    model = Model(str(path), 128)
    tokens = model.encode(text, lib.LLM_SPECIAL | lib.LLM_NO_BOS)
    assert model.encode(text, lib.LLM_SPECIAL) == first + tokens
    logprobs = log_softmax(model.logits(first + tokens))
    losses = [-logprobs[i + 1, token] for i, token in enumerate(tokens)]
    out, _ = run("perplexity", "-m", str(path), "-", "--context", "128", input=text)
    assert f"tokens      {len(text)} ({len(text)} predicted)" in out.decode()
    assert abs(float(re.search(r"loss +(\S+)", out.decode())[1]) - np.mean(losses)) < 1e-3
    few = run("perplexity", "-m", str(path), "-", "--context", "2", input=text, rc=1)[1]
    assert b"none to predict" in few
    path.write_bytes(tiny_model(flags=lib.LLM_ADD_EOS, eos=BOS))
    out, _ = run("perplexity", "-m", str(path), "-", "--context", "128", input=text)
    assert f"({len(text) - 1} predicted)" in out.decode()


def test_perplexity_reads_stdin_and_rejects_what_it_cannot_measure(run, tiny, tmp_path):
    out, _ = run("perplexity", "-m", tiny, "-", input=b"hello there")
    assert out.startswith(b"tokens      11 (11 predicted)\n")
    assert b"0 tokens" in run("perplexity", "-m", tiny, "-", rc=1)[1]
    assert b"none to predict" in run("perplexity", "-m", tiny, "-", "--context", "1", input=b"abc", rc=1)[1]
    assert b"/nonexistent" in run("perplexity", "-m", tiny, "/nonexistent", rc=1)[1]
    assert run("perplexity", "-m", tiny, str(tmp_path), rc=1)[1].startswith(b"pyllm: ")


def test_perplexity_reports_progress_when_asked(run, tiny):
    _, err = run("perplexity", "-m", tiny, "-", "-v", "--context", "64", input=b"hello there " * 20)
    assert b"240 of 240 tokens, perplexity" in err


# ----------------------------------------------------------------------------------------------------------
# bench


def test_bench_prints_what_it_measured(run, tiny):
    out, err = run("bench", "-m", tiny, "--prompt-tokens", "16", "-n", "4", "--repeat", "2", "--threads", "2")
    assert err == b""
    patterns = [
        r"model             Tiny",
        r"runs with         \w+, 2 threads; medians of 2",
        r"prefill           \d+\.\d tokens/s \(16 tokens\)",
        r"decode            \d+\.\d tokens/s \(4 tokens after those\)",
        r"decode reads      \d+\.\d KiB of weights a token",
        r"read bandwidth    \d+\.\d\d GB/s \(256\.0 MiB\)",
        r"decode reaches    \d+ % of that",
    ]
    lines = out.decode().splitlines()
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line)


# ----------------------------------------------------------------------------------------------------------
# chat


@pytest.fixture(scope="session")
def chatty(tmp_path_factory) -> str:
    """The path of tiny_model() with room for a conversation."""
    path = tmp_path_factory.mktemp("chat") / "chatty.llm"
    path.write_bytes(tiny_model(context=1024))
    return str(path)


def expected_chat(path: str, parts: list[str], system: str | None, users: list[str], n: int = 6) -> bytes:
    """What the command should print: each reply from the whole conversation rendered and run anew."""
    model, text, out = Model(path), parts[0] + system + parts[1] if system is not None else parts[2], b""
    data = text.encode()
    for user in users:
        data += (user + parts[3]).encode()
        tokens = model.encode(data, lib.LLM_SPECIAL | lib.LLM_NO_BOS)
        reply = model.decode(model.greedy(tokens, n), tokens)
        out += reply + b"\n"
        data += reply + parts[4].encode()
    return out


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_replies_as_the_whole_conversation_says(run, chatty, system):
    users = ["Hello", "And then?", "caf\u00e9 \U0001f600"]
    flags = ["--system", system] if system else []
    out, err = run("chat", "-m", chatty, "-t", "0", "-n", "6", *flags, input="\n".join(users).encode())
    assert err == b""  # no prompt, since standard input is no terminal; the last line needs no newline
    assert out == expected_chat(chatty, CHATML, system, users)


def test_chat_runs_only_what_is_new(run, chatty):
    _, err = run("chat", "-m", chatty, "-t", "0", "-n", "6", "-v", input=b"Hello\nAnd then?\n")
    (n1, ran1), (n2, ran2) = re.findall(rb"prompt of (\d+) tokens, (\d+) of them run", err)
    assert int(ran1) == int(n1)
    # What comes after the first prompt: the reply (which, if it is no whole UTF-8, is encoded otherwise than
    # it was generated), the end of its turn, the new message and the beginning of the next reply.
    assert int(ran2) <= int(n2) - int(n1)


def test_chat_reset_forgets_and_exit_leaves(run, chatty):
    out, err = run(
        "chat", "-m", chatty, "-t", "0", "-n", "6", input=b"Hello\n/reset\nHello\n\n/exit\nHello\n"
    )
    assert err == b""
    assert out == expected_chat(chatty, CHATML, None, ["Hello"]) * 2


def test_a_chat_that_begins_again_after_a_long_one_answers_as_a_new_one(run, tmp_path):
    path = tmp_path / "windows.llm"
    path.write_bytes(tiny_model(CHATML, context=8000, windows=(20, 0)))
    long = b"x" * 5500
    out, err = run("chat", "-m", str(path), "-t", "0", "-n", "6", "-v", input=long + b"\n/reset\nHello\n")
    assert out.endswith(expected_chat(str(path), CHATML, None, ["Hello"]))
    (n1, ran1), (n2, ran2) = re.findall(rb"prompt of (\d+) tokens, (\d+) of them run", err)
    assert int(n1) > 5500 and n2 == ran2


def test_chat_help_goes_to_stderr(run, chatty):
    out, err = run("chat", "-m", chatty, input=b"/help\n")
    assert out == b"" and all(word in err for word in (b"/reset", b"/exit", b"/help", b"Ctrl-C"))


def test_chat_backslash_continues_a_message(run, chatty):
    out, _ = run("chat", "-m", chatty, "-t", "0", "-n", "6", input=b"one\\\ntwo\\\nthree\n")
    assert out == expected_chat(chatty, CHATML, None, ["one\ntwo\nthree"])


def test_chat_trims_where_the_template_does(run, tmp_path):
    path = tmp_path / "trim.llm"
    path.write_bytes(tiny_model([*CHATML[:5], "trim"], context=1024))
    out, _ = run("chat", "-m", str(path), "-t", "0", "-n", "6", input=b" \t Hello  \n")
    assert out == expected_chat(str(path), CHATML, None, ["Hello"])


@pytest.mark.parametrize(
    ("pattern", "date"),
    [
        ("|%d %b %Y| and |%-d/%m|", lambda now: f"{now:%d %b %Y} and {now.day}/{now:%m}"),
        ("|no date||100 %%|||", lambda now: "no date100 %"),
        ("|%Q||%||%-||%99d||" + "%d" * 40 + "|", lambda now: ""),  # such as no converter writes
        ("a |%d", lambda now: "a \1%d"),
    ],
)
def test_chat_writes_the_date_where_the_parts_have_its_pattern(run, tmp_path, pattern, date):
    path, start = tmp_path / "dated.llm", pattern.replace("|", "\1") + CHATML[2]
    path.write_bytes(tiny_model([*CHATML[:2], start, *CHATML[3:]], context=1024))
    out, _ = run("chat", "-m", str(path), "-t", "0", "-n", "6", input=b"Hello\nAnd then?")
    parts = [*CHATML[:2], date(datetime.now()) + CHATML[2], *CHATML[3:]]
    assert out == expected_chat(str(path), parts, None, ["Hello", "And then?"])


def test_chat_system_needs_a_template_with_one(run, tmp_path):
    path = tmp_path / "nosystem.llm"
    path.write_bytes(tiny_model(["", "", *CHATML[2:]]))
    out, err = run("chat", "-m", str(path), "--system", "Be brief.", rc=1)
    assert out == b"" and b"--system" in err
    assert run("chat", "-m", str(path), input=b"Hello\n", rc=0)[0]


@pytest.mark.parametrize("broken", [b"", b"\0", b"a\0b\0c\0d\0e\0", b"no end", b"a\0b\0c\0d\0e\0\0no end"])
def test_chat_rejects_a_broken_template(run, tmp_path, broken):
    path = tmp_path / "broken.llm"
    path.write_bytes(tiny_model(None, {lib.LLM_CHAT_PARTS: broken}))
    out, err = run("chat", "-m", str(path), input=b"Hello\n", rc=1)
    assert out == b"" and b"template" in err


def test_chat_forgets_the_oldest_turns_when_the_context_is_full(run, tiny):
    users = ["a" * 60, "b" * 60, "c" * 60]  # two turns of these do not fit
    out, err = run("chat", "-m", tiny, "-t", "0", "-n", "6", input="\n".join(users).encode())
    assert b"pyllm: the context of 128 is full; the oldest turns (" in err
    assert out.endswith(expected_chat(tiny, CHATML, None, users[2:]))


def test_chat_refuses_a_message_that_cannot_fit_and_goes_on(run, tiny):
    out, err = run("chat", "-m", tiny, "-t", "0", "-n", "6", input=b"x" * 500 + b"\nHello\n")
    assert b"more than the context of 128; it was not sent" in err
    assert out == expected_chat(tiny, CHATML, None, ["Hello"])


def test_chat_stop_text_ends_a_reply(run, chatty):
    reply = expected_chat(chatty, CHATML, None, ["Hello"]).decode()[:-1]
    out, _ = run("chat", "-m", chatty, "-t", "0", "-n", "6", "--stop", reply[2:4], input=b"Hello\n")
    assert out.decode() == reply[: reply.index(reply[2:4])] + "\n"


def test_chat_is_the_same_with_the_same_seed(run, chatty):
    given = b"Hello\nAnd then?\n"
    one, two, three = (run("chat", "-m", chatty, "-n", "20", "--seed", s, input=given)[0] for s in "112")
    assert one == two != three


def test_chat_on_a_terminal_shows_prompts_on_stderr(pyllm_binary, chatty):
    main, terminal = os.openpty()
    process = subprocess.Popen(
        [pyllm_binary, "chat", "-m", chatty, "-t", "0", "-n", "6"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(main, b"one\\\ntwo\n\x04")  # Ctrl-D
    out, err = finish(process)
    os.close(main)
    os.close(terminal)
    assert process.returncode == 0
    assert out == expected_chat(chatty, CHATML, None, ["one\ntwo"])
    assert err == b"> . > \n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_chat_reads_lines_with_either_line_end(run, chatty, end):
    given = [b"one\\", b"two", b"/reset", b"Hello", b"/exit", b"never"]
    out, err = run("chat", "-m", chatty, "-t", "0", "-n", "6", input=end.join(given))
    assert err == b""
    assert out == expected_chat(chatty, CHATML, None, ["one\ntwo"]) + expected_chat(
        chatty, CHATML, None, ["Hello"]
    )
    last = end.join([b"Hello", b"/exit" + end.replace(b"\n", b"")])  # without a newline
    assert run("chat", "-m", chatty, "-t", "0", "-n", "6", input=last)[0] == expected_chat(
        chatty, CHATML, None, ["Hello"]
    )


def test_chat_takes_any_bytes_and_lengths(run, chatty):
    for user in ("nul \0 inside", "carriage \r return", "\\ backslash", "x" * 500):
        out, err = run("chat", "-m", chatty, "-t", "0", "-n", "6", input=user.encode())
        assert err == b"" and out == expected_chat(chatty, CHATML, None, [user])
    err = run("chat", "-m", chatty, input=b"x" * 1_000_000)[1]
    assert b"this message makes 1000" in err


def test_chat_ends_where_the_terminal_is_gone(pyllm_binary, chatty):
    main, side = os.openpty()
    process = subprocess.Popen(
        [pyllm_binary, "chat", "-m", chatty], stdin=side, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(side)
    assert process.stderr.read(2) == b"> "
    os.write(main, b"half a line")
    os.close(main)
    assert finish(process)[0] == b""
    assert process.returncode >= 0


class Chat:
    """A chat of temperature 0 in a terminal, with 6 tokens a reply; the replies go into a pipe."""

    def __init__(self, terminal, path: str, *arguments: str, **environment: str):
        self.path = path
        self.out, write = os.pipe()
        self.terminal = terminal(
            "chat", "-m", path, "-t", "0", "-n", "6", *arguments, out=write, **environment
        )
        os.close(write)
        self.terminal.wait_for(b"> ")

    def type(self, data: bytes) -> None:
        self.terminal.send(data)

    def leave(self, data: bytes = b"\x04", rc: int = 0) -> bytes:
        """Types data, Ctrl-D by default, and returns all replies. The terminal is as it was before."""
        self.type(data)
        self.terminal.end()
        assert self.terminal.process.returncode == rc
        assert self.terminal.is_as_before()
        out = b""
        while more := os.read(self.out, 65536):
            out += more
        os.close(self.out)
        return out


def test_a_long_line_typed_at_a_terminal_is_not_cut(terminal, chatty):
    """The kernel's own line editing keeps 4,095 bytes of it."""
    chat = Chat(terminal, chatty)
    for n in (4095, 4096, 20_000):
        text = "caf\u00e9 " * (n // 6)
        data = (CHATML[2] + text + CHATML[3]).encode()
        tokens = len(Model(chatty).encode(data, lib.LLM_SPECIAL | lib.LLM_NO_BOS))
        chat.type(text.encode() + b"\r")
        chat.terminal.wait_for(b"this message makes %d tokens, more than the context of 1024" % tokens)
    assert chat.leave() == b""


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_pasted_text_of_several_lines_is_one_message(terminal, chatty, end):
    chat = Chat(terminal, chatty)
    chat.type(b"See: \x1b[200~" + end.join([b"one", b"/exit", b"", b"\tthr\xc3\xa9\xc3\xa9"]))
    chat.type(b"\x1b[201~ end\r")
    chat.terminal.wait_for(b"> ")
    chat.type(b"\x1b[200~/reset" + end + b"\x1b[201~\r")  # a whole line, with its end
    chat.terminal.wait_for(b"> ")
    chat.type(b"Hello\r")
    expected = expected_chat(chatty, CHATML, None, ["See: one\n/exit\n\n\tthr\u00e9\u00e9 end"])
    assert chat.leave() == expected + expected_chat(chatty, CHATML, None, ["Hello"])


@pytest.mark.parametrize(
    "command, rc", [(["tokenize", "--ids", "--no-bos"], 0), (["next"], 1)], ids=["tokenize", "next"]
)
def test_text_typed_for_a_dash_is_not_cut(run, terminal, tiny, command, rc):
    """`next` says how many tokens it got, which are too many."""
    text = ("caf\u00e9 " * 900 + "\n\t12 lines\n" * 12).encode()
    expected = on_terminal(b"".join(run(*command, "-m", tiny, "-", input=text, rc=rc)))
    session = terminal(*command, "-m", tiny, "-")
    session.wait_for(b"\x1b[?2004h")
    session.send(text.replace(b"\n", b"\r", 1))
    session.send(b"\x04")
    assert session.end().endswith(b"\x1b[?2004l" + expected)
    assert session.is_as_before()


@pytest.mark.parametrize(
    "typed, text",
    [
        (b"ab\rc\x04", b"ab\nc"),
        (b"ab\r\x04", b"ab\n"),
        (b"\x04", b""),
        (b"\x1b[200~a\rb\r\x1b[201~\x04", b"a\nb\n"),
        (b"\x1b[200~a\rb\x1b[201~\x7fc\r\x04", b"a\nc\n"),
    ],
)
def test_ctrl_d_ends_a_text_typed_for_a_dash(terminal, tiny, typed, text):
    session = terminal("tokenize", "--ids", "--no-bos", "-m", tiny, "-")
    session.wait_for(b"\x1b[?2004h")
    session.send(typed)
    session.wait_for(b"\x1b[?2004l")
    assert session.end() == b" ".join(b"%d" % c for c in text) + b"\r\n"


def test_a_long_paste_is_one_message(terminal, chatty):
    chat = Chat(terminal, chatty)
    chat.type(b"\x1b[200~" + b"line\r" * 20_000 + b"\x1b[201~\r")
    chat.terminal.wait_for(b"this message makes 1000")
    assert chat.leave() == b""


@pytest.mark.parametrize(
    "typed, text",
    [
        (b"Hexx\x7f\x08llo", "Hello"),
        ("caf\u00e9\u00e9\x7f \U0001f600\U0001f601\x7f".encode(), "caf\u00e9 \U0001f600"),
        (b"\x7f\x7f\x7fHi", "Hi"),
        (b"never mind\x15Hi", "Hi"),
        (b"one two  \x17three", "one three"),
        (b"a \x1b[A\x1b[D\x1b[1;5C\x1bOP\x1b[3~\x1b[[Ab\x1b", "a b"),
        (b"\x1bHi \x1b\x1b[Athere", "Hi there"),
        (b"tab\there\x01\x05\x0c\x00", "tab\there"),
        (b"x" * 300 + b"\x7f" * 298 + b"y", "xxy"),
        (b"\x1b[200~a\rb\x1b[201~\x7f\x7fc", "ac"),
        (b"\xc3\x28\xff", "\ufffd(\ufffd"),
        (b"one\\\rtwo\\\nthree", "one\ntwo\nthree"),
        (b"one\\\r\ntwo", "one\ntwo"),
    ],
    ids=repr,
)
def test_keys_edit_the_line_at_a_terminal(terminal, chatty, typed, text):
    chat = Chat(terminal, chatty)
    chat.type(typed + b"\r")
    chat.terminal.wait_for(b"\n> ")
    assert chat.leave() == expected_chat(chatty, CHATML, None, [text])


def test_what_is_typed_or_pasted_is_echoed_without_control_characters(terminal, chatty):
    chat = Chat(terminal, chatty)
    chat.type(b"\x1b[200~a\x1b[31m\x9b\xc2\x9b\rb\x07" + "\u202e\u05d0".encode() + b"\x1b[201~!\r")
    shown = chat.terminal.wait_for(b"!\r\n")
    assert shown == b"a\\x1b[31m\\x9b\\u009b\r\n. b\\x07\\u202e" + "\u05d0!\r\n".encode()
    chat.leave()


def test_the_terminal_is_asked_to_mark_pastes_and_told_to_stop(terminal, chatty):
    for environment, marks in ({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False):
        session = terminal("chat", "-m", chatty, **environment)
        shown = session.wait_for(b"> ")
        assert (b"\x1b[?2004h" in shown) == marks
        session.send(b"/exit\r")
        assert session.end().endswith(b"\x1b[?2004l") == marks and session.is_as_before()


def test_a_terminal_without_echo_stays_without(terminal, chatty, pyllm_binary):
    session = terminal("chat", "-m", chatty, "-t", "0", "-n", "1", TERM="dumb")
    session.wait_for(b"> ")
    session.send(b"/exit\r")
    session.end()
    quiet = termios.tcgetattr(session.side)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(session.side, termios.TCSANOW, quiet)
    process = subprocess.Popen(
        [pyllm_binary, "chat", "-m", chatty, "-t", "0", "-n", "1"],
        stdin=session.side,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    session.seen = b""
    assert process.stderr.read(2) == b"> "
    session.send(b"secret\x7f\r/exit\r")
    process.stderr.read()
    assert process.wait() == 0
    assert not session.exchange(b"\n") and b"secre" not in session.seen
    assert termios.tcgetattr(session.side) == quiet


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGSEGV])
@pytest.mark.parametrize("when", ["at the prompt", "in a reply"])
@emulated
def test_a_signal_that_ends_chat_leaves_the_terminal_as_it_was(terminal, endless, number, when):
    session = terminal("chat", *endless)
    session.wait_for(b"> ")
    assert not session.is_as_before()
    if when == "in a reply":
        session.send(b"Hello\r")
        session.wait_for(b"Hello\r\n")
        session.exchange()
    session.process.send_signal(number)
    session.end()
    assert session.process.returncode == -number and session.is_as_before()


@pytest.mark.parametrize("when", ["at the prompt", "in a reply"])
def test_ctrl_c_twice_at_a_terminal_leaves_it_as_it_was(terminal, endless, when):
    session = terminal("chat", *endless)
    session.wait_for(b"> ")
    if when == "in a reply":
        session.send(b"Hello\r")
        session.wait_for(b"Hello\r\n")
        session.exchange()
        session.send(b"\x03")
        session.wait_for(b"\n> ")
    session.send(b"dropped\x03")
    session.wait_for(b"(Ctrl-C again or Ctrl-D leaves)\r\n> ")
    session.send(b"\x03")
    session.end()
    assert session.process.returncode == 130 and session.is_as_before()


def test_ctrl_c_drops_what_was_typed(terminal, chatty):
    chat = Chat(terminal, chatty)
    for dropped in (b"never", b"\x1b[200~never\rsent", b"never\\\rsent"):
        chat.type(dropped)
        if b"200~" not in dropped:
            chat.terminal.wait_for(dropped[-3:])
        chat.type(b"\x03")
        chat.terminal.wait_for(b"leaves)\r\n> ")
        chat.type(b"Hello\r/reset\r")
        chat.terminal.wait_for(b"> ")
        chat.terminal.wait_for(b"> ")
    assert chat.leave() == expected_chat(chatty, CHATML, None, ["Hello"]) * 3


def test_ctrl_c_right_after_a_reply_is_not_lost(pyllm_binary, tiny):
    """It comes while the next line begins to be waited for; lost, it would do nothing before that line."""
    process = start(pyllm_binary, "chat", "-m", tiny, "-n", "1", "-t", "0")
    timer = threading.Timer(120, process.kill)
    timer.start()
    for _ in range(40):
        process.stdin.write(b"/reset\nHello\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"\n"
        assert b"Ctrl-C again" in process.stderr.readline()
    assert finish(process)[1] == b""
    assert process.returncode == 0
    timer.cancel()


LATE = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <signal.h>
    #include <sys/select.h>

    int select(int n, fd_set *read, fd_set *write, fd_set *except, struct timeval *timeout) {
        static int calls;
        int (*wait)(int, fd_set *, fd_set *, fd_set *, struct timeval *) = dlsym(RTLD_NEXT, "select");
        if (!calls++)
            raise(SIGINT);
        return wait(n, read, write, except, timeout);
    }
"""


@emulated
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_ctrl_c_between_the_look_at_it_and_the_wait_is_not_lost(pyllm_binary, tiny, tmp_path):
    """The signal comes when the wait for input is called, before it begins to wait."""
    (tmp_path / "late.c").write_text(LATE)
    shim = str(tmp_path / "late.so")
    subprocess.run(["gcc", "-shared", "-fPIC", str(tmp_path / "late.c"), "-o", shim, "-ldl"], check=True)
    asan = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    process = subprocess.Popen(
        [pyllm_binary, "chat", "-m", tiny],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "LD_PRELOAD": shim, "ASAN_OPTIONS": asan},
    )
    timer = threading.Timer(30, process.kill)
    timer.start()
    assert process.stderr.readline() == b"\n"
    assert b"Ctrl-C again" in process.stderr.readline()
    assert finish(process) == (b"", b"") and process.returncode == 0
    timer.cancel()


@emulated
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_chat_can_be_suspended_and_goes_on(pyllm_binary, chatty):
    """With the terminal as it was before for whoever gets it meanwhile."""
    script = """
        set -m; "$@"; echo "stopped $?"; stty -a; read line; echo "read:$line"; fg >/dev/null; echo "ended $?"
    """
    command = ["bash", "-c", script, "bash", pyllm_binary, "chat", "-m", chatty, "-t", "0", "-n", "6"]
    session = Terminal(command)
    try:
        session.wait_for(b"> ")
        session.send(b"Hel")
        session.wait_for(b"Hel")
        session.send(b"\x1a")
        modes = session.wait_for(b"stopped 148").partition(b"stopped")[0] + session.wait_for(b"echoctl")
        assert b"\x1b[?2004l" in modes
        assert {b"icanon", b"echo", b"icrnl"} <= set(modes.replace(b";", b"").split())
        session.send(b"typed to the shell\n")
        session.wait_for(b"read:typed to the shell")
        session.wait_for(b"> Hel")  # shown anew
        session.send(b"lo\r")
        reply = session.wait_for(b"\n> ").partition(b"lo\r\n")[2][: -len(b"> ")]
        assert reply == on_terminal(expected_chat(chatty, CHATML, None, ["Hello"]))
        session.send(b"\x04")
        assert b"ended 0" in session.end() and session.is_as_before()
    finally:
        session.close()


def test_replies_are_escaped_on_a_terminal_and_the_reasoning_is_dimmed(run, terminal, tmp_path, hostile):
    path = tmp_path / "thinks.llm"
    parts = [*CHATML, "<think>"]
    texts = dict(enumerate((HOSTILE + ATTACKS + HALVES)[:250], 3))
    path.write_bytes(tiny_model(parts, {lib.LLM_STOP: b""}, texts=texts, eos=NONE, context=4096))
    for model, dim in ((hostile, False), (str(path), True)):
        arguments = ["chat", "-m", model, "-n", "300", "-t", "3", "--top-p", "1", "--seed", "1"]
        expected = on_terminal(run(*arguments, input=b"Hello")[0])
        session = terminal(*arguments)
        session.wait_for(b"> ")
        session.send(b"Hello\r")
        session.wait_for(b"Hello\r\n")
        reply = session.wait_for(b"\r\n> ")[: -len(b"> ")]
        assert (b"\x1b[2m" in reply) == dim
        assert reply.replace(b"\x1b[2m", b"").replace(b"\x1b[22m", b"") == expected
        session.send(b"\x04")
        session.end()


def test_ctrl_c_in_chat_ends_the_reply_only(pyllm_binary, endless):
    process = start(pyllm_binary, "chat", *endless)
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    read_some(process, 20)
    process.send_signal(signal.SIGINT)
    process.stdin.write(b"/exit\n")
    out, err = finish(process)
    assert process.returncode == 0
    assert out.endswith(b"\n") and err == b""


def test_ctrl_c_twice_at_the_prompt_leaves_chat(pyllm_binary, tiny):
    process = start(pyllm_binary, "chat", "-m", tiny, "-n", "1", "-t", "0")
    timer = threading.Timer(30, process.kill)
    timer.start()
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    process.stdout.readline()  # it is at the prompt now, or about to be
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == b"\n"
    assert b"Ctrl-C again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert finish(process) == (b"", b"\n")
    assert process.returncode == 130
    timer.cancel()
