"""How far one model's predictions are from another's, token by token."""

from __future__ import annotations

import numpy as np

ROWS = 32  # positions at a time: a vocabulary of 262,144 takes 64 MiB then


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64: a divergence of 1e-6 is a difference of such numbers."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def divergence(reference: np.ndarray, logits: np.ndarray, ids: list[int]) -> dict[str, list[float]]:
    """Of logits (n, vocab_size) from the reference's, for the n - 1 positions of a text that have a token
    after them: the Kullback-Leibler divergence sum(p * log(p / q)), p the reference's; whether both have the
    same most likely token; and the negative log-likelihood of the token that follows."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits are {logits.shape}, the reference's {reference.shape}")
    kl: list[float] = []
    agree: list[float] = []
    nll: list[float] = []
    for at in range(0, len(ids) - 1, ROWS):
        following = ids[at + 1 : at + ROWS + 1]
        end = at + len(following)
        p, q = log_softmax(reference[at:end]), log_softmax(logits[at:end])
        kl += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
        agree += (p.argmax(axis=-1) == q.argmax(axis=-1)).astype(float).tolist()
        nll += (-q[np.arange(len(following)), following]).tolist()
    return {"kl": kl, "agree": agree, "nll": nll}
