"""What several test files need: the installed command, a tokenizer small enough to see through, and the
engine in a program of its own, built for another processor."""

from __future__ import annotations

import os
import runpy
import shutil
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pyllm._llm import ffi, lib

from pyllm import LLM

# The command: $PYLLM_BINARY, or the one installed with this Python, or None.
COMMAND = os.environ.get("PYLLM_BINARY") or shutil.which("pyllm", path=str(Path(sys.executable).parent))

BOS, IM_START, IM_END, NONE = 256, 257, 258, 0xFFFFFFFF
ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# The sources that run a model, without tokenizer and sampler
ENGINE = [f"{name}.c" for name in runpy.run_path(str(ROOT / "pyllm" / "_build.py"))["ENGINE"]]

# What every build of the engine is compiled with: nothing is fused but what says so, and then processors
# agree in every bit
C_FLAGS = ("-std=gnu11", "-ffp-contract=off")

SPECIAL = [b"<s>", b"<|im_start|>", b"<|im_end|>"]


def byte_tokenizer(
    flags: int,
    bos: int,
    eos: int,
    special: list[bytes] = SPECIAL,
    strip: int = 0,
    texts: dict[int, bytes] | None = None,
) -> dict[int, bytes]:
    """The sections of a tokenizer whose tokens are the 256 bytes and the special ones.

    flags  LLM_ADD_BOS or 0
    strip  of the special tokens: LLM_ADDED_LSTRIP, LLM_ADDED_RSTRIP, which need LLM_CLASSES
    texts  what these ids of bytes decode to instead"""
    own = texts or {}
    pieces = [own.get(i, bytes([i])) for i in range(256)] + special
    starts = np.cumsum([0] + [len(piece) for piece in pieces]).astype("<u4")
    order = sorted(range(256), key=lambda i: pieces[i])
    added, at = struct.pack("<II", len(special), 0), 0
    for text in sorted(special):
        added += struct.pack("<IIII", 256 + special.index(text), lib.LLM_ADDED_SPECIAL | strip, at, len(text))
        at += len(text)
    head = struct.pack("<8I", lib.LLM_BYTE_LEVEL | flags, len(pieces), bos, eos, NONE, 0, 0, 0)
    return {
        lib.LLM_TOKENIZER: head + np.arange(256, dtype="<u4").tobytes(),
        lib.LLM_TOKEN_STARTS: starts.tobytes(),
        lib.LLM_TOKEN_BYTES: b"".join(pieces),
        lib.LLM_TOKEN_TYPES: bytes(256) + bytes([lib.LLM_TOKEN_SPECIAL]) * len(special),
        lib.LLM_TOKEN_ORDER: np.array(order, dtype="<u4").tobytes(),
        lib.LLM_MERGE_STARTS: bytes(4 * (len(pieces) + 1)),
        lib.LLM_MERGES: b"",
        lib.LLM_ADDED: added + b"".join(sorted(special)),
    }


def described(data: bytes) -> tuple[ffi.CData, ffi.CData]:
    """The header and the layers of a file, as llm_layout takes them."""
    header = ffi.new("llm_header *")
    ffi.memmove(header, data, lib.LLM_HEADER_SIZE)
    layers = ffi.new("llm_layer[]", header.n_layers)
    start = lib.LLM_HEADER_SIZE + header.text_size
    ffi.memmove(layers, data[start : start + ffi.sizeof(layers)], ffi.sizeof(layers))
    return header, layers


def place_of(data: bytes, tensor: int, layer: int = 0, expert: int = 0) -> ffi.CData:
    """Where llm_layout says that a tensor of a file lies."""
    found, err = ffi.new("llm_tensor *"), ffi.new("char[256]")
    assert lib.llm_layout(*described(data), tensor, layer, expert, found, err, 256) == 0, ffi.string(err)
    return found


def go_back(llm: LLM, ids: list[int], whole: np.ndarray, folder: Path) -> None:
    """A session of 900 ids is cut to many lengths, and so are its fork and what is saved to s.kv in the
    folder and loaded: they go on with the logits of the whole (900, vocab)."""
    with llm.session() as s:
        for length in (899, 890, 300, 1, 0):
            s.eval(ids[len(s) :], all=True)
            s.truncate(length)
            assert len(s) == length and s.tokens == ids[:length]
            assert np.array_equal(s.eval(ids[length : length + 2]), whole[length : length + 2][-1])
        s.eval(ids[len(s) :])
        with s.fork() as other, llm.session() as loaded:
            s.save(folder / "s.kv")
            loaded.load(folder / "s.kv")
            for copy in (other, loaded):
                assert copy.tokens == ids
                copy.truncate(895)
                assert np.array_equal(copy.eval(ids[895:], all=True), whole[895:])
                copy.truncate(10)
                assert np.array_equal(copy.eval(ids[10:30], all=True), whole[10:30])


def is_hostile(c: str) -> bool:
    """Whether Unicode says that a character is a control, ends a line, or overrides the direction of text."""
    overrides = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return unicodedata.category(c) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(c) in overrides


def on_terminal(data: bytes) -> bytes:
    """What a terminal should get for this output: escapes, and the kernel's carriage returns."""
    out = ""
    for c in data.decode(errors="surrogateescape"):
        if "\udc80" <= c <= "\udcff":
            out += f"\\x{ord(c) - 0xDC00:02x}"
        elif c == "\r":
            out += "\\r"
        elif is_hostile(c) and c not in "\n\t":
            out += f"\\u{ord(c):04x}" if ord(c) > 127 else f"\\x{ord(c):02x}"
        else:
            out += c
    return out.replace("\n", "\r\n").encode()


# A build whose AVX-512 and AMX are in software, for a processor that has AVX2. GCC takes four times as long
# over it at -O3; and it would note that 64 bytes are passed in another way than with AVX-512.
SOFT = ("gcc", "-O2", "-Wno-psabi")
for header in ("avx512.h", "tiles.h"):
    SOFT += ("-include", str(Path(__file__).with_name(header)))


def build_logits(tmp_path_factory, cc: str, *options: str) -> Path:
    """tests/logits.c with the engine, compiled by `cc`; once a run of the tests."""
    if not shutil.which(cc):
        pytest.skip(f"needs {cc}")
    program = tmp_path_factory.getbasetemp() / ("logits-" + Path(cc).name)
    if not program.exists():
        sources = [*(CSRC / name for name in ENGINE), Path(__file__).with_name("logits.c")]
        flags = ["-O3", *C_FLAGS, "-fopenmp", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", *options]
        subprocess.run([cc, *flags, *map(str, sources), "-lm", "-o", str(program)], check=True)
    return program


def logits_of(command: list, isa: str, vocab: int, ids: list[int], kv: int = 0, exact: int = 0) -> np.ndarray:
    """What that program prints, with this instruction set."""
    done = subprocess.run(
        [*map(str, command), str(kv), str(exact), *map(str, ids)],
        capture_output=True,
        env={**os.environ, "PYLLM_ISA": isa, "OMP_NUM_THREADS": "1"},
    )
    if b"PYLLM_ISA" in done.stderr:
        pytest.skip(done.stderr.decode())
    assert done.returncode == 0 and done.stderr.decode().strip() == isa, done.stderr
    return np.frombuffer(done.stdout, np.float32).reshape(-1, vocab)
