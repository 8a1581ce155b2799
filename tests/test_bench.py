"""tools/bench/bench.py on a tiny model: what it writes is whole and consistent. No time is asserted.

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

from tools.bench import bench

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
    done = run(
        *("--shapes", "tiny", "--engines", ",".join(PYLLM), "--cases", ",".join(CASES)),
        *("--repeat", 2, "--threads", 1, "--read-mib", 64, "--work", work, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a Markdown text, rules left out."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if not set("".join(cells)) <= set("-: ")]


def test_report_has_every_case_with_positive_seconds(measured):
    report = json.loads((measured[1] / "speed.json").read_text())
    (shape,) = report["shapes"]
    assert shape["name"] == "tiny" and shape["parameters"] < 1e6
    assert [m["case"] for m in shape["measurements"]] == CASES
    for m in shape["measurements"]:
        assert not m["failed"] and m["rounds"] == 2
        for engine in PYLLM:
            (seconds,) = m["seconds"][engine].values()
            assert len(seconds) == 2 and min(seconds) > 0
            expected = m["tokens_a_measurement"] / np.median(seconds)
            assert m["tokens_per_second"][engine] == pytest.approx(expected)
        assert m["ratios"] == {"int8": None, "fp16": None}  # nobody to compare with
    assert {"processor", "threads", "versions", "date", "command"} <= report.keys()
    assert all(shape["engines"][engine]["runs_with"] for engine in PYLLM)


def test_peaks_are_measured_before_between_and_after(measured):
    peaks = json.loads((measured[1] / "speed.json").read_text())["peaks"]
    if peaks["failed"]:
        pytest.skip(peaks["failed"])
    assert len(peaks["samples"]) == 1 + len(CASES)
    reads = [sample["read_gbps"] for sample in peaks["samples"]]
    assert min(reads) > 0 and peaks["median"]["read_gbps"] == pytest.approx(np.median(reads))


def test_table_has_a_row_a_case_and_a_column_an_engine(measured):
    stdout, out = measured
    text = (out / "speed.md").read_text()
    assert stdout.strip() == text.strip()
    titles, *cells = rows(text)
    assert titles[1:3] == ["pyllm int8", "pyllm fp16"] and len(cells) == len(CASES)
    assert cells[0][0] == "prompt of 32" and cells[1][0] == "decode after 1"
    for row in cells:
        assert len(row) == len(titles)
        assert all(re.fullmatch(r"[\d,]+(\.\d)?", cell) for cell in row[1:3])
        assert all(re.fullmatch(r"–|\d+ % of [\w -]+", cell) for cell in row[3:])


def test_plot_is_written_where_matplotlib_is_installed(measured):
    plot = measured[1] / "speed.png"
    if importlib.util.find_spec("matplotlib") is None:
        assert not plot.exists()
    else:
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_engine_that_fails_is_a_dash_with_a_reason(tmp_path):
    """One engine's file is damaged: the other engine is measured all the same."""
    folder = bench.model_folder(tmp_path, "tiny")
    folder.mkdir(parents=True)
    bench.model_path(bench.ENGINES["pyllm-fp16"], folder).write_bytes(b"no model")
    done = run(
        *("--shapes", "tiny", "--engines", ",".join(PYLLM), "--cases", "decode0", "--repeat", 1),
        *("--threads", 1, "--read-mib", 64, "--work", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    _, cells = rows(done.stdout)
    assert cells[1][0].isdigit() and cells[2] == "– [1]"
    assert re.search(r"^\[1\] LLMError: .*fp16", done.stdout, re.MULTILINE)


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
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(option, value, message):
    done = run(option, value)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_engine_shape_and_kind_of_case():
    done = run("--help")
    assert done.returncode == 0
    for word in (*bench.ENGINES, *bench.SHAPES, "promptN", "decodeN", "batchN", "--repeat", "--out"):
        assert word in done.stdout


def test_needs_of_a_model_are_those_of_its_file(work, measured):
    """The weights of the flat file are what Shape.read_bytes says, but for norms, header and padding."""
    shape = bench.SHAPES["tiny"]
    for dtype in ("int8", "fp16"):
        (file,) = bench.model_folder(work, "tiny").glob(f"{dtype}*.llm")
        assert 0 <= file.stat().st_size - shape.read_bytes(dtype, 0) < 8192


@pytest.mark.parametrize("name", [name for name in bench.ENGINES if name != "pyllm-fp16"])
def test_every_engine_runs_the_same_model(name, work, measured):
    """Root mean square difference of the logits from pyllm's fp16, in standard deviations of them. F16 in
    float32 arithmetic makes 0.003 and bf16 arithmetic 0.02, which either side may use; 8-bit weights make
    0.03, and with 8-bit activations 0.06. Twice the rotary base would be 0.2, rotary rows in the wrong order
    1.3. OpenVINO only names its most likely token."""
    engine = bench.ENGINES[name]
    if not engine.installed:
        pytest.skip(f"{engine.module} is not installed")
    needs = {"make_gguf": ["gguf"], "make_ctranslate2": ["transformers", "torch"]}.get(engine.make, [])
    for module in needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    workers = [bench.Worker(one, "tiny", work, 1) for one in ("pyllm-fp16", name)]
    try:
        assert not any(one.failed for one in workers), [one.failed for one in workers]
        reference, difference = bench.check_same_model(workers, bench.SHAPES["tiny"])
    finally:
        for one in workers:
            one.close()
    assert reference == "pyllm-fp16" and difference[reference] == 0
    assert difference[name] < (0.05 if engine.dtype in ("F16", "bf16") else 0.1)
