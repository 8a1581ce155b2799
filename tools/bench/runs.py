"""Measures one model: makes its files, opens all engines, judges and times them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.accuracy import Accuracy, judge, open_reference, texts_of
from tools.bench.cases import SPECIAL, Case
from tools.bench.common import Unavailable, say
from tools.bench.engines import ENGINES, REFERENCES
from tools.bench.files import ready
from tools.bench.llama_bench import llama_bench
from tools.bench.models import Model
from tools.bench.peaks import Peaks
from tools.bench.peers import RUNNERS
from tools.bench.peers.base import CHECK_TOKENS
from tools.bench.timing import Measurement, check_same_model, measure
from tools.bench.workers import Worker


@dataclass
class Settings:
    """What is measured of every model."""

    engines: Sequence[str]
    cases: Sequence[Case]
    repeat: int
    threads: int
    texts: Path
    accuracy: bool = True  # of models that are not random
    random_accuracy: bool = False  # of random ones as well, on random tokens: says that it works, no more
    references: Sequence[str] = tuple(REFERENCES)  # the first that works is what accuracy is measured against
    llama_cpp: Path | None = None
    llama_bench: bool = False


@dataclass
class Result:
    """What was found of a model."""

    model: Model
    parameters: int
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # engine -> why it has no figures at all
    same_as: str = ""  # the engine that logits were compared with before anything was timed
    difference: dict[str, float] = field(default_factory=dict)
    reference: str = ""  # what accuracy is measured against
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)  # their lengths in tokens
    measurements: list[Measurement] = field(default_factory=list)
    needs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # engine -> case -> needs
    llama_bench: dict[str, dict[str, float]] = field(default_factory=dict)  # engine -> case -> tokens/s


def vocabulary_and_ids(model: Model, settings: Settings) -> tuple[int, int, dict[str, list[int]]]:
    """The size of the vocabulary, the number of parameters, and the ids of the texts that are judged."""
    from pyllm import LLM

    if model.shape:
        size = model.shape.vocab_size
        ids = np.random.default_rng(5).integers(0, size - SPECIAL, 40).tolist()
        return size, model.shape.parameters, {"random": ids}
    path = ready(ENGINES["pyllm-fp16"], model, settings.llama_cpp)
    with LLM(path) as llm:
        texts = {name: llm.encode(text) for name, text in texts_of(settings.texts).items()}
        return llm.vocab_size, llm.parameters, texts


def judged(
    model: Model, workers: Sequence[Worker], texts: Mapping[str, list[int]], settings: Settings
) -> tuple[str, dict[str, Accuracy]]:
    """The reference's name, and the accuracy of all engines."""
    try:
        reference = open_reference(settings.references, model, settings.threads)
    except Unavailable as error:
        say(f"{model.name}: accuracy is not measured: {error}")
        return "", {}
    try:
        return reference.name, judge(workers, reference, texts, model.folder)
    finally:
        reference.close()


def run_model(model: Model, settings: Settings, peaks: Peaks) -> Result:
    """All that is asked for of a model."""
    if model.shape:
        say(f"{model.name}: {model.shape.parameters / 1e6:.1f} million random weights, in {model.folder}")
    vocab_size, parameters, texts = vocabulary_and_ids(model, settings)
    result = Result(model, parameters)
    with ExitStack() as stack:
        workers = []
        for name in settings.engines:
            say(f"{model.name}: loading {ENGINES[name].label}")
            one = Worker(name, model, settings.threads, settings.llama_cpp)
            stack.callback(one.close)
            workers.append(one)
        start = next(iter(texts.values()))[:CHECK_TOKENS]
        timed = [w for w in workers if w.engine.timed]
        result.same_as, result.difference = check_same_model(timed, start)
        for one in workers:
            if one.failed:
                say(f"{model.name}: without {one.engine.label}: {one.failed}")
        if settings.random_accuracy if model.shape else settings.accuracy:
            result.texts = {name: len(ids) for name, ids in texts.items()}
            result.reference, result.accuracy = judged(model, workers, texts, settings)
        for one in workers:
            if not one.engine.timed:  # its memory is of no more use
                one.close()
        time_cases(result, timed, vocab_size, settings, peaks)
        for one in workers:
            how = RUNNERS[one.engine.runner].how
            result.engines[one.name] = {"label": one.engine.label, "how": how, **one.about}
            if one.failed:
                result.failed[one.name] = one.failed
    if settings.llama_bench and settings.llama_cpp:  # the engines have ended: nothing else runs
        for one in workers:
            if one.engine.runner == "LlamaCpp" and not one.failed:
                given = (settings.cases, settings.threads, settings.repeat)
                result.llama_bench[one.name] = llama_bench(settings.llama_cpp, one.path, *given)
    return result


def time_cases(
    result: Result, workers: Sequence[Worker], vocab_size: int, settings: Settings, peaks: Peaks
) -> None:
    """Adds the measurements, and what each case needs of pyllm."""
    name = result.model.name
    if settings.cases:
        peaks.measure()
    for case in settings.cases:
        found = measure(case, [w for w in workers if not w.failed], vocab_size, settings.repeat)
        found.failed |= {w.name: w.failed for w in workers if w.failed}
        result.measurements.append(found)
        speeds = (f"{w.name} {found.speed(w.name):.1f}" for w in workers if w.name in found.seconds)
        say(f"{name}: {case.title}, tokens/s: {', '.join(speeds)}")
        for one in workers:
            if one.name in found.seconds:
                before = case.before + case.steps / 2
                needs = one.ask(command="needs", kind=case.kind, n=case.n, before=before)
                result.needs.setdefault(one.name, {})[str(case)] = needs
        peaks.measure()
