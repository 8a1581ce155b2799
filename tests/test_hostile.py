"""Files that are valid and hostile: weights, states and tables that hold whatever bits someone chose. Opening
one and running it ends in a result or an error; nothing else is read or written, and the work is bounded."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from common import C_FLAGS, COMMAND, CSRC, ENGINE, NONE, byte_tokenizer, place_of
from pyllm._llm import ffi, lib
from reference import (
    FP16,
    INT8,
    INT8R,
    QKV_BIAS,
    ROUTER_NORMALIZE,
    ROUTER_SIGMOID,
    SHARED_GATE,
    make_model,
)
from test_engine import KV, Model, both_kv, every_dtype, isas, some_ids

import pyllm
from pyllm.saved import HEAD

LIBRARY = [*ENGINE, "sampler.c"]
FUZZ = Path(__file__).with_name("fuzz.c")


def build_fuzz(folder: Path, *flags: str) -> Path:
    """tests/fuzz.c with the engine whose sources are in this folder, with guard pages."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    sources = [str(folder / name) for name in LIBRARY]
    options = [*C_FLAGS, "-O2", "-fopenmp", "-DLLM_GUARD", f"-I{folder}", *flags]
    command = ["gcc", *options, str(FUZZ), *sources]
    program = folder / "fuzz"
    subprocess.run([*command, "-lm", "-o", str(program)], check=True)
    return program


own_build = pytest.mark.skipif(
    "san" in os.environ.get("PYLLM_CFLAGS", ""), reason="has a build of its own, which .ci/run instruments"
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of csrc/ to change and to build in."""
    return Path(shutil.copytree(CSRC, tmp_path_factory.mktemp("fuzz") / "csrc"))


def run_fuzz(program: Path, *arguments: int) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@own_build
def test_models_of_hostile_numbers_touch_nothing_else(sources):
    """.ci/run does 20,000 such runs under the sanitizers."""
    done = run_fuzz(build_fuzz(sources), 0, 400)
    assert done.returncode == 0, done.stderr
    counts = re.match(
        r"(\d+) runs \((\d+) with experts, (\d+) with shared keys, (\d+) with states\), (\d+) of (\d+)",
        done.stdout,
    )
    runs, experts, shared, states, unsound, damaged = map(int, counts.groups())
    refused = int(re.search(r"(\d+) of them not finite", done.stdout)[1])
    calls = int(re.search(r"(\d+) calls", done.stdout)[1])
    assert runs > 300 and experts > 120 and shared > 30 and states > 40 and damaged > unsound > 20
    assert 0.2 < refused / calls < 0.8, "hostile numbers reach the logits, and others do too"


@own_build
def test_guard_pages_catch_an_expert_that_is_chosen_twice(sources):
    """The fault that was in choose_experts: taken experts were marked by -infinity alone, to which NaN does
    not compare; and no product looked how many tokens it was given."""
    for name, good, bad in [
        (
            "experts",
            "        sum += p[best];",
            "        sum += p[best], p[best] = -INFINITY, taken[best] = 0;",
        ),
        ("products", "        a.n = s->o.batch; /* what the buffers", "        a.n = n; /* what the buffers"),
    ]:
        text = (sources / f"{name}.c").read_text()
        assert text.count(good) == 1
        (sources / f"{name}.c").write_text(text.replace(good, bad))
    done = run_fuzz(build_fuzz(sources), 0, 3000)
    assert done.returncode == -signal.SIGSEGV and re.search(r"run \d+ failed", done.stderr), done


def with_tensor(data: bytes, tensor: int, layer: int, words: np.ndarray | int) -> bytes:
    """The file with a tensor's bytes set to these 16-bit words."""
    out, t = bytearray(data), place_of(data, tensor, layer)
    words = np.broadcast_to(np.asarray(words, "<u2"), t.size // 2)
    out[t.offset : t.offset + t.size] = words.tobytes()
    return bytes(out)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("flags", [0, ROUTER_NORMALIZE, ROUTER_SIGMOID, SHARED_GATE])
@pytest.mark.parametrize("word", [0x7E00, 0x7C00, 0xFC00], ids=["nan", "inf", "-inf"])
def test_a_router_of_nan_or_infinity_is_an_error(word, flags, isa):
    """More tokens than a batch, so that an expert which is chosen twice would need room that is not there."""
    shared = 64 if flags & SHARED_GATE else 0
    data = make_model(dtype=INT8, n_experts=6, n_active=4, shared_dim=shared, flags=flags)
    data = with_tensor(data, lib.LLM_ROUTER, 1, word)
    session = Model(data).session(isa, context=1000, batch=200)
    with pytest.raises(ValueError, match="after token 0 are not finite"):
        session.forward(some_ids(700, 96))
    assert session.length() == 0


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(
    "extra", [{}, {"gate_limit": 2.0}, {"gate_limit": 2.0, "up_shift": 1.0}, {"gate_cut": 1.0}]
)
def test_gates_of_nan_are_an_error(extra, isa):
    """What is cut or clamped as well: fminf() and fmaxf() would make a number of it."""
    data = with_tensor(make_model(dtype=FP16, extra=extra), lib.LLM_GATE_UP, 1, 0x7E00)
    with pytest.raises(ValueError, match="after token 0 are not finite"):
        Model(data).session(isa).forward(some_ids(20, 96))


@both_kv
@every_dtype
def test_a_state_of_nan_is_an_error(dtype, kv):
    """What a crafted saved session brings: halves, or the scales of int8, fp16 of keys and float32 of values,
    where these bits are 2.7e38."""
    model = Model(make_model(dtype=dtype, n_experts=6, n_active=4))
    session = model.session(context=400, batch=50, kv=KV[kv])
    word = 0x7E00 if kv == "fp16" else 0x7FFF
    state = np.full(lib.LLM_PAGE * lib.llm_kv_bytes(model.c, KV[kv]) // 2, word, "<u2")
    session.check(lib.llm_state(session.c, 0, 60, 0, ffi.from_buffer(state), 1, session.err, 512))
    with pytest.raises(ValueError, match="not finite"):
        session.forward(some_ids(300, 96))
    assert session.length() == 60
    session.truncate(0, 0)
    assert (session.forward(ids := some_ids(30, 96)) == model.run(ids, kv=KV[kv])).all()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("part", ["all", "key scales", "value scales"])
@pytest.mark.parametrize("word", [0x7E00, 0x7C00, 0xFC00, 0x7BFF, 0xFFFF])
def test_pages_of_int8_hold_whatever_bits(word, part, isa):
    """Each part of the pages of a state alone: an error, or logits."""
    model = Model(make_model(dtype=INT8R, n_kv_heads=1, n_layers=1, head_dim=80))
    session = model.session(isa, context=200)
    page = np.zeros(lib.LLM_PAGE * lib.llm_kv_bytes(model.c, lib.LLM_KV_INT8), np.uint8)
    keys, values = page[: 64 * (80 + 4)], page[64 * (80 + 4) :]
    assert len(values) == 64 * (80 + 4)
    chosen = {"all": page, "key scales": keys[64 * 80 :], "value scales": values[64 * 80 :]}[part]
    chosen[:] = np.tile(np.array([word], "<u2").view(np.uint8), len(chosen) // 2)
    session.check(lib.llm_state(session.c, 0, 60, 0, ffi.from_buffer(page), 1, session.err, 512))
    try:
        assert np.isfinite(session.forward(ids := some_ids(70, 96))).all()
    except ValueError as error:
        assert "not finite" in str(error) and session.length() == 60
    session.truncate(0, 0)
    assert (session.forward(ids) == model.run(ids, isa)).all()


def test_logits_that_are_not_finite_are_an_error_that_changes_nothing():
    """An embedding of NaN: its token is refused, alone or within a call, in whatever batch; others run. The
    error may name a token before it that went through the layers together with it."""
    data = make_model(vocab_size=96, n_layers=1)
    words = np.full((6, 64, 16), 0x3000, "<u2")
    rng = np.random.default_rng(1)
    words[:] = (rng.standard_normal(words.shape)).astype("<f2").view("<u2")
    words[5 // 16, :, 5] = 0x7E00
    model = Model(with_tensor(data, lib.LLM_EMBED, 0, words.ravel()))
    ids = [i for i in some_ids(40, 96) if i != 5]
    whole = model.run(ids, exact=1)
    s = model.session(batch=8, exact=1)
    s.forward(ids[:20])
    for bad in ([5], [1, 5], [*ids[:17], 5, 1, 2]):
        with pytest.raises(ValueError, match=r"after token \d+ are not finite"):
            s.forward(bad)
        assert s.length() == 20
    assert (s.forward(ids[20:]) == whole[20:]).all()
    session = model.session()
    none = session.forward([5, 1], want=b"\0\0")
    assert none.shape[0] == 0 and session.length() == 2, "what nobody wants is not looked at"


@pytest.mark.parametrize("isa", isas())
def test_keys_and_values_beyond_fp16_are_its_largest_number(isa):
    """A bias of 1e5 or 2e5 on every value: both are kept as 65,504, so the logits are the same and finite. In
    int8 the scale is a float32, and the largest value's is kept."""
    found = []
    for bias in (1e5, 2e5):
        data = bytearray(make_model(flags=QKV_BIAS))
        t = place_of(bytes(data), lib.LLM_BIAS)
        values = np.frombuffer(data, "<f4", t.cols, t.offset)
        values[64 + 32 :] = bias  # behind 4 heads of q and 2 of k
        found.append(Model(bytes(data)).run(some_ids(30, 96), isa))
        assert np.isfinite(Model(bytes(data)).run(some_ids(30, 96), isa, kv=KV["int8"])).all()
    assert np.isfinite(found[0]).all() and (found[0] == found[1]).all()


def test_a_saved_session_of_nan_is_an_error_and_no_empty_text(tmp_path, story_model):
    """With the right checksum: whoever wrote it could compute that too."""
    llm = pyllm.LLM(story_model)
    path = tmp_path / "s.session"
    with llm.session() as session:
        session.eval(ids := llm.encode("Once upon a time"))
        session.save(path)
    data = bytearray(path.read_bytes())
    start = HEAD.size + 4 * len(ids)
    data[start:] = b"\x00\x7e" * ((len(data) - start) // 2)
    head = list(HEAD.unpack_from(data))
    head[4] = hashlib.sha256(data[HEAD.size :]).digest()
    path.write_bytes(HEAD.pack(*head) + bytes(data[HEAD.size :]))
    with llm.session() as session:
        session.load(path)
        with pytest.raises(pyllm.LLMError, match="not finite"):
            session.eval(ids)
        assert session.tokens == ids, "as it was loaded"


@pytest.fixture
def broken_model(tmp_path) -> Path:
    """A model whose last norm is NaN."""
    data = make_model(vocab_size=260, sections=byte_tokenizer(0, 256, 258))
    path = tmp_path / "broken.llm"
    path.write_bytes(with_tensor(data, lib.LLM_OUT_NORM, 0, 0x7FC0))
    return path


def test_a_model_of_nan_is_an_error_and_no_empty_text(broken_model):
    llm = pyllm.LLM(broken_model)
    calls = [llm.generate, llm.logits, lambda text: list(llm.stream(text)), lambda text: llm.score(text, "b")]
    for call in calls:
        with pytest.raises(pyllm.LLMError, match="not finite"):
            call("a")
    with pytest.raises(pyllm.LLMError, match="not finite"):
        llm.generate(["a", "b"])
    assert llm.encode("ab") == [97, 98], "it goes on"
    for arguments in (["generate", "a"], ["next", "a"]) if COMMAND else ():
        done = subprocess.run([COMMAND, *arguments, "-m", str(broken_model)], capture_output=True, text=True)
        assert done.returncode == 1 and "are not finite" in done.stderr


# ---------------------------------------------------------------------------------------------------------
# Threads that cannot be had


def limited(limits: str, *command: str, user: str | None = None) -> subprocess.CompletedProcess:
    """A command under limits of the shell's."""
    shell = ["bash", "-c", f'{limits} && exec "$@"', "bash", *command]
    return subprocess.run(shell, capture_output=True, text=True, cwd="/", user=user, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.skipif("san" in os.environ.get("PYLLM_CFLAGS", ""), reason="sanitizers need address space")
@pytest.mark.parametrize("limits", ["ulimit -v 3000000", "ulimit -v 800000"])
def test_threads_that_cannot_be_had_are_done_without(limits):
    """512 of 8 MB do not fit into 3 GB; OpenMP itself would end the process."""
    if not COMMAND or os.environ.get("PYLLM_EMULATED"):
        pytest.skip("needs the command on this processor")
    arguments = ["generate", "One day", "-n", "5", "--seed", "1", "--threads"]
    done, want = limited(limits, COMMAND, *arguments, "512"), limited("true", COMMAND, *arguments, "1")
    assert (done.returncode, done.stdout) == (0, want.stdout), done.stderr
    code = (
        "import pyllm; a = pyllm.LLM(threads=512)\n"
        "print(a.generate('One day', max_tokens=5, seed=1).text)\n"
        "b = pyllm.LLM(threads=2); b.generate('x', max_tokens=2)\n"
        "print(a.generate('x', max_tokens=3).finish_reason)"
    )
    done = limited(f"export OPENBLAS_NUM_THREADS=1; {limits}", sys.executable, "-c", code)
    assert done.returncode == 0 and done.stdout.endswith("length\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user to be limited")
@pytest.mark.skipif("san" in os.environ.get("PYLLM_CFLAGS", ""), reason="sanitizers start threads")
def test_a_limit_on_processes_is_no_end():
    """As a pids limit of a container."""
    if not COMMAND or os.environ.get("PYLLM_EMULATED"):
        pytest.skip("needs the command on this processor")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is not for other users
        os.chmod(folder, 0o755)
        command = [shutil.copy(COMMAND, folder), "generate", "One day", "-n", "5", "--threads", "64"]
        done = limited("ulimit -u 5", *command, user="nobody")
    assert done.returncode == 0 and done.stdout.startswith("One day"), done.stderr


# ---------------------------------------------------------------------------------------------------------
# What is not known is refused


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["-U__BYTE_ORDER__", "-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__"], "little-endian"),
        (["-m32", "-ffreestanding"], "64-bit sizes"),
    ],
)
def test_machines_that_cannot_read_a_file_are_refused_when_compiling(flags, why):
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    command = ["gcc", "-x", "c", "-fsyntax-only", f"-I{CSRC}", *flags, "-"]
    done = subprocess.run(command, input='#include "file.h"\n', capture_output=True, text=True)
    assert done.returncode and why in done.stderr


# ---------------------------------------------------------------------------------------------------------
# Tokenizers: work that a file asks for is bounded by the text


class Tokenizer:
    """A tokenizer of bytes with further sections."""

    def __init__(self, sections: dict[int, bytes], flags: int = 0) -> None:
        self.model = Model(make_model(sections=byte_tokenizer(flags, NONE, NONE) | sections))
        err = ffi.new("char[256]")
        c = lib.llm_tokenizer_open(self.model.c, err, 256)
        if not c:
            raise ValueError(ffi.string(err).decode())
        self.c = ffi.gc(c, lib.llm_tokenizer_close)

    def count(self, text: bytes) -> int:
        """The number of its tokens, control tokens recognised."""
        err = ffi.new("char[256]")
        n = lib.llm_encode(self.c, text, len(text), lib.LLM_SPECIAL, ffi.NULL, 0, err, 256)
        if n < 0:
            raise ValueError(ffi.string(err).decode())
        return n


def program(*code: tuple[int, int, int, int], split: int = 0) -> dict[int, bytes]:
    """A pattern of one stage over class 0, the letter a, and class 1, everything."""
    letter, everything = [0, 0, 0, 2, 0, 0], [2**32 - 1] * 4 + [0, 1]
    return {
        lib.LLM_CLASSES: struct.pack("<2I12I2I", 2, 1, *letter, *everything, 128, 0x10FFFF),
        lib.LLM_PATTERN: struct.pack("<4I", 1, len(code), 0, split)
        + b"".join(struct.pack("<4I", *instruction) for instruction in code),
    }


def step(kind: int, old: bytes = b"", new: bytes = b"") -> bytes:
    return struct.pack("<3I", kind, len(old), len(new)) + old + new


RUN, EAT, ALT, MATCH = (lib.LLM_OP_RUN, lib.LLM_OP_EAT, lib.LLM_OP_ALT, lib.LLM_OP_MATCH)
JUMP, LOOP, BORDER = (lib.LLM_OP_JUMP, lib.LLM_OP_LOOP, lib.LLM_OP_BORDER)


@pytest.mark.parametrize(
    "code",
    [
        [(RUN, 0, 10**6, 10**6), (MATCH, 0, 0, 0)],
        [(EAT, 0, 10**6, 2**32 - 1), (MATCH, 0, 0, 0)],
        [(ALT, 2, 0, 0), (RUN, 0, 10**6, 10**7), (RUN, 0, 10**6, 10**6), (MATCH, 0, 0, 0)],
        [(RUN, 0, 0, 2**32 - 1)] * 30 + [(RUN, 0, 10**6, 10**6), (MATCH, 0, 0, 0)],
        [(op, i + 2, 0, 0) for i in range(0, 90, 2) for op in (ALT, JUMP)]
        + [(RUN, 0, 3, 3), (RUN, 0, 10**6, 10**6), (MATCH, 0, 0, 0)],
        [(LOOP, 3, 1, 10**6), (RUN, 0, 1, 1), (MATCH, 0, 0, 0), (RUN, 1, 9, 9), (MATCH, 0, 0, 0)],
    ],
    ids=["mandatory run", "mandatory eat", "two", "thirty runs before one", "alternatives", "loop"],
)
def test_a_pattern_that_takes_forever_is_an_error(code):
    """Each would look at all of the rest of the text, from each of its characters, or try 2^45 ways."""
    tokenizer = Tokenizer(program(*code))
    assert len(code) > 40 or tokenizer.count(b"aba") == 3
    with pytest.raises(ValueError, match="takes too long"):
        tokenizer.count(b"a" * 2**15)


def test_normalisation_makes_no_more_than_in_proportion_to_the_text():
    """26 steps that double it: 67 million tokens from one byte."""
    doubling = Tokenizer({lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_REPLACE, b"a", b"aa") * 26})
    assert doubling.count(b"b" * 100000) == 100000
    for text in (b"a", b"a" * 1000, b"<s>a" * 1000):
        with pytest.raises(ValueError, match="makes too much"):
            doubling.count(text)
    once = Tokenizer({lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_REPLACE, b"a", b"x" * 2**20)})
    with pytest.raises(ValueError, match="makes too much"):
        once.count(b"a" * 2**14)
    before = Tokenizer({lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_PREPEND, b"", b"x" * 4000)})
    assert before.count(b"b") == 4001
    with pytest.raises(ValueError, match="makes too much"):
        before.count(b"<s>b" * 5000)


def test_many_steps_of_normalisation_are_charged():
    many = Tokenizer({lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_TRIM) * 20000})
    with pytest.raises(ValueError, match="takes too long"):
        many.count(b"b" * 2**13)
    far = Tokenizer({lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_REPLACE, b"a" * 2**18 + b"b", b"c")})
    with pytest.raises(ValueError, match="takes too long"):
        far.count(b"a" * 2**19)


@pytest.mark.parametrize("combining", [0, 230])
def test_decompositions_make_no_more_than_in_proportion_to_the_text(combining):
    """U+0300 becomes 100,000 characters, and those one again."""
    points, code = 100_000, 0x300
    nfc = struct.pack("<3I4I", 1, points, 0, code, combining, 0, points) + struct.pack("<I", 0x62) * points
    tokenizer = Tokenizer({lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_NFC), lib.LLM_NFC: nfc})
    assert tokenizer.count(b"b" * 100) == 100
    for n in (1, 10000):
        with pytest.raises(ValueError, match="make too much|makes too much|takes too long"):
            tokenizer.count("\u0300b".encode() * n)


def test_long_added_tokens_are_charged():
    """At each of its places the text is the beginning of it."""
    word = b"a" * 2**20 + b"b"
    added = struct.pack("<2I4I", 1, 0, 5, 0, 0, len(word)) + word
    tokenizer = Tokenizer({lib.LLM_ADDED: added})
    assert tokenizer.count(b"ab" * 100) == 200
    with pytest.raises(ValueError, match="takes too long"):
        tokenizer.count(b"a" * 2**15)


def test_stray_bytes_from_a_normalizer_are_not_walked_over_again_and_again():
    """A million continuation bytes, each an added token that looks at the character before it."""
    added = struct.pack("<2I4I", 0, 1, 5, lib.LLM_ADDED_LSTRIP, 0, 1) + b"\x80"
    steps = step(lib.LLM_NORMALIZE_REPLACE, b"a", b"\x80")
    tokenizer = Tokenizer({lib.LLM_NORMALIZER: steps, lib.LLM_ADDED: added} | program((MATCH, 0, 0, 0)))
    assert tokenizer.count(b"a" * 10**6) == 10**6


def test_stop_tokens_are_looked_up_not_walked_over():
    """A million of them, and a question for each of two million ids."""
    n = 2 * 10**6
    stops = np.arange(1, 2 * 10**6, 2, dtype="<u4")
    tokenizer = Tokenizer({lib.LLM_STOP: stops.tobytes()})
    found = [lib.llm_token_is_stop(tokenizer.c, i) for i in range(0, n, 7)]
    assert found == [i % 2 for i in range(0, n, 7)]
    size = ffi.new("size_t *")
    listed = lib.llm_token_stops(tokenizer.c, size)
    assert size[0] == len(stops) and ffi.unpack(listed, 3) == [1, 3, 5]
    with pytest.raises(ValueError, match="LLM_STOP is not in order"):
        Tokenizer({lib.LLM_STOP: stops[::-1].tobytes()})


def random_tokenizer(rng: random.Random) -> dict[int, bytes]:
    """Sections that open: random instructions, classes, steps, decompositions and added tokens."""
    letters = [b"a", b"b", b" ", b"\x80", "\u00e9".encode(), "\u0301".encode(), b"\xff", b"ab", b"aa", b"<s>"]

    def text(most: int) -> bytes:
        return b"".join(rng.choice(letters) for _ in range(rng.randint(0, most)))

    out = {}
    n = rng.randint(1, 12)
    code = []
    for i in range(n):
        op = rng.choice([RUN, RUN, EAT, ALT, MATCH, JUMP, LOOP, lib.LLM_OP_LOOK, lib.LLM_OP_END, BORDER])
        runs, least = op in (RUN, EAT), rng.choice([0, 1, 3, 1000, 10**9])
        where = rng.randint(0, 1) if runs or op == BORDER else rng.randint(i + 1, n)
        most = rng.choice([least, least + 2, 2**32 - 1])
        code.append((op, where, least if runs else rng.randint(0, 1), most if runs or op == LOOP else 0))
    out |= program(*code, (MATCH, 0, 0, 0), split=rng.choice([0, 1, 2, 3, 4, 8, 9, 10, 11, 12]))
    if rng.random() < 0.6:
        kinds = range(lib.LLM_NORMALIZE_NFC, lib.LLM_NORMALIZE_TRIM + 1)
        sizes = [rng.choice([1, 3, 40, 3000]) for _ in range(rng.randint(1, 9))]
        out[lib.LLM_NORMALIZER] = b"".join(step(rng.choice(kinds), text(2), text(size)) for size in sizes)
        codes = sorted(rng.sample(range(0x300, 0x310), 4))
        n = rng.choice([1, 5, 3000])
        chars = [(c, rng.choice([0, 1, 230, 256, 511]), rng.randint(0, n), rng.randint(0, n)) for c in codes]
        pairs = sorted((0x61, rng.choice(codes), rng.choice(codes)) for _ in range(3))
        points = [rng.choice([*codes, 0x61, 0x1100, 0x1161, 2**32 - 1]) for _ in range(n)]
        out[lib.LLM_NFC] = struct.pack("<3I", 4, n, 3) + b"".join(struct.pack("<4I", *c) for c in chars)
        out[lib.LLM_NFC] += struct.pack(f"<{n}I", *points) + b"".join(struct.pack("<3I", *p) for p in pairs)
    if rng.random() < 0.6:
        groups = [sorted({text(3) or b"a" for _ in range(rng.randint(0, 4))}) for _ in range(2)]
        heads, blob = b"", b""
        for word in groups[0] + groups[1]:
            heads += struct.pack("<4I", rng.randrange(259), rng.randrange(16), len(blob), len(word))
            blob += word
        out[lib.LLM_ADDED] = struct.pack("<2I", *map(len, groups)) + heads + blob
    return out


def test_random_tokenizers_end_in_ids_or_an_error():
    """No more ids than 64 for each byte and some; and the same when asked again."""
    rng, refused = random.Random(5), 0
    for _ in range(600):
        flags = rng.choice([0, lib.LLM_PREFIX_SPACE, lib.LLM_PREFIX_SPACE | lib.LLM_PREFIX_FIRST])
        tokenizer = Tokenizer(random_tokenizer(rng), flags)
        for n in (3, 60, 1500):
            text = bytes(rng.choice(b"aaab  <s>\xc3\xa9\xcc\x81\xff") for _ in range(n))
            try:
                count = tokenizer.count(text)
            except ValueError as error:
                assert "cannot encode the text" in str(error)
                refused += 1
                continue
            assert count <= 3 * (64 * len(text) + 4096) and tokenizer.count(text) == count
    assert 50 < refused < 1500


def test_info_of_a_million_tokens_that_all_stop_is_short(tmp_path):
    if not COMMAND:
        pytest.skip("needs the command")
    n = 10**6
    sections = byte_tokenizer(0, NONE, NONE)
    info = bytearray(sections[lib.LLM_TOKENIZER])
    struct.pack_into("<I", info, 4, n)
    starts = np.full(n + 1, len(sections[lib.LLM_TOKEN_BYTES]), "<u4")
    starts[:260] = np.frombuffer(sections[lib.LLM_TOKEN_STARTS], "<u4")
    sections |= {
        lib.LLM_TOKENIZER: bytes(info),
        lib.LLM_TOKEN_STARTS: starts.tobytes(),
        lib.LLM_TOKEN_TYPES: bytes(n),
        lib.LLM_MERGE_STARTS: bytes(4 * n + 4),
        lib.LLM_STOP: np.arange(n, dtype="<u4").tobytes(),
    }
    path = tmp_path / "stops.llm"
    path.write_bytes(make_model(sections=sections))
    done = subprocess.run([COMMAND, "info", "-m", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) < 60
    assert f"{n - 16} more" in done.stdout
    assert len(pyllm.LLM(path).stop_tokens) == n


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("LLM_TOKENIZER", lambda plain: patched(plain, lib.LLM_TOKENIZER, 0, 1 << 30)),
        ("LLM_TOKENIZER", lambda plain: patched(plain, lib.LLM_TOKENIZER, 20, 1)),
        ("LLM_TOKENIZER", lambda plain: patched(plain, lib.LLM_TOKENIZER, 28, 1)),
        ("LLM_TOKEN_TYPES", lambda plain: {lib.LLM_TOKEN_TYPES: b"\x08" * 259}),
        ("LLM_ADDED", lambda plain: patched(plain, lib.LLM_ADDED, 12, 16)),
        ("LLM_PATTERN", lambda plain: program((MATCH, 0, 0, 0), split=5)),
        ("LLM_PATTERN", lambda plain: program((MATCH, 0, 0, 0), split=16)),
        ("LLM_PATTERN", lambda plain: program((lib.LLM_OP_LOOK, 1, 2, 0), (MATCH, 0, 0, 0))),
        ("LLM_PATTERN", lambda plain: program((LOOP, 1, 2, 2), (MATCH, 0, 0, 0))),
        ("LLM_PATTERN", lambda plain: program((BORDER, 2, 0, 0), (MATCH, 0, 0, 0))),
        ("LLM_PATTERN", lambda plain: program((BORDER + 1, 1, 2, 0), (MATCH, 0, 0, 0))),
        ("LLM_NORMALIZER", lambda plain: {lib.LLM_NORMALIZER: step(lib.LLM_NORMALIZE_TRIM + 1)}),
        ("LLM_NFC", lambda plain: {lib.LLM_NFC: struct.pack("<7I", 1, 0, 0, 0x300, 512, 0, 0)}),
    ],
)
def test_unknown_bits_of_a_tokenizer_are_refused(name, sections):
    plain = byte_tokenizer(0, NONE, NONE)
    assert Tokenizer(plain).count(b"ab") == 2
    with pytest.raises(ValueError, match=name):
        Tokenizer(sections(plain))


def patched(sections: dict[int, bytes], tag: int, at: int, word: int) -> dict[int, bytes]:
    """The section with a 32-bit word set."""
    data = bytearray(sections[tag])
    struct.pack_into("<I", data, at, word)
    return {tag: bytes(data)}
