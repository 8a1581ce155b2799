"""How far one model's predictions are from another's, token by token."""

from __future__ import annotations

import numpy as np

ROWS = 32  # positions at a time: a vocabulary of 262,144 takes 32 MiB then


def exponentials(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, vocab_size) in float32, and the logarithms of what they were divided by (n,)."""
    most = logits.max(axis=-1, keepdims=True)
    powers = np.exp(logits - most)
    total = powers.sum(axis=-1, keepdims=True, dtype=np.float64)
    powers *= (1 / total).astype(np.float32)
    return powers, (most + np.log(total))[:, 0]


def divergence(reference: np.ndarray, logits: np.ndarray, ids: list[int]) -> dict[str, list[float]]:
    """Of logits (n, vocab_size) from the reference's, for the n - 1 positions of a text that have a token
    after them: the Kullback-Leibler divergence sum(p * log(p / q)), p the reference's; whether both have the
    same most likely token; and the negative log-likelihood of the token that follows.

    log(p / q) is the difference of the logits, less that of the logarithms of their sums: so small
    divergences are sums of small numbers, and float32 is enough for 1e-8."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits are {logits.shape}, the reference's {reference.shape}")
    kl: list[float] = []
    agree: list[float] = []
    nll: list[float] = []
    for at in range(0, len(ids) - 1, ROWS):
        following = ids[at + 1 : at + ROWS + 1]
        end = at + len(following)
        ours, theirs = np.asarray(reference[at:end], np.float32), np.asarray(logits[at:end], np.float32)
        (p, log_p), (_, log_q) = exponentials(ours), exponentials(theirs)
        p *= ours - theirs
        kl += (p.sum(axis=-1, dtype=np.float64) - log_p + log_q).tolist()
        agree += (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).astype(float).tolist()
        nll += (log_q - theirs[np.arange(len(following)), following]).tolist()
    return {"kl": kl, "agree": agree, "nll": nll}
