"""Proof that every family is computed as transformers computes it: tiny random checkpoints, converted and
run, against transformers in float32.

    python -m tools.prove

prints a Markdown table. The sizes are awkward on purpose (odd numbers of heads, head_dim not dim / heads,
little that is a multiple of 64), windows are shorter than the text, scalings are active, and weights are
large, so that attention is sharp and every feature of a family moves the logits. Weights are rounded to fp16
before both see them, so that only arithmetic differs. Needs torch and transformers, and the gguf library for
GGUF files, which are written here as llama.cpp's converter writes them.

A row of the table is a Case (case.py); cases/ has them all, in a file those that are alike. random_model.py
makes a case's checkpoint, gguf_file.py the GGUF file, and command.py compares and prints."""

from tools.prove.case import LLAMA3, ODD, VOCAB, YARN, Case, factors, theta
from tools.prove.cases import CASES
from tools.prove.command import differences, expected, text_for
from tools.prove.folder import load, store
from tools.prove.gguf_file import STAND_INS, save_gguf
from tools.prove.random_model import checkpoint

__all__ = [
    "CASES",
    "Case",
    "LLAMA3",
    "ODD",
    "STAND_INS",
    "VOCAB",
    "YARN",
    "checkpoint",
    "differences",
    "expected",
    "factors",
    "load",
    "save_gguf",
    "store",
    "text_for",
    "theta",
]
