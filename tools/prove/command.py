"""Compares each case with transformers, and prints the table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.prove.case import VOCAB, Case
from tools.prove.cases import CASES
from tools.prove.gguf_file import save_gguf
from tools.prove.random_model import checkpoint

TEXT = 90  # the tokens of a text: no multiple of 16


def text_for(case: Case) -> np.ndarray:
    """Tokens (n,); fewer where the case is about short ones."""
    short = "original_max_position_embeddings" in case.config and case.context is None
    return np.random.default_rng(3).integers(3, VOCAB - 1, 60 if short else TEXT)


def expected(model: Any, ids: np.ndarray) -> np.ndarray:
    """(n, vocab_size) logits of transformers."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor(ids[None])).logits[0])


def differences(file: Path, ids: np.ndarray, want: np.ndarray) -> list[float]:
    """The largest difference of a logit in units of the logits' standard deviation, for the text in one
    call, in pieces, and token by token, in float32 throughout."""
    import pyllm

    found = []
    with pyllm.LLM(file, exact=True) as llm:
        for cuts in ([], [1, 20, 29, 64], range(1, len(ids))):
            with llm.session() as session:
                pieces = [session.eval(piece, all=True) for piece in np.split(ids, cuts) if len(piece)]
            found.append(float(abs(np.concatenate(pieces) - want).max() / want.std()))
    return found


def main() -> int:
    """Prints the table."""
    from pyllm.tools.convert import convert

    print("| family | models | largest difference | from GGUF |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, case in CASES.items():
            folder, ids = Path(temporary) / name, text_for(case)
            want = expected(checkpoint(folder, case), ids)
            sources = [folder]
            if case.gguf:
                sources.append(save_gguf(folder / "tiny.gguf", folder, case.gguf))
            cells = []
            for source in sources:
                out = folder / "out.llm"
                convert(source, out, tokenizer=False, context=case.context)
                cells.append(f"{max(differences(out, ids, want)):.1e}")
            print(f"| {name} | {case.models} | {' | '.join([*cells, ''][:2])} |", flush=True)
    return 0
