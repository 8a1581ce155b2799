"""What is timed: prompts, decoding, sequences that decode together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DECODE_STEPS = 48  # tokens after the context
BATCH_STEPS = 16  # the same where several sequences decode together
BATCH_CONTEXT = 32  # tokens in each of them
DEEP = 512  # tokens in a context from which on its keys and values are worth storing in fewer bits
SPECIAL = 3  # special tokens of a random model, at the end of the vocabulary: none is in a prompt


@dataclass(frozen=True)
class Case:
    """prompt: n tokens into an empty cache, the logits of the last. decode: tokens one by one after n.
    batch: n sequences that decode together."""

    kind: str
    n: int

    def __str__(self) -> str:
        return f"{self.kind}{self.n}"

    @property
    def title(self) -> str:
        """The column's name in the table."""
        if self.kind == "prompt":
            return f"prompt of {self.n}"
        if self.kind == "decode":
            return f"decode after {max(1, self.n)}"
        return f"{self.n} sequences together" if self.n > 1 else "1 sequence"

    @property
    def tokens(self) -> int:
        """How many tokens the measured seconds are for: those of a step, where there are steps."""
        return 1 if self.kind == "decode" else self.n

    @property
    def steps(self) -> int:
        return {"prompt": 0, "decode": DECODE_STEPS, "batch": BATCH_STEPS}[self.kind]

    @property
    def before(self) -> int:
        """Tokens in a sequence before the first step."""
        return {"prompt": 0, "decode": max(1, self.n), "batch": BATCH_CONTEXT}[self.kind]

    def request(self, vocab_size: int, round_: int) -> dict[str, Any]:
        """The command for a worker. A prompt is another one each round, so that nobody has it cached; what is
        decoded after stays the same, so that it need not be computed again."""
        rng = np.random.default_rng([self.n, round_] if self.kind == "prompt" else [self.n])
        n_seqs = self.n if self.kind == "batch" else 1
        length = self.n if self.kind == "prompt" else self.before
        prompts = rng.integers(0, vocab_size - SPECIAL, (n_seqs, length)).tolist()
        if self.kind == "prompt":
            return {"command": "prompt", "ids": prompts[0]}
        following = rng.integers(0, vocab_size - SPECIAL, (self.steps, n_seqs)).tolist()
        return {"command": "decode", "prompts": prompts, "following": following}


CASES = [
    Case("prompt", 512),
    Case("prompt", 4096),
    Case("decode", 0),
    Case("decode", 4096),
    Case("batch", 16),
]
ALL_CASES = [Case("prompt", n) for n in (32, 128, 512, 4096)]
ALL_CASES += [Case("decode", n) for n in (0, 512, 4096)]
ALL_CASES += [Case("batch", n) for n in (1, 4, 16, 32)]
QUICK_CASES = [Case("prompt", 32), Case("decode", 0), Case("decode", 33), Case("batch", 3)]
