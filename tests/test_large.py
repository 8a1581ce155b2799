"""Files larger than memory and disk: sparse ones, whose holes read as zeros and take no space. A few weights
are planted at far places, so that a token's logits are known, and come from there only."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from common import COMMAND
from pyllm._llm import ffi, lib
from pyllm.tools import flatfile
from reference import ROUTER_NORMALIZE, make_model, up

LLAMA_70B = dict(dim=8192, ffn_dim=28672, n_layers=80, n_heads=64, n_kv_heads=8)
MIXTRAL = dict(
    dim=4096,
    ffn_dim=14336,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    n_experts=8,
    n_active=2,
    flags=ROUTER_NORMALIZE,
)
# The embedding, the output matrix, q with k and v, gate with up: over 2^32 elements; the other two over 2^31
WIDE = dict(
    dim=16448, ffn_dim=1 << 17, n_layers=1, n_heads=128, n_kv_heads=64, head_dim=1024, vocab_size=1 << 18
)
SMALL = dict(dim=192, ffn_dim=64, n_layers=1, n_heads=2, n_kv_heads=1)

MADV_PAGEOUT = 21  # of Linux 5.4: gives pages back that the file still has


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """tmp_path, if holes of its files take no space, also when mapped and read (tmpfs fills them). What is in
    it is removed at once: many a tool would copy it with all its zeros."""
    path = tmp_path / "holes"
    try:
        with open(path, "w+b") as file:
            file.truncate(1 << 40)
            file.write(b"x")
            with mmap.mmap(file.fileno(), 1 << 24, prot=mmap.PROT_READ) as data:
                assert data[-1] == 0 and not any(data[:: mmap.PAGESIZE][1:])
        if path.stat().st_blocks * 512 > 1 << 20:
            pytest.skip(f"{tmp_path}: its file system has no holes; set TMPDIR to a folder on a disk")
    except OSError as error:
        pytest.skip(f"{tmp_path}: no file of 1 TiB ({error})")
    finally:
        path.unlink(missing_ok=True)
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


class Planted:
    """A sparse model file whose weights are zero but for those that lead from the embedding of its last token
    through the last layer (and the last two of its experts) to two of the logits, see `expected`. All of them
    are powers of 2, which int8 with an fp16 scale holds exactly too: rotated, a number alone among 64 is 64
    of one size. For that reason activations and values are exact in 8 bits as well."""

    def __init__(self, path: Path, dtype: str, fields: dict[str, int]):
        self.path, self.err = path, ffi.new("char[256]")
        of_layer = dict(attn_scale=128**-0.5, expert_scale=1, head_dim=128)
        of_header = dict(vocab_size=32000, context=4096, norm_eps=1e-5)
        for name, value in fields.items():
            (of_header if name in ("dim", "vocab_size", "n_layers") else of_layer)[name] = value
        self.layer = layer = flatfile.Layer(**of_layer)
        count = of_header.pop("n_layers")
        shape = flatfile.Shape(rope_dim=layer.head_dim, layers=(layer,) * count, **of_header)
        layout = flatfile.finish_layout(shape, dtype)
        self.h, self.layers = h, _ = layout.header, layout.layers
        with open(path, "w+b") as self.file:
            self.file.truncate(h.file_size)
            # the rotary tables' zeros are valid
            self.file.write(bytes(ffi.buffer(h)) + layout.text + bytes(ffi.buffer(layout.layers)))
            self.plant_all()

    def tensor(self, id: int, layer: int = 0, expert: int = 0) -> ffi.CData:
        """Where a tensor is."""
        t = ffi.new("llm_tensor *")
        found = lib.llm_layout(self.h, self.layers, id, layer, expert, t, self.err, 256)
        assert found == 0, ffi.string(self.err)
        return t

    def plant(self, id: int, row: int, col: int, value: float, layer: int = 0, expert: int = 0) -> None:
        """Writes one weight."""
        t = self.tensor(id, layer, expert)
        assert 0 <= row < t.rows and 0 <= col < t.cols

        def tiled(col: int, cols: int) -> int:
            return (row // 16 * cols + col) * 16 + row % 16

        def write(offset: int, kind: str, number: float) -> None:
            self.file.seek(t.offset + offset)
            self.file.write(struct.pack(kind, number))

        if t.dtype == lib.LLM_FP32:
            write(4 * col, "<f", value)
        elif t.dtype == lib.LLM_FP16:
            write(2 * tiled(col, t.stride), "<e", value)
        else:
            assert t.dtype == lib.LLM_INT8_ROTATED
            for i in range(64):
                sign = -1 if (i & col % 64).bit_count() % 2 else 1
                write(4 * tiled((col // 64 * 64 + i) // 4, t.stride // 4) + i % 4, "<b", 64 * sign)
            write(up(t.rows, 16) * t.stride + 2 * tiled(col // 64, t.stride // 64), "<e", value / 8 / 64)

    def plant_all(self) -> None:
        h, layer, last = self.h, self.layer, self.h.n_layers - 1
        self.plant(lib.LLM_EMBED, h.vocab_size - 1, h.dim - 1, 1)
        self.plant(lib.LLM_ATTN_NORM, 0, h.dim - 1, 1, last)
        self.plant(lib.LLM_QKV, self.tensor(lib.LLM_QKV).rows - 1, h.dim - 1, 1 / 64, last)
        self.plant(lib.LLM_ATTN_OUT, h.dim - 2, layer.n_heads * layer.head_dim - 1, 1 / 2, last)
        self.plant(lib.LLM_FFN_NORM, 0, h.dim - 2, 1, last)
        for back in range(2 if layer.n_experts else 1):
            expert = max(layer.n_experts, 1) - 1 - back
            if layer.n_experts:
                self.plant(lib.LLM_ROUTER, expert, h.dim - 2, 1 / 16 / (1 + back), last)
            self.plant(lib.LLM_GATE_UP, layer.ffn_dim - 1, h.dim - 2, 1 / 32, last, expert)
            self.plant(lib.LLM_GATE_UP, 2 * layer.ffn_dim - 1, h.dim - 2, 1 / 16, last, expert)
            self.plant(lib.LLM_DOWN, h.dim - 3, layer.ffn_dim - 1, 1 / 4 / (1 + back), last, expert)
        self.plant(lib.LLM_OUT_NORM, 0, h.dim - 3, 1)
        self.plant(lib.LLM_OUTPUT, h.vocab_size // 2, h.dim - 3, 1)
        self.plant(lib.LLM_OUTPUT, h.vocab_size - 1, h.dim - 3, 2)

    def expected(self, position: int = 0) -> dict[int, float]:
        """The logits after the last token that are not 0, when all keys and values before it are."""
        h, layer = self.h, self.layer

        def norm(*x: float) -> float:
            return x[-1] / math.sqrt(sum(a * a for a in x) / h.dim + h.norm_eps)

        value = float(np.float16(norm(1.0) / 64))
        attended = value / (position + 1) / 2
        x = norm(1.0, attended)
        gate, upper = x / 32, x / 16
        hidden = gate / (1 + math.exp(-gate)) * upper
        first, second = (math.exp(x / 16 / (1 + back)) for back in range(2))
        down = hidden * (first / 4 + second / 8) / (first + second) if layer.n_experts else hidden / 4
        logit = norm(1.0, attended, down)
        return {h.vocab_size // 2: logit, h.vocab_size - 1: 2 * logit}

    def open(self) -> ffi.CData:
        model = lib.llm_open(os.fsencode(self.path), self.err, 256)
        assert model, ffi.string(self.err)
        return ffi.gc(model, lib.llm_close)


def open_session(model: ffi.CData, **options: int) -> ffi.CData:
    err = ffi.new("char[256]")
    session = lib.llm_session_open(model, ffi.new("llm_options *", options), err, 256)
    assert session, ffi.string(err)
    return ffi.gc(session, lib.llm_session_close)


def forward(session: ffi.CData, vocab: int, ids: list[int], seq: int = 0) -> np.ndarray:
    """The logits after each token of one sequence."""
    out, err = np.full((len(ids), vocab), np.nan, np.float32), ffi.new("char[256]")
    logits = ffi.cast("float *", out.ctypes.data)
    done = lib.llm_forward(session, len(ids), ids, [seq] * len(ids), b"\1" * len(ids), logits, err, 256)
    assert done == 0, ffi.string(err)
    return out


def check(logits: np.ndarray, expected: dict[int, float]) -> None:
    """A value is rounded to fp16 (2^-11) on the way, and near the middle of two it may be to either."""
    assert sorted(np.flatnonzero(logits)) == sorted(expected)
    for token, logit in expected.items():
        assert logits[token] == pytest.approx(logit, rel=1e-3)


def own_memory() -> int:
    """Bytes of memory that are this process's alone, which no file could give back."""
    (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon")]
    return int(line.split()[1]) << 10


@contextmanager
def forgetting(path: Path) -> Iterator[None]:
    """Meanwhile, reads the file in large pages, where there are such, and gives the memory that holds it
    back all the time. The kernel does so by itself once memory is full; but filling pages that were not used
    before takes it several times as long as these few again and again."""
    (line,) = [s for s in Path("/proc/self/maps").read_text().splitlines() if s.endswith(str(path))]
    start, end = (int(n, 16) for n in line.split()[0].split("-"))
    done = threading.Event()

    def advise(advice: int) -> None:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)

    def forget() -> None:
        while not done.wait(0.05):
            advise(MADV_PAGEOUT)

    advise(mmap.MADV_HUGEPAGE)
    thread = threading.Thread(target=forget)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="gives memory back as Linux wants it")
@pytest.mark.parametrize(
    "fields, dtype, size",
    [
        pytest.param(LLAMA_70B, "fp16", 137_955_959_424, id="Llama-2-70B, fp16"),
        pytest.param(MIXTRAL, "fp16", 93_408_229_504, id="Mixtral-8x7B, fp16"),
        pytest.param(MIXTRAL, "int8", 48_166_172_800, id="Mixtral-8x7B, int8"),
        pytest.param(WIDE, "fp16", 43_117_647_296, id="over 2^32 elements, fp16"),
        pytest.param(WIDE, "int8", 22_232_634_816, id="over 2^32 elements, int8"),
    ],
)
def test_a_token_of_a_file_larger_than_memory_and_disk(folder, fields, dtype, size):
    planted = Planted(folder / "large.llm", dtype, fields)
    assert planted.path.stat().st_size == size
    model = planted.open()
    session, before = open_session(model, context=64), own_memory()
    with forgetting(planted.path):
        logits = forward(session, planted.h.vocab_size, [planted.h.vocab_size - 1])
    check(logits[0], planted.expected())
    assert own_memory() - before < size / 100, "the file was copied"
    assert planted.path.stat().st_blocks * 512 < 1 << 20


def test_places_are_those_of_a_calculation_by_hand(folder):
    """Llama-2-70B in fp16 and Mixtral in int8: rows and columns are multiples of 16 and 64, so nothing is
    padded but a router of 8 experts; 64 int8 weights have a scale of 2 bytes."""
    llama = Planted(folder / "llama.llm", "fp16", LLAMA_70B)
    dim, ffn, kv = 8192, 28672, 8 * 128
    # header, checksums, layers, rotary table
    start = 256 + up(16 + 8 * (2 + 3 + 80 * 6)) + 80 * 256 + 64 * 8
    once = 2 * 32000 * dim * 2 + dim * 4
    attention = dim * 4 + (dim + 2 * kv) * dim * 2 + dim * dim * 2
    layer = attention + dim * 4 + 3 * ffn * dim * 2
    assert llama.tensor(lib.LLM_OUTPUT).offset == start + 32000 * dim * 2 + dim * 4
    assert llama.tensor(lib.LLM_FFN_NORM, 41).offset == start + once + 41 * layer + attention
    assert llama.tensor(lib.LLM_DOWN, 79).offset == start + once + 80 * layer - ffn * dim * 2
    assert llama.h.file_size == start + once + 80 * layer + 64

    mixtral = Planted(folder / "mixtral.llm", "int8", MIXTRAL)
    dim, ffn = 4096, 14336
    start = 256 + up(16 + 8 * (2 + 3 + 32 * (5 + 2 * 8))) + 32 * 256 + 64 * 8
    once = 2 * 32000 * dim * 66 // 64 + dim * 4
    attention = dim * 4 + (2 * dim + 2 * kv) * dim * 66 // 64 + dim * 4 + 16 * dim * 2
    gate_up, down = 2 * ffn * dim * 66 // 64, ffn * dim * 66 // 64
    layer = attention + 8 * (gate_up + down)
    blocks = start + once + 30 * layer + attention
    assert mixtral.tensor(lib.LLM_GATE_UP, 30, 7).offset == blocks + 7 * gate_up
    assert mixtral.tensor(lib.LLM_DOWN, 31, 7).offset == start + once + 32 * layer - down
    assert mixtral.h.file_size == start + once + 32 * layer + 64


def test_keys_and_values_lie_beyond_2_32_elements(folder):
    """A sequence of a context of 2^28 has room for 2^35 of them, of which memory is taken for 40 positions.
    The logits are, bit for bit, those of a small session, after a copy and a move too."""
    path, err = folder / "small.llm", ffi.new("char[256]")
    path.write_bytes(make_model(9))
    model = lib.llm_open(os.fsencode(path), err, 256)
    vocab = lib.llm_model_header(model).vocab_size
    ids = np.random.default_rng(1).integers(0, vocab, 40).tolist()
    want = forward(open_session(model, context=64, exact=1), vocab, ids)
    wide, before = open_session(model, context=1 << 28, n_seqs=4, exact=1), own_memory()
    assert lib.llm_kv_bytes(model, lib.LLM_KV_DEFAULT) << 28 == 2 << 35
    for seq in (0, 3):
        assert (forward(wide, vocab, ids[:30], seq) == want[:30]).all()
    assert lib.llm_copy(wide, 3, 1, 30, err, 256) == 0, ffi.string(err)
    state = bytearray(lib.llm_kv_bytes(model, lib.LLM_KV_DEFAULT) * up(30, lib.LLM_PAGE))
    assert lib.llm_state(wide, 3, 30, 0, ffi.from_buffer(state), 0, err, 256) == 0, ffi.string(err)
    assert lib.llm_state(wide, 2, 30, 0, ffi.from_buffer(state), 1, err, 256) == 0, ffi.string(err)
    for seq in range(4):
        assert (forward(wide, vocab, ids[30:], seq) == want[30:]).all(), seq
    assert own_memory() - before < 1 << 26
    for seq in range(4):
        assert lib.llm_truncate(wide, seq, 0, err, 256) == 0


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_a_token_after_a_million_others_attends_to_all_of_them(folder, dtype):
    """Their keys and values are zeros, brought in by llm_state: attention is the mean of all values, and the
    only one that is not 0 is the last."""
    planted = Planted(folder / "long.llm", dtype, SMALL)
    model, length = planted.open(), (1 << 20) - 5
    session = open_session(model, context=1 << 28)
    state = np.zeros(lib.llm_kv_bytes(model, lib.LLM_KV_DEFAULT) * up(length, lib.LLM_PAGE), np.uint8)
    data = ffi.cast("void *", state.ctypes.data)
    assert lib.llm_state(session, 0, length, 0, data, 1, planted.err, 256) == 0, ffi.string(planted.err)
    logits = forward(session, planted.h.vocab_size, [planted.h.vocab_size - 1])
    assert lib.llm_length(session, 0) == length + 1
    check(logits[0], planted.expected(length))


@pytest.mark.skipif(not COMMAND, reason="the command pyllm is not installed")
def test_info_knows_a_large_file_from_its_header(folder):
    planted = Planted(folder / "llama.llm", "fp16", LLAMA_70B)
    done = subprocess.run([COMMAND, "info", "-m", str(planted.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line[:18].strip(): line[18:] for line in done.stdout.splitlines()}
    assert lines["parameters"] == "68976648192"
    # numbers of 2 bytes, in int4 files of 36 / 64 with 64 before each matrix; but embeddings, and the down
    # projections of the first 6 of 80 layers, of 66 / 64
    eight = 2 * 32000 * 8192 + 6 * 28672 * 8192
    four = 68976648192 - 161 * 8192 - eight
    four_bits = planted.h.file_size - eight * 31 // 32 - four * 23 // 16 + (4 * 80 - 6) * 64
    assert lines["weights"] == (
        f"fp16; 71136109184 bytes (66.3 GiB) as int8, {four_bits} bytes (37.0 GiB) as int4"
    )
    assert lines["keys and values"] == "327680 bytes a token, 1.2 GiB at a context of 4096"
    assert planted.path.stat().st_blocks * 512 < 1 << 20
