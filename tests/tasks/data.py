"""The rows of the task: sums of two numbers below ten, each with four answers to choose from.

python tests/tasks/data.py      # writes arithmetic.jsonl again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("arithmetic.jsonl")


def made() -> list[dict[str, Any]]:
    """36 sums. The wrong answers are the right one plus or minus 1, 2 or 10; its place goes round."""
    rows = []
    sums = [(a, b) for a in range(2, 10) for b in range(a, 10)]
    for i, (a, b) in enumerate(sums):
        answers = [a + b + 1, a + b + 10, abs(a + b - 2)]
        answers.insert(i % 4, a + b)
        question = f"Q: What is {a} plus {b}?\nA:"
        rows.append({"question": question, "choices": [str(n) for n in answers], "gold": i % 4})
    return rows


def load(**_: Any) -> dict[str, Any]:
    """What lm_eval calls: the rows of the file."""
    import datasets

    return {"test": datasets.Dataset.from_list([json.loads(line) for line in FILE.read_text().splitlines()])}


if __name__ == "__main__":
    FILE.write_text("".join(json.dumps(row) + "\n" for row in made()))
