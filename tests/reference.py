"""An independent forward pass over a flat file, in NumPy float64, for tests.

It shares no code with the engine: the file's layout is worked out here a second time from the description in
llm.h, matrices are dequantized to float64, and attention is computed over all positions at once.

By itself it rounds nothing. With a Rounding it rounds what matrices are multiplied with, keys, values and the
weights of attention to the integers that the format says, so that what is left between it and the engine is
float32, and integers on whose border a number lay.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HEADER = struct.Struct("<8sIIQQQQ5I4f16sIfI136sQ")
FIELDS = (
    "magic version n_layers file_size text_size required optional dim vocab_size context n_rope rope_dim"
    " norm_eps embed_scale residual_scale logit_cap dtype ple_dim ple_scale n_streams reserved checksum"
).split()
LAYER = struct.Struct("<Q6I2f6If48s3I4f3I2f3If6I52s")
LAYER_FIELDS = (
    "flags n_heads n_kv_heads head_dim window rope kv_layer attn_scale attn_cap ffn activation ffn_dim"
    " n_experts n_active shared_dim expert_scale dtype value_dim n_groups n_active_groups gate_limit"
    " gate_slope up_shift query_growth query_span query_shift low_rank gate_cut qkv_clip latent_dim"
    " turn_dim q_rank latent_eps mixer conv_kernel"
    " delta_key_heads delta_heads delta_key_dim delta_value_dim reserved"
).split()
TIED, QKV_BIAS, QK_NORM, QK_NORM_WHOLE, NO_PRE_NORM, POST_NORM = 1, 2, 4, 8, 16, 32
ROUTER_NORMALIZE, ROUTER_SIGMOID, ROUTER_BIAS, SHARED_GATE = 64, 128, 256, 512
ROUTER_BEST, ROUTER_LOGIT_BIAS, EXPERT_INPUT, FFN_BIAS, ATTN_OUT_BIAS, SINK, QK_NORM_LATE, CHUNKED = (
    1 << bit for bit in range(10, 18)
)
OUT_GATE, OUT_GATE_HEAD, OUT_GATE_SOFTPLUS = 1 << 18, 1 << 19, 1 << 20
V_NORM, V_IS_K, SHARED_NORMS, ROUTER_SCALED, LAYER_SCALED = (1 << bit for bit in range(21, 26))
OF_EXPERTS = (
    ROUTER_NORMALIZE
    | ROUTER_SIGMOID
    | ROUTER_BIAS
    | SHARED_GATE
    | ROUTER_BEST
    | ROUTER_LOGIT_BIAS
    | EXPERT_INPUT
    | SHARED_NORMS
    | ROUTER_SCALED
)
LAYER_NORM, NORM_BIAS, QK_NORM_EACH, PARALLEL, NO_GATE, POSITION_TABLE, OUTPUT_BIAS, INPUT_NORM, ONE_NORM = (
    1 << bit for bit in range(26, 35)
)
OF_HEADER = TIED | POSITION_TABLE | OUTPUT_BIAS | INPUT_NORM
OF_ATTENTION = (
    QKV_BIAS
    | QK_NORM
    | QK_NORM_WHOLE
    | QK_NORM_LATE
    | ATTN_OUT_BIAS
    | SINK
    | CHUNKED
    | OUT_GATE
    | OUT_GATE_HEAD
    | OUT_GATE_SOFTPLUS
    | V_NORM
    | V_IS_K
    | QK_NORM_EACH
    | PARALLEL
    | ONE_NORM
)
HAS_CHECKSUMS = 1  # of header.optional
DENSE, EXPERTS = 0, 1
ATTENTION, SHORT_CONV, DELTA_RULE = 0, 1, 2
STATE_DIMS = (("_key", "key"), ("", "value"))  # delta_key_heads of delta_key_dim, delta_heads of ...
SILU, GELU, GELU_ERF, RELU2, XIELU = 0, 1, 2, 3, 4
FP16, INT8, FP32, INT8R, INT4 = 0, 1, 2, 3, 4
CHECKSUMS = 32  # the tag of that section
# Every tensor's place in the file and among the dtypes; those of a layer begin with attn_norm
IDS = {"embed": 0, "out_norm": 1, "output": 2, "ple_embed": 3, "ple_proj": 4, "ple_norm": 5}
IDS |= {"stream_in": 6, "stream_out": 7, "positions": 8, "output_add": 9, "embed_norm": 10}
NAMES = (
    "attn_norm qkv bias q_norm k_norm attn_out attn_post_norm ffn_norm router router_add gate_up down"
    " shared_gate_up shared_down ffn_post_norm sinks out_bias router_logits gate_up_bias down_bias"
    " router_norm shared_norm shared_post experts_post router_scale layer_scale"
    " ple_gate ple_out ple_post_norm laurel_left laurel_right laurel_norm"
    " stream_norm stream_router stream_predict stream_correct stream_scale xielu_numbers"
    " q_up k_up v_up conv state_gates decay state_norm"
).split()
IDS |= {name: 16 + i for i, name in enumerate(NAMES)}


def up(n: int, to: int = 64) -> int:
    """n rounded up to a multiple of `to`."""
    return -(-n // to) * to


Item = tuple[str, int, int, int, int]
# Norms of a layer that its flags describe; the others are RMSNorms always
NORMS = ("attn_norm", "q_norm", "k_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")


def dtype_of(described: dict, name: str) -> int:
    """The dtype of a matrix, from the header or the layer that describes it."""
    kind = described["dtype"][IDS[name] - (16 if "flags" in described else 0)]
    assert kind in (FP16, INT8, INT8R, INT4)
    return kind


def once_matrices(required: int) -> list[str]:
    """The matrices that occur once."""
    return ["embed"] + ["output"] * (not required & TIED) + ["positions"] * bool(required & POSITION_TABLE)


def once_rows(h: dict, name: str) -> int:
    rows: int = h["context" if name == "positions" else "vocab_size"]
    return rows


def once_shapes(h: dict) -> list[Item]:
    """(name, rows, cols, dtype, count) of the tensors that occur once, in file order."""
    norm_rows = 2 if h["required"] & NORM_BIAS else 1
    items = {
        name: (name, once_rows(h, name), h["dim"], dtype_of(h, name), 1)
        for name in once_matrices(h["required"])
    }
    items["out_norm"] = ("out_norm", norm_rows, h["dim"], FP32, 1)
    if h["required"] & OUTPUT_BIAS:
        items["output_add"] = ("output_add", 1, h["vocab_size"], FP32, 1)
    if h["required"] & INPUT_NORM:
        items["embed_norm"] = ("embed_norm", norm_rows, h["dim"], FP32, 1)
    if ple := h["ple_dim"]:
        wide = h["n_layers"] * ple
        items["ple_embed"] = ("ple_embed", h["vocab_size"], wide, dtype_of(h, "ple_embed"), 1)
        items["ple_proj"] = ("ple_proj", wide, h["dim"], dtype_of(h, "ple_proj"), 1)
        items["ple_norm"] = ("ple_norm", 1, ple, FP32, 1)
    for name in ("stream_in", "stream_out") if h["n_streams"] > 1 else ():
        items[name] = (name, h["dim"], h["dim"], dtype_of(h, name), h["n_streams"] - 1)
    return sorted(items.values(), key=lambda item: IDS[item[0]])


def value_dim(about: dict) -> int:
    """Numbers of a value head."""
    return about["value_dim"] or about["head_dim"]


def gate_dim(about: dict) -> int:
    """Numbers that multiply what comes out of attention."""
    if not about["flags"] & OUT_GATE:
        return 0
    return about["n_heads"] * (1 if about["flags"] & OUT_GATE_HEAD else value_dim(about))


def layer_shapes(h: dict, about: dict, number: int) -> list[Item]:
    """(name, rows, cols, dtype, count) of the tensors of a layer that `about` describes, in file order."""
    flags, dim, ffn, experts = about["flags"], h["dim"], about["ffn_dim"], about["n_experts"]
    head, shared = about["head_dim"], about["shared_dim"]
    q, kv = about["n_heads"] * head, about["n_kv_heads"] * (about["kv_layer"] == number)
    att = about["n_heads"] * value_dim(about)
    values = 0 if flags & V_IS_K else value_dim(about)
    qkv = q + kv * (head + values) + gate_dim(about)
    whole, each = flags & QK_NORM_WHOLE, flags & QK_NORM_EACH
    ups = 1 if flags & NO_GATE else 2
    latent, rank, plain = about["latent_dim"], about["q_rank"], head - about["turn_dim"]
    qkv = (rank or q) + latent + about["turn_dim"] if latent else qkv
    found: list[Item] = []

    def vector(name: str, cols: int, rows: int = 1) -> None:
        biased = name in NORMS and flags & NORM_BIAS
        found.append((name, 2 * rows if biased else rows, cols, FP32, 1))

    def matrix(name: str, rows: int, cols: int, count: int = 1) -> None:
        found.append((name, rows, cols, dtype_of(about, name), count))

    if not flags & NO_PRE_NORM:
        vector("attn_norm", dim)
    if not flags & (NO_PRE_NORM | ONE_NORM):
        vector("ffn_norm", dim)
    keys, values = (about[f"delta{key}_heads"] * about[f"delta_{kind}_dim"] for key, kind in STATE_DIMS)
    if about["mixer"] == SHORT_CONV:
        matrix("qkv", 3 * dim, dim)
        vector("conv", about["conv_kernel"] * dim)
        matrix("attn_out", dim, dim)
    elif about["mixer"] == DELTA_RULE:
        matrix("qkv", 2 * keys + 2 * values, dim)
        vector("conv", about["conv_kernel"] * (2 * keys + values))
        matrix("state_gates", 2 * about["delta_heads"], dim)
        vector("decay", 2 * about["delta_heads"])
        vector("state_norm", about["delta_value_dim"])
        matrix("attn_out", dim, values)
    else:
        matrix("qkv", qkv, dim)
    if flags & QKV_BIAS:
        vector("bias", qkv)
    if flags & QK_NORM:
        vector("q_norm", q if whole else head, about["n_heads"] if each else 1)
    if flags & QK_NORM and kv:
        vector("k_norm", kv * head if whole else head, about["n_kv_heads"] if each else 1)
    if rank:
        found.append(("q_norm", 1, rank, FP32, 1))
        matrix("q_up", q, rank)
    if latent:
        found.append(("k_norm", 1, latent, FP32, 1))
        matrix("k_up", latent, plain, about["n_heads"])
        matrix("v_up", value_dim(about), latent, about["n_heads"])
    if not about["mixer"]:
        matrix("attn_out", dim, att)
    if flags & SINK:
        vector("sinks", about["n_heads"])
    if flags & ATTN_OUT_BIAS:
        vector("out_bias", dim)
    if flags & POST_NORM:
        vector("attn_post_norm", dim)
        vector("ffn_post_norm", dim)
    if about["ffn"] == EXPERTS:
        matrix("router", experts + bool(flags & SHARED_GATE), dim)
    if flags & ROUTER_BIAS:
        vector("router_add", experts)
    if flags & ROUTER_LOGIT_BIAS:
        vector("router_logits", experts)
    if about["activation"] == XIELU:
        vector("xielu_numbers", 2)
    matrix("gate_up", ups * ffn, dim, max(1, experts))
    matrix("down", dim, ffn, max(1, experts))
    if flags & FFN_BIAS:
        found.append(("gate_up_bias", 1, ups * ffn, FP32, max(1, experts)))
        found.append(("down_bias", 1, dim, FP32, max(1, experts)))
    if shared:
        matrix("shared_gate_up", ups * shared, dim)
        matrix("shared_down", dim, shared)
    if flags & SHARED_NORMS:
        for name in ("router_norm", "shared_norm", "shared_post", "experts_post"):
            vector(name, dim)
    if flags & ROUTER_SCALED:
        vector("router_scale", experts)
    if flags & LAYER_SCALED:
        vector("layer_scale", 1)
    if ple := h["ple_dim"]:
        matrix("ple_gate", ple, dim)
        matrix("ple_out", dim, ple)
        vector("ple_post_norm", dim)
    if rank := about["low_rank"]:
        matrix("laurel_left", rank, dim)
        matrix("laurel_right", dim, rank)
        vector("laurel_norm", dim)
    if (streams := h["n_streams"]) > 1:
        matrix("stream_router", streams, dim)
        for name, cols in (("norm", dim), ("predict", streams**3), ("correct", streams**2), ("scale", dim)):
            vector(f"stream_{name}", cols)
    return sorted(found, key=lambda item: IDS[item[0]])


def tensor_bytes(rows: int, cols: int, dtype: int) -> int:
    """The bytes of one tensor, without the padding up to the next."""
    groups = (rows if dtype == FP32 else up(rows, 16)) * up(cols) // 64
    return groups * {FP16: 128, INT8: 66, FP32: 256, INT8R: 66, INT4: 36}[dtype] + 64 * (dtype == INT4)


def tile(w: np.ndarray, width: int = 1) -> bytes:
    """(rows, n) in tiles of 16 rows, the last one filled up with zeros: [tile][n / width][16][width]."""
    padded = np.zeros((up(len(w), 16), w.shape[1]), w.dtype)
    padded[: len(w)] = w
    return padded.reshape(-1, 16, w.shape[1] // width, width).swapaxes(1, 2).tobytes()


def hadamard(n: int = 64) -> np.ndarray:
    """Hadamard's matrix (n, n) in Sylvester's order over its square root."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / n**0.5


def rotated(w: np.ndarray) -> np.ndarray:
    """(rows, a multiple of 64), each 64 columns times Hadamard's matrix."""
    return (w.reshape(len(w), -1, 64) @ hadamard()).reshape(w.shape)


# The codebook of int4 matrices: some 16 numbers, denser in the middle
CODEBOOK = np.array([-120, -97, -77, -61, -45, -31, -19, -8, 4, 15, 27, 40, 55, 72, 92, 116], np.int8)


def encode(w: np.ndarray, kind: int) -> bytes:
    """A matrix (rows, a multiple of 64) as a file stores it."""
    rows = len(w)
    if kind == FP16:
        return tile(w.astype("<f2"))
    if kind == FP32:
        return w.astype("<f4").tobytes()
    size, most = (32, np.abs(CODEBOOK.astype(int)).max()) if kind == INT4 else (64, 127)
    groups = (rotated(w) if kind == INT8R else w).reshape(rows, -1, size)
    scale = (abs(groups).max(-1) / most).astype("<f2")
    steps = groups / np.maximum(scale.astype(float), 1e-8)[..., None]
    if kind != INT4:
        q = np.rint(steps).clip(-127, 127)
        return tile(q.astype("i1").reshape(rows, -1), 4) + tile(scale)
    borders = (CODEBOOK[1:].astype(float) + CODEBOOK[:-1]) / 2
    nearest = np.searchsorted(borders, steps).astype(np.uint8).reshape(rows, -1, 2, 4)
    packed = nearest[:, :, 0] | nearest[:, :, 1] << 4
    return CODEBOOK.tobytes() + bytes(48) + tile(packed.reshape(rows, -1), 4) + tile(scale)


def untile(data: bytes, at: int, kind: str, rows: int, n: int, width: int = 1) -> np.ndarray:
    """What tile() made: (rows, n) of numbers of this kind at an offset. Checks that the rest is zero."""
    tiles = np.frombuffer(data, kind, up(rows, 16) * n, at).reshape(-1, n // width, 16, width)
    w = tiles.swapaxes(1, 2).reshape(-1, n)
    assert not w[rows:].any()
    return w[:rows]


def seal(header: bytes) -> bytes:
    """The header with its checksum (FNV-1a, 64 bits) in its last 8 bytes."""
    value = 0xCBF29CE484222325
    for byte in header[:248]:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return header[:248] + struct.pack("<Q", value)


def edited(data: bytes, layer: int | None = None, **values: Any) -> bytes:
    """The file with other fields in its header, or in the layer of this number; with the right checksum."""
    head, at = HEADER.unpack_from(data), HEADER.size
    if layer is None:
        head = [values.get(name, old) for name, old in zip(FIELDS, head, strict=True)]
        assert values.keys() <= set(FIELDS)
        return seal(HEADER.pack(*head)) + data[at:]
    at += head[FIELDS.index("text_size")] + layer * LAYER.size
    fields = dict(zip(LAYER_FIELDS, LAYER.unpack_from(data, at), strict=True))
    assert values.keys() <= fields.keys()
    new = LAYER.pack(*(fields | values).values())
    return data[:at] + new + data[at + LAYER.size :]


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Natural-log probabilities over the last axis, float64."""
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def clamp(about: dict) -> tuple[float, float]:
    """Between what the ups of a layer are."""
    return -about["gate_limit"], about["gate_limit"]


def biases_of(layer: dict, expert: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Those of a feed-forward block's two matrices."""
    if "gate_up_bias" not in layer:
        return None
    return layer["gate_up_bias"][expert][0], layer["down_bias"][expert][0]


erf = np.vectorize(math.erf, otypes=[float])


def activated(x: np.ndarray, about: dict, numbers: np.ndarray | None = None, slope: float = 1) -> np.ndarray:
    """What enum llm_activation says."""
    activation = about["activation"]
    if activation == GELU:  # Hendrycks and Gimpel 2016, the tanh form
        return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    if activation == GELU_ERF:
        return x * (1 + erf(x / 2**0.5)) / 2
    if activation == RELU2:
        return np.maximum(x, 0) ** 2
    if activation == XIELU:
        assert numbers is not None
        a, b = numbers
        return x / 2 + np.where(x > 0, a * x**2, b * (np.expm1(np.minimum(x, 0)) - x))
    return x * sigmoid(slope * x)


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    """Soft-capped (Gemma 2); a cap of 0 is none."""
    return cap * np.tanh(x / cap) if cap else x


def turned_by_groups(x: np.ndarray) -> np.ndarray:
    """x (..., a multiple of 16), each 64 numbers times Hadamard's matrix, and what is left by sixteens."""
    out, whole = x.copy(), x.shape[-1] // 64 * 64
    for size, part in ((64, np.s_[..., :whole]), (16, np.s_[..., whole:])):
        some = x[part]
        out[part] = (some.reshape(*some.shape[:-1], -1, size) @ hadamard(size)).reshape(some.shape)
    return out


def to_half(x: np.ndarray) -> np.ndarray:
    """x as fp16 has it, what is larger than its largest number as that."""
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float64)


def to_integers(x: np.ndarray, group: int, most: int, half: bool = False) -> np.ndarray:
    """x (..., n), each `group` numbers (the last ones may be fewer) rounded to integers up to `most` times a
    scale, which is the largest of them / most, and with `half` rounded to fp16."""
    out = np.zeros_like(x)
    for c in range(0, x.shape[-1], group):
        some = x[..., c : c + group]
        scale = abs(some).max(-1, keepdims=True) / most
        scale = to_half(scale) if half else scale
        steps = np.divide(some, scale, out=np.zeros_like(some), where=scale > 0)
        out[..., c : c + group] = np.rint(steps).clip(-most, most) * scale
    return out


@dataclass(frozen=True)
class Rounding:
    """What is rounded to which integers, see llm.h and csrc/session.h: kv says how keys and values are kept,
    "fp16" or "int8", or None for what files are run with by default. The other numbers are the format's;
    tests change them to see that it would be noticed."""

    kv: str | None = None
    int8: tuple[int, int] = (64, 32767)  # columns that share a scale, and the largest integer
    int8r: tuple[int, int] = (64, 127)
    int4: tuple[int, int] = (32, 127)
    rotated: bool = True
    keys: int = 64  # numbers of a key, and of a query, that share a scale
    keys_rotated: bool = True
    queries: int = 4095  # the largest integer of a query
    values: int = 1 << 20  # numbers of a value that share a scale: all
    page: int = 64  # positions whose weights share a scale, for which the largest integer is
    weights: int = 255

    def activations(self, x: np.ndarray, dtype: int) -> np.ndarray:
        """What a matrix of this dtype is multiplied with, x (n, a multiple of 64)."""
        if dtype == INT8:
            return to_integers(x, *self.int8)
        if dtype == INT4:
            return to_integers(x, *self.int4)
        if dtype == INT8R and self.rotated:
            return rotated(to_integers(rotated(x), *self.int8r))
        return to_integers(x, *self.int8r) if dtype == INT8R else x

    def keys_of(self, x: np.ndarray, most: int, half: bool) -> np.ndarray:
        """Keys (n, heads, head_dim) as the cache has them, or queries, whose scale is not rounded to fp16."""
        padded = np.zeros((*x.shape[:-1], up(x.shape[-1], 16)))
        padded[..., : x.shape[-1]] = x
        turn = turned_by_groups if self.keys_rotated else np.copy
        return turn(to_integers(turn(padded), self.keys, most, half))

    def weighted(self, p: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values (n, heads, head_dim), weighted by p (heads, n, n), both rounded."""
        scale = abs(values).max(-1) / 127
        q = to_integers(values, self.values, 127) / np.where(scale > 0, scale, 1)[..., None]
        by = to_integers(p * scale.T[:, None, :], self.page, self.weights)
        return np.einsum("hij,jhd->ihd", by, q)


@dataclass(frozen=True)
class Matrix:
    """A matrix in float64."""

    stored: np.ndarray  # (rows, stride); the padding of int8r is none: what 64 numbers are, rotated back
    cols: int
    dtype: int

    @property
    def w(self) -> np.ndarray:
        """(rows, cols)"""
        return self.stored[:, : self.cols]


@dataclass
class Reference:
    """A model read from the bytes of a flat file; logits(ids) runs it."""

    data: bytes
    rounding: Rounding | None = None
    h: dict = field(init=False)

    about: list[dict] = field(init=False)  # what each llm_layer says

    def __post_init__(self) -> None:
        self.h = h = dict(zip(FIELDS, HEADER.unpack_from(self.data), strict=True))
        assert not any(h["reserved"])
        at = HEADER.size + h["text_size"]
        self.about = []
        for _ in range(h["n_layers"]):
            self.about.append(dict(zip(LAYER_FIELDS, LAYER.unpack_from(self.data, at), strict=True)))
            assert not any(self.about[-1]["reserved"])
            at += LAYER.size
        flags = 0
        for about in self.about:
            flags |= about["flags"]
        assert h["required"] & ~OF_HEADER == flags
        n = h["n_rope"] * h["rope_dim"]  # (n_rope, rope_dim / 2) pairs of frequency and magnitude
        self.rope = np.frombuffer(self.data, "<f4", n, at).reshape(h["n_rope"], -1, 2).astype(np.float64)
        at = up(at + 4 * n)

        def read(items: list[Item]) -> dict:
            nonlocal at
            found: dict = {}
            for name, rows, cols, dtype, count in items:
                for _ in range(count):
                    w = self.matrix(at, rows, cols, dtype)
                    found.setdefault(name, []).append(w.w if dtype == FP32 else w)
                    at = up(at + tensor_bytes(rows, cols, dtype))
            return found

        self.once = read(once_shapes(h))
        self.layers = [read(layer_shapes(h, about, i)) for i, about in enumerate(self.about)]
        assert at + 64 == h["file_size"] == len(self.data)

    def matrix(self, at: int, rows: int, cols: int, dtype: int) -> Matrix:
        """The tensor at this offset; checks that the padding is zero."""
        stride = up(cols)
        if dtype in (INT8, INT8R):
            w = untile(self.data, at, "i1", rows, stride, 4).astype(np.float64)
            scales = untile(self.data, at + up(rows, 16) * stride, "<f2", rows, stride // 64)
            w *= np.repeat(scales.astype(np.float64), 64, axis=1)
            if dtype == INT8R:
                return Matrix(rotated(w), cols, dtype)
        elif dtype == INT4:
            codebook = np.frombuffer(self.data, "i1", 16, at).astype(np.float64)
            # rows that fill the last tile have the scale 0, and may have any codes
            packed = untile(self.data, at + 64, "u1", up(rows, 16), stride // 2, 4)[:rows]
            packed = packed.reshape(rows, -1, 1, 4)
            q = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(rows, stride)
            scales = untile(self.data, at + 64 + up(rows, 16) * stride // 2, "<f2", rows, stride // 32)
            return Matrix(codebook[q] * np.repeat(scales.astype(np.float64), 32, axis=1), cols, dtype)
        elif dtype == FP16:
            w = untile(self.data, at, "<f2", rows, stride).astype(np.float64)
        else:
            w = np.frombuffer(self.data, "<f4", rows * stride, at).reshape(rows, -1).astype(np.float64)
        assert not w[:, cols:].any()
        return Matrix(w, cols, dtype)

    @property
    def kv(self) -> str | None:
        """How keys and values are kept; None: as they are."""
        if not self.rounding:
            return None
        default = "int8" if self.layers[0]["qkv"][0].dtype in (INT8R, INT4) else "fp16"
        return self.rounding.kv or default

    def product(self, x: np.ndarray, m: Matrix) -> np.ndarray:
        """x (n, cols) times the transposed matrix."""
        if not self.rounding:
            return x @ m.w.T
        padded = np.zeros((len(x), m.stored.shape[1]))
        padded[:, : m.cols] = x
        return self.rounding.activations(padded, m.dtype) @ m.stored.T

    def norm(self, x: np.ndarray, w: np.ndarray, flags: int = 0, eps: float | None = None) -> np.ndarray:
        """The norm over the last axis: weights (rows, cols), one for each entry of the axis before it or the
        same for all; and its biases as many, if these flags say so."""
        weights, biases = np.split(w, 2) if flags & NORM_BIAS else (w, np.zeros_like(w))
        x = x - x.mean(-1, keepdims=True) if flags & LAYER_NORM else x
        eps = self.h["norm_eps"] if eps is None else eps
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weights + biases

    def ffn(self, x: np.ndarray, number: int, part: str = "", e: int = 0, gain: float = 1) -> np.ndarray:
        """The feed-forward block of layer `number`, or one of its experts, for x (n, dim), times `gain`."""
        about, layer = self.about[number], self.layers[number]
        biases = None if part else biases_of(layer, e)
        inner = self.product(x, layer[f"{part}gate_up"][e]) + (biases[0] if biases else 0)
        numbers = layer["xielu_numbers"][0][0] if "xielu_numbers" in layer else None
        if about["flags"] & NO_GATE:
            hidden = activated(inner, about, numbers)
        else:
            gate, upper = np.split(inner, 2, axis=-1)
            if about["gate_limit"]:
                gate, upper = np.minimum(gate, about["gate_limit"]), upper.clip(*clamp(about))
            if about["gate_cut"]:
                least = gate.mean(-1, keepdims=True) + about["gate_cut"] * gate.std(-1, keepdims=True)
                gate = np.maximum(gate - least, 0)
            gate = activated(gate, about, numbers, about["gate_slope"] or 1)
            hidden = gate * (upper + about["up_shift"])
        return self.product(gain * hidden, layer[f"{part}down"][e]) + (gain * biases[1] if biases else 0)

    def mixture(self, x: np.ndarray, number: int, stream: np.ndarray) -> np.ndarray:
        """The mixture of experts for x (n, dim), a norm of the residual stream, token by token."""
        about, layer = self.about[number], self.layers[number]
        flags, out = about["flags"], np.zeros_like(x)
        apart = flags & SHARED_NORMS
        seen = self.norm(stream, layer["router_norm"][0][0]) if apart else x
        for i, row in enumerate(x):
            logits = layer["router"][0].w[: about["n_experts"]] @ seen[i]
            logits = logits + layer["router_logits"][0][0] if flags & ROUTER_LOGIT_BIAS else logits
            p = sigmoid(logits) if flags & ROUTER_SIGMOID else np.exp(log_softmax(logits))
            liking = p + layer["router_add"][0][0] if flags & ROUTER_BIAS else p.copy()
            if about["n_groups"]:
                groups = liking.reshape(about["n_groups"], -1)
                best = np.sort(groups, axis=1)[:, -(1 if flags & ROUTER_BEST else 2) :].sum(1)
                for group in np.argsort(-best, kind="stable")[about["n_active_groups"] :]:
                    groups[group] = -np.inf
            top = np.argsort(-liking, kind="stable")[: about["n_active"]]
            w = p[top] / p[top].sum() if flags & ROUTER_NORMALIZE else p[top]
            w = w * layer["router_scale"][0][0][top] if flags & ROUTER_SCALED else w
            for e, g in zip(top, w * about["expert_scale"], strict=True):
                given, gain = (row * g, 1) if flags & EXPERT_INPUT else (row, g)
                out[i] += self.ffn(given[None], number, "", e, gain)[0]
        if apart:
            x = self.norm(stream, layer["shared_norm"][0][0])
            shared = self.ffn(x, number, "shared_")
            shared = self.norm(shared, layer["shared_post"][0][0])
            out = self.norm(out, layer["experts_post"][0][0]) + shared
        elif about["shared_dim"]:
            shared = self.ffn(x, number, "shared_")
            gated = flags & SHARED_GATE
            out += shared * sigmoid(x @ layer["router"][0].w[-1])[:, None] if gated else shared
        return out

    def feed_forward(self, x: np.ndarray, number: int, stream: np.ndarray) -> np.ndarray:
        """The feed-forward block of layer `number` for x (n, dim), a norm of the residual stream, dense or a
        mixture."""
        if self.about[number]["ffn"] == EXPERTS:
            return self.mixture(x, number, stream)
        return self.ffn(x, number)

    def turned(self, x: np.ndarray, about: dict) -> np.ndarray:
        """Queries or keys (n, heads, head_dim) of positions 0 to n - 1, rotated."""
        half = x.shape[-1] // 2
        frequency, magnitude = self.rope[about["rope"], :half].T
        turn = (magnitude * np.exp(1j * np.arange(len(x))[:, None] * frequency))[:, None, :]
        z = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([z.real, z.imag], -1)

    def latent(self, qkv: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries (n, heads, latent_dim + turn_dim), keys (n, 1, the same) and values (n, 1, latent_dim) of a
        layer with latent attention, from what its first matrix made (n, rows)."""
        about, layer = self.about[number], self.layers[number]
        n, heads, head, eps = len(qkv), about["n_heads"], about["head_dim"], about["latent_eps"]
        rank, plain = about["q_rank"], head - about["turn_dim"]
        first = rank or heads * head
        q, c, t = np.split(qkv, [first, first + about["latent_dim"]], axis=1)
        if rank:
            q = self.product(self.norm(q, layer["q_norm"][0][0], eps=eps), layer["q_up"][0])
        q = q.reshape(n, heads, head)
        asked = [self.product(q[:, a, :plain], layer["k_up"][a]) for a in range(heads)]
        c = self.norm(c, layer["k_norm"][0][0], eps=eps)[:, None]
        queries = np.concatenate([np.stack(asked, 1), self.turned(q[..., plain:], about)], -1)
        return queries, np.concatenate([c, self.turned(t[:, None], about)], -1), c

    def attention(self, x: np.ndarray, number: int, kept: dict[int, tuple]) -> np.ndarray:
        """The attention block of layer `number` for x (n, dim), all positions of one sequence at once. Keys
        and values of each layer that makes its own are put into `kept`, where the others find them."""
        about, layer = self.about[number], self.layers[number]
        n, heads, head = len(x), about["n_heads"], about["head_dim"]
        kv = about["n_kv_heads"] * (about["kv_layer"] == number)
        qkv = self.product(x, layer["qkv"][0])
        if "bias" in layer:
            qkv = qkv + layer["bias"][0][0]
        if about["qkv_clip"]:
            own = qkv[:, : qkv.shape[1] - gate_dim(about)]
            qkv = np.concatenate([own.clip(-about["qkv_clip"], about["qkv_clip"]), qkv[:, own.shape[1] :]], 1)
        ends = np.cumsum([heads * head, kv * head, 0 if about["flags"] & V_IS_K else kv * value_dim(about)])
        q, k, v, gates = np.split(qkv, ends, axis=1)
        v = k if about["flags"] & V_IS_K else v
        flags = about["flags"]
        whole, late = flags & QK_NORM_WHOLE, flags & QK_NORM_LATE

        def turned(z: np.ndarray, norm: str) -> np.ndarray:
            """Into heads, rotated; each or all together normalised if the layer has this norm, before it or
            after."""
            if whole and norm in layer:
                z = self.norm(z, layer[norm][0], flags)
            z = z.reshape(n, -1, head)
            each = norm in layer and not whole
            if each and not late:
                z = self.norm(z, layer[norm][0], flags)
            z = self.turned(z, about)
            return self.norm(z, layer[norm][0], flags) if each and late else z

        if about["latent_dim"]:
            q, k, v = self.latent(qkv, number)
        else:
            q = turned(q, "q_norm")
        if about["query_span"]:
            spans = (np.arange(n) + about["query_shift"]) // about["query_span"]
            q = q * (1 + about["query_growth"] * np.log1p(spans))[:, None, None]
        if kv:
            if not about["latent_dim"]:
                k, v = turned(k, "k_norm"), v.reshape(n, -1, value_dim(about))
            v = self.norm(v, np.ones(value_dim(about))) if about["flags"] & V_NORM else v
            if self.kv == "fp16":
                k, v = to_half(k), to_half(v)
            kept[number] = (self.rounding.keys_of(k, 127, half=True) if self.kv == "int8" else k), v
        if self.kv == "int8":
            q = self.rounding.keys_of(q, self.rounding.queries, half=False)
        k, v = (np.repeat(z, heads // about["n_kv_heads"], axis=1) for z in kept[about["kv_layer"]])
        scores = capped(np.einsum("ihd,jhd->hij", q, k) * about["attn_scale"], about["attn_cap"])
        past = np.arange(n)[:, None] - np.arange(n)  # how far position j lies before i
        seen = (past >= 0) & (past < (about["window"] or n))
        if about["flags"] & CHUNKED:
            chunk = np.arange(n) // about["window"]
            seen = (past >= 0) & (chunk[:, None] == chunk)
        scores = np.where(seen, scores, -np.inf)
        if about["flags"] & SINK:
            scores = np.concatenate([scores, np.tile(layer["sinks"][0].reshape(-1, 1, 1), (1, n, 1))], axis=2)
        p = np.exp(log_softmax(scores))[..., :n]
        out = self.rounding.weighted(p, v) if self.kv == "int8" else np.einsum("hij,jhd->ihd", p, v)
        if about["latent_dim"]:
            out = np.stack([self.product(out[:, a], layer["v_up"][a]) for a in range(heads)], 1)
        if about["flags"] & OUT_GATE:
            by = np.logaddexp(0, gates) if about["flags"] & OUT_GATE_SOFTPLUS else sigmoid(gates)
            out = out * by.reshape(n, heads, -1)
        result = self.product(out.reshape(n, -1), layer["attn_out"][0])
        return result + layer["out_bias"][0][0] if about["flags"] & ATTN_OUT_BIAS else result

    def convolved(self, x: np.ndarray, number: int) -> np.ndarray:
        """x (n, channels), each channel with its own kernel over this position and those before."""
        w = self.layers[number]["conv"][0][0].reshape(-1, x.shape[1])
        padded = np.concatenate([np.zeros((len(w) - 1, x.shape[1])), x])
        return sum(w[j] * padded[j : j + len(x)] for j in range(len(w)))

    def short_conv(self, x: np.ndarray, number: int) -> np.ndarray:
        """The gated short convolution for x (n, dim) of one sequence."""
        layer = self.layers[number]
        b, c, inner = np.split(self.product(x, layer["qkv"][0]), 3, axis=1)
        return self.product(c * self.convolved(b * inner, number), layer["attn_out"][0])

    def delta_rule(self, x: np.ndarray, number: int) -> np.ndarray:
        """The gated delta rule for x (n, dim) of one sequence, token by token."""
        about, layer, n = self.about[number], self.layers[number], len(x)
        key, value, heads = about["delta_key_dim"], about["delta_value_dim"], about["delta_heads"]
        k_dim, each = about["delta_key_heads"] * key, heads // about["delta_key_heads"]
        qkv, z = np.split(self.product(x, layer["qkv"][0]), [2 * k_dim + heads * value], axis=1)
        qkv = self.convolved(qkv, number)
        q, k, v = np.split(qkv * sigmoid(qkv), [k_dim, 2 * k_dim], axis=1)
        q, k = (np.repeat(part.reshape(n, -1, key), each, axis=1) for part in (q, k))
        q, k = (part / np.sqrt((part * part).sum(-1, keepdims=True) + 1e-6) for part in (q, k))
        q, v = q * about["attn_scale"], v.reshape(n, heads, value)
        b, a = np.split(x @ layer["state_gates"][0].w.T, 2, axis=1)
        bias, rate = np.split(layer["decay"][0][0], 2)
        decay, strength = np.exp(rate * np.logaddexp(0, a + bias)), sigmoid(b)
        state, out = np.zeros((heads, key, value)), np.zeros((n, heads, value))
        for t in range(n):
            state *= decay[t][:, None, None]
            change = (v[t] - np.einsum("hkv,hk->hv", state, k[t])) * strength[t][:, None]
            state += np.einsum("hk,hv->hkv", k[t], change)
            out[t] = np.einsum("hkv,hk->hv", state, q[t])
        z = z.reshape(n, heads, value)
        out = self.norm(out, layer["state_norm"][0][0]) * z * sigmoid(z)
        return self.product(out.reshape(n, -1), layer["attn_out"][0])

    def logits(self, ids: list[int]) -> np.ndarray:
        """(len(ids), vocab_size) float64 logits of one sequence."""
        out = self.once["embed" if self.h["required"] & TIED else "output"][0]
        bias = self.once["output_add"][0][0] if "output_add" in self.once else 0
        return capped(self.product(self.states(ids), out) + bias, self.h["logit_cap"])

    def own_embeddings(self, ids: list[int]) -> np.ndarray:
        """(len(ids), n_layers, ple_dim): what each layer has of its own for each token."""
        shape, rows = (len(ids), self.h["n_layers"], self.h["ple_dim"]), np.array(ids)
        projected = self.product(self.once["embed"][0].w[rows], self.once["ple_proj"][0]).reshape(shape)
        table = self.once["ple_embed"][0].w[rows].reshape(shape) * self.h["ple_scale"]
        return self.norm(projected, self.once["ple_norm"][0][0]) + table

    def states(self, ids: list[int]) -> np.ndarray:
        """(len(ids), dim) float64: what the logits are made of."""
        h, kept = self.h, {}
        x = self.once["embed"][0].w[np.array(ids)] * h["embed_scale"]
        own = self.own_embeddings(ids) if h["ple_dim"] else None
        if "positions" in self.once:
            x = x + self.once["positions"][0].w[: len(ids)]
        if "embed_norm" in self.once:
            x = self.norm(x, self.once["embed_norm"][0], h["required"])
        others = self.open_streams(x)

        def add(x: np.ndarray, seen: np.ndarray, number: int, block: str, compute: Callable) -> np.ndarray:
            """The residual stream after a block, which sees it as it is or was."""
            layer, flags = self.layers[number], self.about[number]["flags"]
            norm = "attn_norm" if flags & ONE_NORM else f"{block}_norm"
            read = seen if flags & NO_PRE_NORM else self.norm(seen, layer[norm][0], flags)
            y = compute(read, number, seen)
            if flags & POST_NORM:
                y = self.norm(y, layer[f"{block}_post_norm"][0], flags)
            past = self.past(read, number) if block == "attn" else None
            x = x + y * h["residual_scale"]
            return x if past is None else (x + past) / 2**0.5

        for number in range(h["n_layers"]):
            layer, about = self.layers[number], self.about[number]
            if others:
                x, *others = first, *_ = self.predicted(x, others, layer)
            before = x
            if about["mixer"] == SHORT_CONV:
                x = add(x, x, number, "attn", lambda y, i, _: self.short_conv(y, i))
            elif about["mixer"] == DELTA_RULE:
                x = add(x, x, number, "attn", lambda y, i, _: self.delta_rule(y, i))
            else:
                x = add(x, x, number, "attn", lambda y, i, _: self.attention(y, i, kept))
            x = add(x, before if about["flags"] & PARALLEL else x, number, "ffn", self.feed_forward)
            if others:
                x, *others = self.corrected(x, [first, *others], layer)
            if own is not None:
                read = x * layer["stream_scale"][0][0] if others else x
                gate = activated(self.product(read, layer["ple_gate"][0]), about)
                y = self.product(gate * own[:, number], layer["ple_out"][0])
                y = self.norm(y, layer["ple_post_norm"][0][0]) * h["residual_scale"]
                x, others = (x, [other + y for other in others]) if others else (x + y, others)
            if about["flags"] & LAYER_SCALED:
                x = x * layer["layer_scale"][0][0]
        back = self.once.get("stream_out", [])
        products = [self.product(other, w) for other, w in zip(others, back, strict=True)]
        x = (x + sum(y * as_large_as(x, y) for y in products)) / (1 + len(products))
        return self.norm(x, self.once["out_norm"][0], h["required"])

    def past(self, x: np.ndarray, number: int) -> np.ndarray | None:
        """What goes past the attention of layer `number`, which reads x (n, dim)."""
        layer = self.layers[number]
        if "laurel_left" not in layer:
            return None
        y = self.product(self.product(x, layer["laurel_left"][0]), layer["laurel_right"][0])
        return x + self.norm(y, layer["laurel_norm"][0][0])

    def open_streams(self, x: np.ndarray) -> list[np.ndarray]:
        """All residual streams but the first, x (n, dim)."""
        products = [self.product(x, w) for w in self.once.get("stream_in", [])]
        return [y * as_large_as(x, y) for y in products]

    def modes(self, x: np.ndarray, layer: dict) -> np.ndarray:
        """How the first stream x (n, dim) says that streams are mixed, (n, n_streams)."""
        return np.tanh(self.norm(x, layer["stream_norm"][0][0]) @ layer["stream_router"][0].w.T)

    def predicted(self, x: np.ndarray, others: list[np.ndarray], layer: dict) -> list[np.ndarray]:
        """All streams before the blocks of a layer."""
        n, streams = self.h["n_streams"], np.stack([x, *others])
        weights = np.einsum("kji,ni->nkj", layer["stream_predict"][0].reshape(n, n, n), self.modes(x, layer))
        return list(streams + np.einsum("nkj,jnd->knd", weights, streams))

    def corrected(self, x: np.ndarray, streams: list[np.ndarray], layer: dict) -> list[np.ndarray]:
        """All streams after the blocks of a layer, which have made x of the first one."""
        n = self.h["n_streams"]
        weights = 1 + self.modes(x, layer) @ layer["stream_correct"][0].reshape(n, n).T
        return [p + (x - streams[0]) * by[:, None] for p, by in zip(streams, weights.T, strict=True)]


def as_large_as(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What makes each row of y (n, dim) as large as x's, by their root mean squares; (n, 1)."""
    return np.sqrt((x * x).mean(-1) / np.maximum((y * y).mean(-1), 1e-5))[:, None]


def pack_sections(sections: Mapping[int, bytes]) -> bytes:
    """The section area."""
    text = b""
    for tag, payload in sections.items():
        text += struct.pack("<IIQ", tag, 0, len(payload)) + payload
        text += bytes(-len(text) % 16)
    return text + bytes(-len(text) % 64)


def dtypes_of(names: list[str], kind: int, others: Mapping[str, int], first: int, size: int) -> bytes:
    """The dtypes of these matrices: `kind` but for the router and a state's gates, which are fp16, or what
    `others` says."""
    out = bytearray(size)
    for name in names:
        precise = name.endswith("router") or name == "state_gates"
        out[IDS[name] - first] = others.get(name, FP16 if precise else kind)
    return bytes(out)


def describe(number: int, given: dict[str, Any]) -> dict[str, Any]:
    """An llm_layer: the fields that are given, what follows from them, zeros."""
    about = dict.fromkeys(LAYER_FIELDS, 0) | {"kv_layer": number, "reserved": bytes(52)}
    about |= {key: value for key, value in given.items() if key in about and value is not None}
    if about["mixer"]:
        about |= dict.fromkeys(("n_heads", "n_kv_heads", "head_dim", "window", "rope", "attn_cap"), 0)
        about |= dict.fromkeys(
            ("value_dim", "query_growth", "query_span", "query_shift", "low_rank", "qkv_clip"), 0
        )
        about["flags"] &= ~OF_ATTENTION
    if not about["n_experts"]:
        about |= {"n_active": 0, "shared_dim": 0, "expert_scale": 1.0, "n_groups": 0, "n_active_groups": 0}
        about["flags"] &= ~OF_EXPERTS
    if about["kv_layer"] != number:
        about["flags"] &= ~(V_NORM | V_IS_K)
    about["flags"] &= ~OF_HEADER
    about["ffn"] = EXPERTS if about["n_experts"] else DENSE
    if given["attn_scale"] is None:
        about["attn_scale"] = max(1, about["head_dim"], about["delta_key_dim"]) ** -0.5
    matrices = ["qkv", "attn_out", "gate_up", "down"] + ["router"] * bool(about["n_experts"])
    matrices += ["shared_gate_up", "shared_down"] * bool(about["shared_dim"])
    matrices += ["ple_gate", "ple_out"] * bool(given["ple_dim"])
    matrices += ["laurel_left", "laurel_right"] * bool(about["low_rank"])
    matrices += ["stream_router"] * (given["n_streams"] > 1)
    matrices += ["k_up", "v_up"] * bool(about["latent_dim"]) + ["q_up"] * bool(about["q_rank"])
    matrices += ["state_gates"] * (about["mixer"] == DELTA_RULE)
    about["dtype"] = dtypes_of(matrices, given["dtype"], given["dtypes"], 16, 48)
    return about


# How large random weights are
GAINS = {
    "embed": 1.0,
    "ple_embed": 1.0,
    "bias": 0.5,
    "router": 2.0,
    "router_add": 0.1,
    "sinks": 1.0,
    "out_bias": 0.5,
    "router_logits": 1.0,
    "gate_up_bias": 0.5,
    "down_bias": 0.5,
    "stream_predict": 0.1,
    "stream_correct": 0.1,
    "positions": 1.0,
    "output_add": 0.5,
}


ONES = ("norm", "numbers", "_post", "_scale")  # ends of the names of vectors that are about 1


def make_model(
    seed: int = 0,
    *,
    dtype: int = FP16,
    flags: int = 0,
    dim: int = 64,
    ffn_dim: int = 128,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 16,
    vocab_size: int = 96,
    context: int = 128,
    n_experts: int = 0,
    n_active: int = 0,
    shared_dim: int = 0,
    n_rope: int = 1,
    theta: float = 10000.0,
    magnitude: float = 1.0,
    windows: Sequence[int] = (),
    attn_scale: float | None = None,
    attn_cap: float = 0.0,
    logit_cap: float = 0.0,
    embed_scale: float = 1.0,
    residual_scale: float = 1.0,
    expert_scale: float = 1.0,
    ple_dim: int = 0,
    ple_scale: float = 0.0,
    n_streams: int = 0,
    activation: int = SILU,
    extra: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, int] | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    sections: dict[int, bytes] | None = None,
    checksums: bool = False,
) -> bytes:
    """The bytes of a flat file with random weights, large enough that attention and every feature matter.
    Layers take the rotary tables and `windows` (none: 0) in turn.

    dtypes     of matrices that have another one, by name ("embed", "down")
    extra      other fields of all layers
    layers     what is different in each layer: fields of llm_layer, dtype (an int) and dtypes. With
               n_experts = 0 a layer has nothing of what goes with experts. Layers behind the last entry are
               as the arguments say.
    checksums  whether to add that section"""
    rng = np.random.default_rng(seed)
    turns = windows or (0,)
    usual = dict(
        flags=flags,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        attn_scale=attn_scale,
        attn_cap=attn_cap,
        activation=activation,
        ffn_dim=ffn_dim,
        n_experts=n_experts,
        n_active=n_active,
        shared_dim=shared_dim,
        expert_scale=expert_scale,
        dtype=dtype,
        dtypes=dtypes or {},
        **(extra or {}),
        ple_dim=ple_dim,
        n_streams=n_streams,
    )
    assert len(layers) <= n_layers
    abouts = []
    for i in range(n_layers):
        place = {"rope": i % n_rope, "window": turns[i % len(turns)]}
        abouts.append(describe(i, usual | place | dict(layers[i] if i < len(layers) else {})))
    required = flags & OF_HEADER
    for about in abouts:
        required |= about["flags"]
    rope_dim = max(2, *(about["turn_dim"] or about["head_dim"] for about in abouts))
    once = once_matrices(flags)
    once += ["ple_embed", "ple_proj"] * bool(ple_dim)
    once += ["stream_in", "stream_out"] * (n_streams > 1)
    h: dict[str, Any] = dict(
        magic=b"PYLLM\r\n\x1a",
        version=4,
        n_layers=n_layers,
        file_size=0,
        text_size=0,
        required=required,
        optional=HAS_CHECKSUMS if checksums else 0,
        dim=dim,
        vocab_size=vocab_size,
        context=context,
        n_rope=n_rope,
        rope_dim=rope_dim,
        norm_eps=1e-5,
        embed_scale=embed_scale,
        residual_scale=residual_scale,
        logit_cap=logit_cap,
        dtype=dtypes_of(once, dtype, dtypes or {}, 0, 16),
        ple_dim=ple_dim,
        ple_scale=ple_scale,
        n_streams=n_streams,
        reserved=bytes(136),
        checksum=0,
    )
    body = b"".join(LAYER.pack(*(about[name] for name in LAYER_FIELDS)) for about in abouts)
    for i in range(n_rope):
        frequency = 1.0 / (theta * (i + 1)) ** (np.arange(0, rope_dim, 2) / rope_dim)
        body += np.stack([frequency, np.full_like(frequency, magnitude)], -1).astype("<f4").tobytes()
    tensors: list[bytes] = []

    def write(items: list[Item]) -> None:
        for name, rows, cols, kind, count in items:
            for _ in range(count):
                w = np.zeros((rows, up(cols)))
                gain = GAINS.get(name, 1.5)
                random = rng.standard_normal((rows, cols))
                shrunk = gain * random / (1 if name in GAINS and name != "router" else cols**0.5)
                w[:, :cols] = 1 + 0.3 * random if name.endswith(ONES) else shrunk
                if name == "decay":  # the rates are negative
                    w[:, cols // 2 : cols] = -abs(w[:, cols // 2 : cols]) - 0.1
                tensors.append(encode(w, kind))

    write(once_shapes(h))
    for i, about in enumerate(abouts):
        write(layer_shapes(h, about, i))
    found = dict(sections or {})
    if checksums:
        found[CHECKSUMS] = bytes(8 * (2 + len(tensors)))
        area = pack_sections(found)
        text = area[: area.rindex(struct.pack("<IIQ", CHECKSUMS, 0, len(found[CHECKSUMS])))]
        found[CHECKSUMS] = b"".join(struct.pack("<Q", xxh64(part)) for part in [text, body, *tensors])
    area = pack_sections(found)
    h["text_size"] = len(area)
    start = HEADER.size + len(area) + len(body)
    parts = [area, body, bytes(-start % 64)] + [raw + bytes(-len(raw) % 64) for raw in tensors] + [bytes(64)]
    h["file_size"] = HEADER.size + sum(map(len, parts))
    return seal(HEADER.pack(*(h[name] for name in FIELDS))) + b"".join(parts)


def xxh64(data: bytes) -> int:
    """The checksum of a part."""
    import xxhash

    return xxhash.xxh64(data).intdigest()
