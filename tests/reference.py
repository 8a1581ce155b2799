"""An independent forward pass over a flat file, in NumPy float64, for tests.

It shares no code with the engine: the file's layout is worked out here a second time from the description in
llm.h, matrices are dequantized to float64, and attention is computed over all positions at once. It does not
round keys and values to fp16 nor activations to int16, which is what the tolerances in the tests allow for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

HEADER = struct.Struct("<8sIIQQ12Iff160sQ")
FIELDS = (
    "magic version dtype file_size text_size flags dim ffn_dim n_layers n_heads n_kv_heads head_dim"
    " vocab_size context n_rope n_experts n_active norm_eps attn_scale reserved checksum"
).split()
TIED, QKV_BIAS, QK_NORM, ROUTER_NORMALIZE = 1, 2, 4, 8
FP16, INT8, FP32 = 0, 1, 2


def up(n: int, to: int = 64) -> int:
    """n rounded up to a multiple of `to`."""
    return -(-n // to) * to


def shapes(h: dict) -> tuple[list, list]:
    """(name, rows, cols, dtype, count) of the tensors that occur once and of those in a layer, in file
    order."""
    q, kv, experts = h["n_heads"] * h["head_dim"], h["n_kv_heads"] * h["head_dim"], max(1, h["n_experts"])
    dim, ffn, dtype, flags = h["dim"], h["ffn_dim"], h["dtype"], h["flags"]
    once = [("embed", h["vocab_size"], dim, dtype, 1), ("out_norm", 1, dim, FP32, 1)]
    once += [] if flags & TIED else [("output", h["vocab_size"], dim, dtype, 1)]
    layer = [("attn_norm", 1, dim, FP32, 1), ("qkv", q + 2 * kv, dim, dtype, 1)]
    layer += [("bias", 1, q + 2 * kv, FP32, 1)] if flags & QKV_BIAS else []
    layer += [(f"{x}_norm", 1, h["head_dim"], FP32, 1) for x in "qk"] if flags & QK_NORM else []
    layer += [("attn_out", dim, q, dtype, 1), ("ffn_norm", 1, dim, FP32, 1)]
    layer += [("router", h["n_experts"], dim, FP16, 1)] if h["n_experts"] else []
    layer += [("gate_up", 2 * ffn, dim, dtype, experts), ("down", dim, ffn, dtype, experts)]
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


@dataclass
class Reference:
    """A model read from the bytes of a flat file; logits(ids) runs it."""

    data: bytes
    h: dict = field(init=False)

    def __post_init__(self) -> None:
        self.h = h = dict(zip(FIELDS, HEADER.unpack_from(self.data), strict=True))
        at = 256 + h["text_size"]
        self.layer_rope = [struct.unpack_from("<I", self.data, at + 16 * i)[0] for i in range(h["n_layers"])]
        at += 16 * h["n_layers"]
        n = h["n_rope"] * h["head_dim"] // 2
        self.rope = np.frombuffer(self.data, "<f4", n, at).reshape(h["n_rope"], -1)
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
        return (gate / (1 + np.exp(-gate)) * upper) @ down.T

    def mixture(self, x: np.ndarray, layer: dict) -> np.ndarray:
        """The mixture of experts for x (n, dim), token by token."""
        out = np.zeros_like(x)
        for i, row in enumerate(x):
            logits = layer["router"][0] @ row
            p = np.exp(logits - logits.max())
            p /= p.sum()
            top = np.argsort(-p, kind="stable")[: self.h["n_active"]]
            w = p[top] / p[top].sum() if self.h["flags"] & ROUTER_NORMALIZE else p[top]
            for e, g in zip(top, w, strict=True):
                out[i] += g * self.ffn(row[None], layer["gate_up"][e], layer["down"][e])[0]
        return out

    def logits(self, ids: list[int]) -> np.ndarray:
        """(len(ids), vocab_size) float64 logits of one sequence."""
        h = self.h
        n, heads, kv, hd = len(ids), h["n_heads"], h["n_kv_heads"], h["head_dim"]
        x = self.once["embed"][0][np.array(ids)]
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for number, layer in enumerate(self.layers):
            qkv = self.norm(x, layer["attn_norm"][0][0]) @ layer["qkv"][0].T
            if "bias" in layer:
                qkv = qkv + layer["bias"][0][0]
            q, k, v = np.split(qkv.reshape(n, heads + 2 * kv, hd), [heads, heads + kv], axis=1)
            if "q_norm" in layer:
                q, k = self.norm(q, layer["q_norm"][0][0]), self.norm(k, layer["k_norm"][0][0])
            angle = np.arange(n)[:, None] * self.rope[self.layer_rope[number]].astype(np.float64)
            turn = np.exp(1j * angle)[:, None, :]
            q, k = (((a := z[..., : hd // 2] + 1j * z[..., hd // 2 :]) * turn) for z in (q, k))
            q, k = (np.concatenate([z.real, z.imag], -1) for z in (q, k))
            k, v = (np.repeat(z, heads // kv, axis=1) for z in (k, v))
            scores = np.einsum("ihd,jhd->hij", q, k) * h["attn_scale"] + mask
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            x = x + np.einsum("hij,jhd->ihd", p, v).reshape(n, -1) @ layer["attn_out"][0].T
            y = self.norm(x, layer["ffn_norm"][0][0])
            x = x + (
                self.mixture(y, layer)
                if h["n_experts"]
                else self.ffn(y, layer["gate_up"][0], layer["down"][0])
            )
        out = self.once["embed" if h["flags"] & TIED else "output"][0]
        return self.norm(x, self.once["out_norm"][0][0]) @ out.T


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
    n_rope: int = 1,
    theta: float = 10000.0,
    sections: dict[int, bytes] | None = None,
) -> bytes:
    """The bytes of a flat file with random weights, large enough that attention and every feature matter."""
    rng = np.random.default_rng(seed)
    text = b""
    for tag, payload in (sections or {}).items():
        text += (
            struct.pack("<IIQ", tag, 0, len(payload)) + payload + bytes(up(len(payload), 16) - len(payload))
        )
    text += bytes(up(len(text)) - len(text))
    h = dict(
        magic=b"PYLLM\r\n\x1a",
        version=2,
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
        norm_eps=1e-5,
        attn_scale=head_dim**-0.5,
        reserved=bytes(160),
        checksum=0,
    )
    body = b"".join(struct.pack("<IIII", i % n_rope, 0, 0, 0) for i in range(n_layers))
    for i in range(n_rope):
        body += (1.0 / (theta * (i + 1)) ** (np.arange(0, head_dim, 2) / head_dim)).astype("<f4").tobytes()
    start = 256 + len(text) + len(body)
    parts = [body, bytes(up(start) - start)]

    def write(items: list) -> None:
        for name, rows, cols, kind, count in items:
            for _ in range(count):
                w = np.zeros((rows, up(cols)))
                gain = {"embed": 1.0, "bias": 0.5, "router": 2.0}.get(name, 1.5)
                w[:, :cols] = (
                    1 + 0.3 * rng.standard_normal((rows, cols))
                    if name.endswith("norm")
                    else gain
                    * rng.standard_normal((rows, cols))
                    / (1 if name in ("embed", "bias") else cols**0.5)
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
