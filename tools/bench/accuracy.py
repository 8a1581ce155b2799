"""How exact the engines are: the divergence of their predictions from float32's, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.common import HERE, Unavailable, say
from tools.bench.engines import REFERENCES
from tools.bench.models import Model
from tools.bench.workers import Worker

TEXTS = HERE / "texts"


@dataclass
class Accuracy:
    """What was found of one engine: text -> a number for each of its positions."""

    kl: dict[str, list[float]] = field(default_factory=dict)
    agree: dict[str, list[float]] = field(default_factory=dict)
    nll: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""

    def add(self, text: str, found: Mapping[str, list[float]]) -> None:
        self.kl[text], self.agree[text], self.nll[text] = found["kl"], found["agree"], found["nll"]

    def summary(self) -> dict[str, Any]:
        """Means over all positions of all texts."""
        if self.failed or not self.kl:
            return {"failed": self.failed}
        kl, agree, nll = (
            np.concatenate([np.array(values) for values in by_text.values()])
            for by_text in (self.kl, self.agree, self.nll)
        )
        return {
            "kl": float(kl.mean()),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "top1": float(agree.mean()),
            "perplexity": float(np.exp(nll.mean())),
            "positions": len(kl),
            "kl_by_text": {name: float(np.mean(values)) for name, values in self.kl.items()},
        }


def texts_of(folder: Path) -> dict[str, str]:
    """The texts that are judged, by name."""
    found = {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))}
    if not found:
        raise Unavailable(f"there are no texts (*.txt) in {folder}")
    return found


def open_reference(names: Sequence[str], model: Model, threads: int) -> Worker:
    """The first of these engines that works."""
    reasons = []
    for name in names:
        one = Worker(name, model, threads)
        if not one.failed:
            return one
        one.close()
        reasons.append(f"{REFERENCES[name].label}: {one.failed}")
    raise Unavailable(f"there is no reference: {'; '.join(reasons)}")


def judge(
    workers: Sequence[Worker], reference: Worker, texts: Mapping[str, list[int]], folder: Path
) -> dict[str, Accuracy]:
    """The accuracy of each engine, and of the reference itself, on texts (name -> ids)."""
    saved = folder / "reference-logits.npy"
    result = {one.name: Accuracy(failed=one.failed) for one in (*workers, reference)}
    try:
        for name, ids in texts.items():
            say(f"accuracy on {name}, {len(ids)} tokens")
            result[reference.name].add(name, reference.ask(command="save_logits", ids=ids, path=str(saved)))
            for one in workers:
                if one.name == reference.name:
                    continue
                if result[one.name].failed:
                    continue
                try:
                    result[one.name].add(name, one.ask(command="compare", ids=ids, path=str(saved)))
                except Unavailable as error:
                    result[one.name].failed = str(error)
    finally:
        saved.unlink(missing_ok=True)
    return result
