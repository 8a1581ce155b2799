"""An independent forward pass over a flat file, in NumPy float64, for tests.

It shares no code with the engine: the file's layout is worked out here a second time from the description in
llm.h, matrices are dequantized to float64, and attention is computed over all positions at once. It does not
round keys and values to fp16 nor activations to int16, which is what the tolerances in the tests allow for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

HEADER = struct.Struct("<8sIIQQ13I7f136sQ")
FIELDS = (
    "magic version dtype file_size text_size flags dim ffn_dim n_layers n_heads n_kv_heads head_dim"
    " vocab_size context n_rope n_experts n_active shared_dim norm_eps attn_scale attn_cap logit_cap"
    " embed_scale residual_scale expert_scale reserved checksum"
).split()
TIED, QKV_BIAS, QK_NORM, QK_NORM_WHOLE, NO_PRE_NORM, POST_NORM, GELU = 1, 2, 4, 8, 16, 32, 64
ROUTER_NORMALIZE, ROUTER_SIGMOID, ROUTER_BIAS, SHARED_GATE = 128, 256, 512, 1024
FP16, INT8, FP32 = 0, 1, 2


def up(n: int, to: int = 64) -> int:
    """n rounded up to a multiple of `to`."""
    return -(-n // to) * to


def shapes(h: dict) -> tuple[list, list]:
    """(name, rows, cols, dtype, count) of the tensors that occur once and of those in a layer, in file
    order."""
    q, kv, experts = h["n_heads"] * h["head_dim"], h["n_kv_heads"] * h["head_dim"], max(1, h["n_experts"])
    dim, ffn, shared, dtype, flags = h["dim"], h["ffn_dim"], h["shared_dim"], h["dtype"], h["flags"]
    widths = {"q": q, "k": kv} if flags & QK_NORM_WHOLE else {"q": h["head_dim"], "k": h["head_dim"]}
    once = [("embed", h["vocab_size"], dim, dtype, 1), ("out_norm", 1, dim, FP32, 1)]
    once += [] if flags & TIED else [("output", h["vocab_size"], dim, dtype, 1)]
    layer = [] if flags & NO_PRE_NORM else [("attn_norm", 1, dim, FP32, 1)]
    layer += [("qkv", q + 2 * kv, dim, dtype, 1)]
    layer += [("bias", 1, q + 2 * kv, FP32, 1)] if flags & QKV_BIAS else []
    layer += [(f"{x}_norm", 1, widths[x], FP32, 1) for x in "qk"] if flags & QK_NORM else []
    layer += [("attn_out", dim, q, dtype, 1)]
    layer += [("attn_post_norm", 1, dim, FP32, 1)] if flags & POST_NORM else []
    layer += [] if flags & NO_PRE_NORM else [("ffn_norm", 1, dim, FP32, 1)]
    if h["n_experts"]:
        layer += [("router", h["n_experts"] + bool(flags & SHARED_GATE), dim, FP16, 1)]
    layer += [("router_add", 1, h["n_experts"], FP32, 1)] if flags & ROUTER_BIAS else []
    layer += [("gate_up", 2 * ffn, dim, dtype, experts), ("down", dim, ffn, dtype, experts)]
    if shared:
        layer += [("shared_gate_up", 2 * shared, dim, dtype, 1), ("shared_down", dim, shared, dtype, 1)]
    layer += [("ffn_post_norm", 1, dim, FP32, 1)] if flags & POST_NORM else []
    return once, layer


def tensor_bytes(rows: int, cols: int, dtype: int) -> int:
    """The bytes of one tensor, without the padding up to the next."""
    groups = (rows if dtype == FP32 else up(rows, 16)) * up(cols) // 64
    return groups * {FP16: 128, INT8: 66, FP32: 256}[dtype]


def tile(w: np.ndarray, width: int = 1) -> bytes:
    """(rows, n) in tiles of 16 rows, the last one filled up with zeros: [tile][n / width][16][width]."""
    padded = np.zeros((up(len(w), 16), w.shape[1]), w.dtype)
    padded[: len(w)] = w
    return padded.reshape(-1, 16, w.shape[1] // width, width).swapaxes(1, 2).tobytes()


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


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Natural-log probabilities over the last axis, float64."""
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    """Soft-capped (Gemma 2); a cap of 0 is none."""
    return cap * np.tanh(x / cap) if cap else x


@dataclass
class Reference:
    """A model read from the bytes of a flat file; logits(ids) runs it."""

    data: bytes
    h: dict = field(init=False)

    def __post_init__(self) -> None:
        self.h = h = dict(zip(FIELDS, HEADER.unpack_from(self.data), strict=True))
        at = 256 + h["text_size"]
        self.table, self.window = (
            np.frombuffer(self.data, "<u4", 4 * h["n_layers"], at).reshape(-1, 4).T[:2].tolist()
        )
        at += 16 * h["n_layers"]
        n = h["n_rope"] * h["head_dim"]  # (n_rope, head_dim / 2) pairs of frequency and magnitude
        self.rope = np.frombuffer(self.data, "<f4", n, at).reshape(h["n_rope"], -1, 2).astype(np.float64)
        at = up(at + 4 * n)
        once, layer = shapes(h)

        def read(items: list) -> dict:
            nonlocal at
            found: dict = {}
            for name, rows, cols, dtype, count in items:
                for _ in range(count):
                    found.setdefault(name, []).append(self.matrix(at, rows, cols, dtype))
                    at = up(at + tensor_bytes(rows, cols, dtype))
            return found

        self.once = read(once)
        self.layers = [read(layer) for _ in range(h["n_layers"])]
        assert at + 64 == h["file_size"] == len(self.data)

    def matrix(self, at: int, rows: int, cols: int, dtype: int) -> np.ndarray:
        """(rows, cols) float64 of the tensor at this offset; checks that the padding is zero."""
        stride = up(cols)
        if dtype == INT8:
            w = untile(self.data, at, "i1", rows, stride, 2).astype(np.float64)
            scales = untile(self.data, at + up(rows, 16) * stride, "<f2", rows, stride // 64)
            w *= np.repeat(scales.astype(np.float64), 64, axis=1)
        elif dtype == FP16:
            w = untile(self.data, at, "<f2", rows, stride).astype(np.float64)
        else:
            w = np.frombuffer(self.data, "<f4", rows * stride, at).reshape(rows, -1).astype(np.float64)
        assert not w[:, cols:].any()
        return w[:, :cols]

    def norm(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """RMSNorm over the last axis."""
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.h["norm_eps"]) * w

    def ffn(self, x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        """The gated feed-forward block for x (n, dim)."""
        gate, upper = np.split(x @ gate_up.T, 2, axis=-1)
        if self.h["flags"] & GELU:  # Hendrycks and Gimpel 2016, the tanh form
            gate = gate / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        else:
            gate = gate * sigmoid(gate)
        return (gate * upper) @ down.T

    def mixture(self, x: np.ndarray, layer: dict) -> np.ndarray:
        """The mixture of experts for x (n, dim), token by token."""
        h, out = self.h, np.zeros_like(x)
        for i, row in enumerate(x):
            logits = layer["router"][0][: h["n_experts"]] @ row
            p = sigmoid(logits) if h["flags"] & ROUTER_SIGMOID else np.exp(log_softmax(logits))
            liking = p + layer["router_add"][0][0] if h["flags"] & ROUTER_BIAS else p
            top = np.argsort(-liking, kind="stable")[: h["n_active"]]
            w = p[top] / p[top].sum() if h["flags"] & ROUTER_NORMALIZE else p[top]
            for e, g in zip(top, w * h["expert_scale"], strict=True):
                out[i] += g * self.ffn(row[None], layer["gate_up"][e], layer["down"][e])[0]
        if h["shared_dim"]:
            shared = self.ffn(x, layer["shared_gate_up"][0], layer["shared_down"][0])
            gated = h["flags"] & SHARED_GATE
            out += shared * sigmoid(x @ layer["router"][0][-1])[:, None] if gated else shared
        return out

    def attention(self, x: np.ndarray, layer: dict, number: int) -> np.ndarray:
        """The attention block of layer `number` for x (n, dim), all positions of one sequence at once."""
        h = self.h
        n, heads, kv, hd = len(x), h["n_heads"], h["n_kv_heads"], h["head_dim"]
        qkv = x @ layer["qkv"][0].T
        if "bias" in layer:
            qkv = qkv + layer["bias"][0][0]
        q, k, v = np.split(qkv, [heads * hd, (heads + kv) * hd], axis=1)
        if h["flags"] & QK_NORM_WHOLE:
            q, k = self.norm(q, layer["q_norm"][0][0]), self.norm(k, layer["k_norm"][0][0])
        q, k, v = (z.reshape(n, -1, hd) for z in (q, k, v))
        if h["flags"] & QK_NORM and not h["flags"] & QK_NORM_WHOLE:
            q, k = self.norm(q, layer["q_norm"][0][0]), self.norm(k, layer["k_norm"][0][0])
        frequency, magnitude = self.rope[self.table[number]].T
        turn = (magnitude * np.exp(1j * np.arange(n)[:, None] * frequency))[:, None, :]
        q, k = (((z[..., : hd // 2] + 1j * z[..., hd // 2 :]) * turn) for z in (q, k))
        q, k = (np.concatenate([z.real, z.imag], -1) for z in (q, k))
        k, v = (np.repeat(z, heads // kv, axis=1) for z in (k, v))
        scores = capped(np.einsum("ihd,jhd->hij", q, k) * h["attn_scale"], h["attn_cap"])
        past = np.arange(n)[:, None] - np.arange(n)  # how far position j lies before i
        seen = (past >= 0) & (past < (self.window[number] or n))
        p = np.exp(log_softmax(np.where(seen, scores, -np.inf)))
        return np.einsum("hij,jhd->ihd", p, v).reshape(n, -1) @ layer["attn_out"][0].T

    def logits(self, ids: list[int]) -> np.ndarray:
        """(len(ids), vocab_size) float64 logits of one sequence."""
        h = self.h
        x = self.once["embed"][0][np.array(ids)] * h["embed_scale"]

        def add(x: np.ndarray, layer: dict, block: str, compute: Callable) -> np.ndarray:
            """The residual stream after a block."""
            read = x if h["flags"] & NO_PRE_NORM else self.norm(x, layer[f"{block}_norm"][0][0])
            y = compute(read)
            if h["flags"] & POST_NORM:
                y = self.norm(y, layer[f"{block}_post_norm"][0][0])
            return x + y * h["residual_scale"]

        for number, layer in enumerate(self.layers):
            x = add(x, layer, "attn", lambda y, of=layer, i=number: self.attention(y, of, i))
            if h["n_experts"]:
                x = add(x, layer, "ffn", lambda y, of=layer: self.mixture(y, of))
            else:
                x = add(x, layer, "ffn", lambda y, of=layer: self.ffn(y, of["gate_up"][0], of["down"][0]))
        out = self.once["embed" if h["flags"] & TIED else "output"][0]
        return capped(self.norm(x, self.once["out_norm"][0][0]) @ out.T, h["logit_cap"])


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
    sections: dict[int, bytes] | None = None,
) -> bytes:
    """The bytes of a flat file with random weights, large enough that attention and every feature matter.
    Layers take the rotary tables and `windows` (none: 0) in turn."""
    rng = np.random.default_rng(seed)
    text = b""
    for tag, payload in (sections or {}).items():
        text += (
            struct.pack("<IIQ", tag, 0, len(payload)) + payload + bytes(up(len(payload), 16) - len(payload))
        )
    text += bytes(up(len(text)) - len(text))
    h = dict(
        magic=b"PYLLM\r\n\x1a",
        version=3,
        dtype=dtype,
        file_size=0,
        text_size=len(text),
        flags=flags,
        dim=dim,
        ffn_dim=ffn_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        context=context,
        n_rope=n_rope,
        n_experts=n_experts,
        n_active=n_active,
        shared_dim=shared_dim,
        norm_eps=1e-5,
        attn_scale=head_dim**-0.5 if attn_scale is None else attn_scale,
        attn_cap=attn_cap,
        logit_cap=logit_cap,
        embed_scale=embed_scale,
        residual_scale=residual_scale,
        expert_scale=expert_scale,
        reserved=bytes(136),
        checksum=0,
    )
    turns = windows or (0,)
    body = b"".join(struct.pack("<IIII", i % n_rope, turns[i % len(turns)], 0, 0) for i in range(n_layers))
    for i in range(n_rope):
        frequency = 1.0 / (theta * (i + 1)) ** (np.arange(0, head_dim, 2) / head_dim)
        body += np.stack([frequency, np.full_like(frequency, magnitude)], -1).astype("<f4").tobytes()
    start = 256 + len(text) + len(body)
    parts = [body, bytes(up(start) - start)]

    def write(items: list) -> None:
        for name, rows, cols, kind, count in items:
            for _ in range(count):
                w = np.zeros((rows, up(cols)))
                gain = {"embed": 1.0, "bias": 0.5, "router": 2.0, "router_add": 0.1}.get(name, 1.5)
                w[:, :cols] = (
                    1 + 0.3 * rng.standard_normal((rows, cols))
                    if name.endswith("norm")
                    else gain
                    * rng.standard_normal((rows, cols))
                    / (1 if name in ("embed", "bias", "router_add") else cols**0.5)
                )
                if kind == INT8:
                    groups = w.reshape(rows, -1, 64)
                    scale = (abs(groups).max(-1) / 127).astype("<f2")
                    q = np.rint(groups / np.maximum(scale.astype(float), 1e-8)[..., None]).clip(-127, 127)
                    raw = tile(q.astype("i1").reshape(rows, -1), 2) + tile(scale)
                else:
                    raw = tile(w.astype("<f2")) if kind == FP16 else w.astype("<f4").tobytes()
                parts.append(raw + bytes(up(len(raw)) - len(raw)))

    once, layer = shapes(h)
    write(once)
    for _ in range(n_layers):
        write(layer)
    parts.append(bytes(64))
    h["file_size"] = 256 + len(text) + sum(map(len, parts))
    return seal(HEADER.pack(*(h[name] for name in FIELDS))) + text + b"".join(parts)
