"""tools/bench on a tiny model: what it writes is whole and consistent. No time is asserted.

The engines beside pyllm are looked at only where they are installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.bench import (
    accuracy,
    common,
    engines,
    files,
    llama_bench,
    models,
    plots,
    runs,
    tables,
    timing,
    workers,
)
from tools.bench.cases import Case
from tools.bench.divergence import divergence
from tools.bench.peers import RUNNERS

ROOT = Path(__file__).resolve().parent.parent
CASES = ["prompt32", "decode0", "decode33", "batch3"]
PYLLM = ["pyllm-int8", "pyllm-fp16"]


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """The folder of model files, shared so that they are made once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def measured(work, tmp_path_factory) -> tuple[str, Path]:
    """The command's standard output, and the folder that it wrote to."""
    out = tmp_path_factory.mktemp("out")
    done = run("--quick", "--engines", ",".join(PYLLM), "--threads", 1, "--work", work, "--out", out)
    assert done.returncode == 0, done.stderr
    return done.stdout, out


@pytest.fixture(scope="module")
def report(measured) -> dict:
    return json.loads((measured[1] / "speed.json").read_text())


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a Markdown text, rules left out."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if not set("".join(cells)) <= set("-: ")]


def test_report_has_every_case_with_positive_seconds(report):
    (model,) = report["models"]
    assert model["name"] == "tiny" and model["parameters"] < 1e6 and not model["failed"]
    assert [m["case"] for m in model["measurements"]] == CASES
    for m in model["measurements"]:
        assert not m["failed"] and m["rounds"] == 2
        for engine in PYLLM:
            (seconds,) = m["seconds"][engine].values()
            assert len(seconds) == 2 and min(seconds) > 0
            expected = m["tokens_a_measurement"] / np.median(seconds)
            assert m["tokens_per_second"][engine] == pytest.approx(expected)
        assert not m["ratios"]  # nobody to compare with
    assert {"processor", "threads", "versions", "date", "command"} <= report.keys()
    assert all(model["engines"][engine]["runs_with"] for engine in PYLLM)


def test_peaks_are_measured_before_between_and_after(report):
    peaks = report["peaks"]
    if peaks["failed"]:
        pytest.skip(peaks["failed"])
    assert len(peaks["samples"]) == 1 + len(CASES)
    reads = [sample["read_gbps"] for sample in peaks["samples"]]
    assert min(reads) > 0 and peaks["median"]["read_gbps"] == pytest.approx(np.median(reads))


def test_accuracy_stands_beside_speed_and_size(measured, report):
    """fp16 is the reference here; int8 is another model, but nearly the same."""
    (model,) = report["models"]
    assert model["reference"].startswith("pyllm-fp16") and model["texts"] == {"random": 40}
    exact, rounded = model["accuracy"]["pyllm-fp16"], model["accuracy"]["pyllm-int8"]
    assert exact["positions"] == rounded["positions"] == 39
    assert exact["kl"] < 1e-5 < rounded["kl"] < 0.1
    assert exact["top1"] > 0.95 and rounded["kl_p99"] > rounded["kl"]
    assert rounded["perplexity"] == pytest.approx(exact["perplexity"], rel=0.1)
    sizes = [model["engines"][engine]["file_bytes"] for engine in PYLLM]
    assert 0 < sizes[0] < sizes[1]


def test_table_has_a_row_an_engine_and_a_column_a_case(measured):
    stdout, out = measured
    text = (out / "speed.md").read_text()
    assert stdout.strip() == text.strip()
    titles, *cells = rows(text)
    assert titles[:7] == ["engine", "type", "MB", "KL", "KL p99", "top 1", "perplexity"]
    assert titles[7:] == ["prompt of 32", "decode after 1", "decode after 33", "3 sequences together"]
    assert [row[:2] for row in cells[:2]] == [["pyllm", "int8"], ["pyllm", "fp16"]]
    for row in cells[:2]:
        assert len(row) == len(titles) and re.fullmatch(r"0\.\d", row[2])
        assert all(re.fullmatch(r"[\d,]+(\.\d)?", cell) for cell in row[7:])
    shares = [row for row in cells if row[0] in ("pyllm int8", "pyllm fp16")]
    assert len(shares) == 2
    assert all(re.fullmatch(r"–|\d+ % of [\w -]+", cell) for row in shares for cell in row[1:])


def test_plots_are_written_where_matplotlib_is_installed(measured):
    for name in ("speed.png", "accuracy.png"):
        plot = measured[1] / name
        if importlib.util.find_spec("matplotlib") is None:
            assert not plot.exists()
        else:
            assert plot.read_bytes().startswith(b"\x89PNG")


def test_labels_of_a_plot_keep_apart():
    moved = plots.apart([0.1, 0.11, 0.12, 0.5, 0.97, 0.99], 0.05)
    assert moved == pytest.approx([0.1, 0.15, 0.2, 0.5, 0.95, 1.0])
    assert plots.apart([0.2, 0.4], 0.05) == [0.2, 0.4]


def test_an_engine_that_fails_is_named_with_a_reason(tmp_path):
    """One engine's file is damaged: the other engine is measured all the same."""
    path = files.model_path(engines.ENGINES["pyllm-fp16"], models.random_model("tiny", tmp_path))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no model")
    done = run(
        *("--shapes", "tiny", "--engines", ",".join(PYLLM), "--cases", "decode0", "--repeat", 1),
        *("--threads", 1, "--read-mib", 64, "--work", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    _, cells, *_ = rows(done.stdout)
    assert cells[:2] == ["pyllm", "int8"] and re.fullmatch(r"[\d,]+(\.\d)?", cells[-1])
    assert re.search(r"^Without pyllm fp16: LLMError: .*fp16", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--engines", "pyllm-int8,pylm", "unknown engine 'pylm'"),
        ("--shapes", "7B", "unknown shape '7B'"),
        ("--cases", "prompt512,decod0", "unknown case 'decod0'"),
        ("--cases", "prompt99999", "the number must be from 1 to"),
        ("--cases", ",", "no case given"),
        ("--repeat", "0", "not a positive number"),
        ("--threads", "two", "not a positive number"),
        ("--gguf", "missing.gguf", "there is no file missing.gguf"),
        ("--gguf", "README.md", "README.md is no GGUF file"),
        ("--llama-cpp", "tests", "there is no llama-quantize in tests or its folder bin"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(option, value, message):
    done = run(option, value)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_engine_shape_and_kind_of_case():
    done = run("--help")
    assert done.returncode == 0
    options = ("--repeat", "--out", "--gguf", "--llama-cpp", "--quick")
    for word in (*engines.ENGINES, *models.SHAPES, "promptN", "decodeN", "batchN", *options):
        assert word in done.stdout


def test_needs_of_a_model_are_those_of_its_file(work, measured, report):
    """Decoding reads the flat file, but for header and padding, and the keys and values: a small part here.
    A prompt takes two operations a weight and token, the embedding once, and attention."""
    (model,) = report["models"]
    for engine in PYLLM:
        needs, size = model["needs"][engine], model["engines"][engine]["file_bytes"]
        assert 0.95 * size < needs["decode0"]["bytes"] < 1.1 * size
        assert needs["decode33"]["bytes"] > needs["decode0"]["bytes"]
        s = models.SHAPES["tiny"]
        matrices = s.parameters - s.dim * s.vocab_size
        expected = 2 * (32 * matrices + s.dim * s.vocab_size)
        assert needs["prompt32"]["operations"] == pytest.approx(expected, rel=0.05)


def test_divergence_is_that_of_the_definition():
    """Two tokens, probabilities chosen by hand: KL(p, q) = 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75). Logits
    near 7 are right to 2e-7 in float32."""
    p, q = np.log([[0.5, 0.5]] * 2), np.log([[0.25, 0.75]] * 2) + 7.0  # logits may be shifted
    found = divergence(p.astype(np.float32), q.astype(np.float32), [0, 1])
    assert found["kl"] == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(2 / 3)], abs=1e-6)
    assert found["nll"] == pytest.approx([-np.log(0.75)], abs=1e-6)
    assert found["agree"] == [0.0]  # argmax takes the first of two equals


def test_divergence_agrees_with_scipys_formula_over_many_positions():
    """More positions than are computed at a time, none of them lost: against the plain sum in float64."""
    rng = np.random.default_rng(3)
    p, q = rng.normal(size=(2, 70, 50)).astype(np.float32) * 4
    ids = rng.integers(0, 50, 70).tolist()
    found = divergence(p, q, ids)
    probabilities = [np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(1, keepdims=True) for x in (p, q)]
    expected = (probabilities[0] * np.log(probabilities[0] / probabilities[1])).sum(1)[:-1]
    assert found["kl"] == pytest.approx(expected.tolist())
    assert found["agree"] == (p.argmax(1) == q.argmax(1))[:-1].astype(float).tolist()
    assert len(found["nll"]) == 69


def test_small_divergences_are_exact():
    """As of fp16: 3e-6 and less, of logits in float32, over a vocabulary of usual size. In float64 the same
    float32 logits give the expected values."""
    rng = np.random.default_rng(4)
    p = (rng.normal(size=(3, 50_000)) * 3).astype(np.float32)
    q = (p + rng.normal(size=p.shape) * 1e-3).astype(np.float32)
    logs = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p.astype(float), q.astype(float))]
    expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1)[:-1]
    assert max(expected) < 1e-6
    assert divergence(p, q, [1, 2, 3])["kl"] == pytest.approx(expected.tolist(), abs=1e-8)


def test_divergence_refuses_another_vocabulary():
    with pytest.raises(ValueError, match=r"\(4, 7\).*\(4, 8\)"):
        divergence(np.zeros((4, 8)), np.zeros((4, 7)), [0, 1, 2, 3])


def test_summary_weighs_all_tokens_alike():
    found = accuracy.Accuracy()
    found.add("long", {"kl": [0.1] * 3, "agree": [1.0] * 3, "nll": [1.0] * 3})
    found.add("short", {"kl": [0.5], "agree": [0.0], "nll": [2.0]})
    summary = found.summary()
    assert summary["kl"] == pytest.approx(0.2) and summary["top1"] == 0.75
    assert summary["perplexity"] == pytest.approx(np.exp(1.25))
    assert summary["kl_by_text"] == pytest.approx({"long": 0.1, "short": 0.5})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.41949, "0.42"), (0.06512, "0.065"), (0.00119, "0.0012"), (3.3e-6, "3.3e-06"), (0, "0")],
)
def test_divergence_is_shown_with_two_digits(value, text):
    assert tables.divergence_figure(value) == text


class Scripted:
    """A worker that answers with the seconds of a list."""

    def __init__(self, name: str, seconds: dict[str, list[float]]) -> None:
        self.name, self.engine, self.seconds = name, engines.ENGINES[name], seconds
        self.asked: list[str] = []

    def ask(self, command: str, variant: str, **_: object) -> float:
        self.asked.append(variant)
        return self.seconds[variant].pop(0)


def test_engines_take_turns_and_slow_variants_drop_out(monkeypatch):
    """llama.cpp warms up its variants: one that is twice as slow is not timed. The fastest median counts."""
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "SLOW", 1e9)
    fast, q8, plain = RUNNERS["LlamaCpp"].variants
    ours = Scripted("pyllm-int8", {"": [9.0, 0.5, 0.7, 0.6]})
    theirs = Scripted("llamacpp-q8_0", {fast: [1, 1.1, 1.3, 1.2], q8: [1.2, 1.0, 0.9, 0.8], plain: [2.0]})
    found = timing.measure(Case("decode", 4096), [ours, theirs], 320, 3)
    assert theirs.asked.count(plain) == 1 and theirs.asked.count(fast) == theirs.asked.count(q8) == 4
    assert found.best("llamacpp-q8_0") == q8 and found.speed("llamacpp-q8_0") == pytest.approx(1 / 0.9)
    assert found.ratio("pyllm-int8", "llamacpp-q8_0") == pytest.approx(np.median([2.0, 0.9 / 0.7, 0.8 / 0.6]))
    assert found.fastest(["llamacpp-q8_0", "pyllm-int4"]) == "llamacpp-q8_0"
    assert RUNNERS["LlamaCpp"].variants_of(Case("prompt", 4096)) == (fast, plain)


def test_tables_say_what_failed_what_was_chosen_and_who_was_faster():
    """Made by hand: one engine fails in a case, one is not there at all, one is faster with another cache."""
    _, q8, _ = RUNNERS["LlamaCpp"].variants
    prompt = timing.Measurement(Case("prompt", 512), 1)
    prompt.seconds = {"pyllm-int8": {"": [2.0]}}
    prompt.failed = {"llamacpp-q8_0": "llama_decode returned 1"}
    deep = timing.Measurement(Case("decode", 4096), 1)
    deep.seconds = {"pyllm-int8": {"": [0.01]}, "llamacpp-q8_0": {q8: [0.025]}}
    result = runs.Result(models.random_model("tiny", Path("work")), 1, measurements=[prompt, deep])
    names = ["pyllm-int8", "llamacpp-q8_0", "ctranslate2-int8"]
    result.engines = {name: {"file_bytes": 12_345_678} for name in names}
    result.failed = {"ctranslate2-int8": "no such package"}
    table = tables.main_table(result, names)
    assert rows("\n".join(table)) == [
        ["engine", "type", "MB", "prompt of 512", "decode after 4096"],
        ["pyllm", "int8", "12", "256", "100"],
        ["llama.cpp", "Q8_0", "12", "– [1]", "40.0"],
    ]
    assert "[1] llama_decode returned 1." in table and "Without CTranslate2 int8: no such package." in table
    assert any(line.endswith(f"decode after 4096, llama.cpp Q8_0: {q8}.") for line in table)
    _, fixed, fastest = rows("\n".join(tables.ratio_table(result, names[:2])))
    assert fixed == ["pyllm int8 / llama.cpp Q8_0", "–", "2.50"]
    assert fastest == ["pyllm int8 / the fastest other", "–", "2.50 (llama.cpp Q8_0)"]


def test_every_text_is_plain_and_long_enough():
    """Accuracy needs several kinds of text, of some hundred tokens each."""
    texts = accuracy.texts_of(accuracy.TEXTS)
    assert {"story", "python", "c", "markdown", "dialogue"} <= texts.keys()
    assert all(1500 < len(text) < 3000 and "\r" not in text for text in texts.values())


def test_a_gguf_file_is_measured_with_its_accuracy(work, measured, tmp_path):
    """As a real model is: its texts go through its own tokenizer, the reference is the fp16 file."""
    pytest.importorskip("gguf")
    tiny = models.random_model("tiny", work)
    engine = engines.ENGINES["llamacpp-f16"]
    source = tmp_path / "small.gguf"
    files.make_gguf(tiny.folder / "f16.gguf", tiny, engine)
    source.write_bytes((tiny.folder / "f16.gguf").read_bytes())
    (tmp_path / "letter.txt").write_text("The ferry left the island once a day.")
    done = run(
        *("--quick", "--gguf", source, "--engines", ",".join(PYLLM), "--cases", "none", "--threads", 1),
        *("--texts", tmp_path, "--work", tmp_path / "work"),
    )
    assert done.returncode == 0, done.stderr
    titles, *found = rows(done.stdout)
    kl = {" ".join(row[:2]): row[3] for row in found}
    assert titles[-1] == "perplexity" and kl["pyllm exact (the reference) fp16"] == "0"
    assert float(kl["pyllm fp16"]) < 1e-5 < float(kl["pyllm int8"]) < 0.1
    assert re.search(r"texts: letter \(\d+\)", done.stdout)


def test_llama_cpps_types_need_its_build_folder(work, measured):
    tiny = models.random_model("tiny", work)
    engine = engines.ENGINES["llamacpp-q4_k_m"]
    with pytest.raises(common.Unavailable, match="--llama-cpp DIR was not given"):
        files.ready(engine, tiny, None)
    with pytest.raises(common.Unavailable, match="there is no llama-quantize in"):
        files.llama_tool(work, "llama-quantize")
    assert not files.model_path(engine, tiny).exists()


def test_llama_bench_is_asked_for_the_same_cases():
    """Its best cache type where a context is deep; sequences together are not among what it can do."""
    assert llama_bench.arguments(Case("prompt", 512)) == [["-p", "512", "-n", "0"]]
    deep = llama_bench.arguments(Case("decode", 4096))
    assert [run[-1] for run in deep] == ["f16", "q8_0"]
    assert all(run[:6] == ["-p", "0", "-n", "48", "-d", "4096"] for run in deep)
    assert len(llama_bench.arguments(Case("decode", 0))) == 1
    assert llama_bench.arguments(Case("batch", 16)) == []
    assert llama_bench.tokens_per_second('[{"samples_ts": [3.0, 1.0, 2.5], "avg_ts": 2.2}]') == 2.5


def test_llama_bench_needs_the_build_folder():
    done = run("--quick", "--llama-bench")
    assert done.returncode == 2 and "--llama-bench needs --llama-cpp" in done.stderr


@pytest.mark.parametrize("name", [name for name in engines.ENGINES if name != "pyllm-fp16"])
def test_every_engine_runs_the_same_model(name, work, measured):
    """Root mean square difference of the logits from pyllm's fp16, in standard deviations of them. F16 in
    float32 arithmetic makes 0.003 and bf16 arithmetic 0.02, which either side may use; 8-bit weights make
    0.03, and with 8-bit activations 0.06. Twice the rotary base would be 0.2, rotary rows in the wrong order
    1.3: 4-bit weights, each 8 % off where there is no text to calibrate with, cannot tell the former, but the
    latter. Of OpenVINO only the most likely token is compared."""
    engine = engines.ENGINES[name]
    if not engine.installed:
        pytest.skip(f"{engine.module} is not installed")
    needs = {"make_gguf": ["gguf"], "make_ctranslate2": ["transformers", "torch"]}.get(engine.make, [])
    for module in needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    tiny = models.random_model("tiny", work)
    both = [workers.Worker(one, tiny, 1) for one in ("pyllm-fp16", name)]
    try:
        for absent in ("no option", "dtype 'int4' is not known", "llama-quantize makes", "Shared library"):
            if absent in both[1].failed:
                pytest.skip(both[1].failed)
        assert not any(one.failed for one in both), [one.failed for one in both]
        ids = np.random.default_rng(5).integers(0, 317, 24).tolist()
        reference, difference = timing.check_same_model(both, ids)
    finally:
        for one in both:
            one.close()
    assert reference == "pyllm-fp16" and difference[reference] == 0
    if engine.program == "simulated":
        assert difference[name] > 0.01
    elif engine.program != "CTranslate2":  # its products saturate on AVX2
        bits = 4 if "4" in engine.dtype else 16 if engine.dtype in ("F16", "bf16", "fp16") else 8
        assert difference[name] < {16: 0.05, 8: 0.1, 4: 0.6}[bits]
    assert difference[name] < engine.tolerance
