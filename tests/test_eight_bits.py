"""int8 files that are calibrated: what is rounded by a text, how, and what is left as it was.

The models are random and tiny; what a file holds is read by tests/reference.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyllm._llm import ffi, lib
from pyllm.tools import calibrate, eight_bits, flatfile, four_bits, int4
from pyllm.tools.convert import convert
from reference import INT8R, Reference
from test_four_bits import LAYER, TEXT, make, matrices, opens, sources_of, text  # noqa: F401
from test_int4 import inputs_of, moments_of, weights_of

TENSORS = {name: number for number, name in flatfile.TENSOR_IDS}


def groups_of(rotated: np.ndarray) -> np.ndarray:
    return rotated.reshape(-1, flatfile.GROUP)


def decoded(q: np.ndarray, scale: np.ndarray, rows: int) -> np.ndarray:
    return (q * scale.astype(np.float32)[:, None]).reshape(rows, -1)


# ---------------------------------------------------------------------------------------------------------
# Rounding


def one_by_one(weights: np.ndarray, feedback: int4.Feedback) -> np.ndarray:
    """GPTQ row by row and in float64, with scales of max|place| / 127; the weights that come of it."""
    lower = feedback.lower.astype(np.float64)
    found = np.zeros(weights.shape)
    for w, row in zip(weights.astype(np.float64), found, strict=True):
        errors = np.zeros(len(w))
        for j, column in enumerate(feedback.columns):
            if j % 64 == 0:
                group = feedback.columns[j : j + 64]
                top = np.abs(w[group] + lower[j : j + 64, :j] @ errors[:j]).max()
                scale = np.float64(np.float16(np.float32(top) / np.float32(127)))
            place = w[column] + lower[j, :j] @ errors[:j]
            row[column] = np.clip(np.rint(place / scale), -127, 127) * scale
            errors[j] = w[column] - row[column]
    return found


def test_columns_are_rounded_in_turn() -> None:
    """No worse than GPTQ with the plain scales for any row's sum of errors, and better for most."""
    weights, moments = weights_of(20, 192), moments_of(inputs_of(2000, 192))
    feedback = int4.factor(moments, 2000, group=64)
    found = decoded(*eight_bits.Rounder([feedback])(groups_of(weights)), 20)
    losses = []
    for w in (found, one_by_one(weights, feedback)):
        e = (w - weights.astype(np.float64))[:, feedback.columns]
        lower = np.tril(feedback.lower.astype(np.float64), -1) + np.eye(192)
        losses.append(np.square(e @ lower.T) @ feedback.weight.astype(np.float64))
    assert (losses[0] < 1.02 * losses[1]).all() and losses[0].sum() < losses[1].sum()


def test_products_come_out_closer_on_other_inputs() -> None:
    weights, x, others = weights_of(64, 256), inputs_of(3000, 256), inputs_of(500, 256, seed=5)
    error = []
    for rounding in (
        eight_bits.Rounder([int4.factor(moments_of(x), 3000, group=64)]),
        flatfile.round_apart,
    ):
        difference = decoded(*rounding(groups_of(weights)), len(weights)) - weights
        error.append(np.square(others @ difference.T).mean())
    assert error[0] < 0.5 * error[1]


def test_inputs_that_do_not_go_together_are_rounded_apart() -> None:
    """Each to the nearest value of its scale, which is no worse than the plain one."""
    weights = weights_of(30, 128)
    feedback = int4.factor(np.eye(128, dtype=np.float32), 1e9, group=64)
    q, scale = eight_bits.Rounder([feedback])(groups_of(weights))
    steps = groups_of(weights) / scale.astype(np.float32)[:, None]
    assert np.abs(q - np.clip(steps, -127, 127)).max() <= 0.5 + 127 * 2**-11  # of the scale as fp16
    plain = decoded(*flatfile.round_apart(groups_of(weights)), 30) - weights
    error = decoded(q, scale, 30) - weights
    assert (np.square(groups_of(error)).sum(1) <= np.square(groups_of(plain)).sum(1) * 1.02).all()
    assert np.square(error).sum() < 0.97 * np.square(plain).sum()


def test_groups_of_zeros_and_largest_weights() -> None:
    weights = np.zeros((3, 128), np.float32)
    weights[1, 64:] = np.float32(2.0**-26)  # less than the smallest scale
    weights[2] = np.float32(8e6) * np.sign(weights_of(1, 128)[0])
    feedback = int4.factor(moments_of(inputs_of(500, 128)), 500, group=64)
    q, scale = eight_bits.Rounder([feedback])(groups_of(weights))
    assert np.isfinite(scale).all() and not decoded(q, scale, 3)[0].any()
    assert np.abs(decoded(q, scale, 3)[2] - weights[2]).max() < 8e6 / 64


def test_blocks_of_columns_are_whole_groups() -> None:
    """Wide inputs, of which blocks are taken apart."""
    weights, x, others = weights_of(40, 320), inputs_of(3000, 320), inputs_of(500, 320, seed=5)
    error = {}
    for width in (320, 160):
        feedback = calibrate.Calibration(width=width).observe(0, 0, None, x).feedback(64)
        assert [len(part.columns) for part in feedback] == ([320] if width == 320 else [192, 128])
        difference = decoded(*eight_bits.Rounder(feedback)(groups_of(weights)), 40) - weights
        error[width] = np.square(others @ difference.T).mean()
    without = decoded(*flatfile.round_apart(groups_of(weights)), 40) - weights
    assert error[320] < error[160] < np.square(others @ without.T).mean()


# ---------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("kind", ["llama odd rows", "mixtral"])
def test_calibrated_products_of_int8_are_closer(tmp_path: Path, text: Path, kind: str) -> None:  # noqa: F811
    """On the inputs that the products see of the text; nothing but these matrices has changed."""
    source, config, tensors = make(tmp_path, kind)
    error, files, reports = {}, {}, {}
    seen: dict[tuple[str, int, int], np.ndarray] = {}

    def see(tensor: int, layer: int, expert: int, x: np.ndarray) -> None:
        seen[ffi.string(lib.llm_tensor_name(tensor)).decode(), layer, expert] = x.copy()

    want = sources_of(kind, config, tensors)
    for by in ("none", text):
        out = tmp_path / "out.llm"
        reports[by] = convert(source, out, dtype="int8", calibrate=by)
        opens(out)
        if by == "none":
            four_bits.run(out, TEXT, see)
        found = matrices(out, INT8R)
        error[by] = {key: np.square((w - want[key]) @ seen[key].T).sum() for key, w in found.items()}
        files[by] = Reference(out.read_bytes())
        once = {(name, 0, 0): files[by].once[name][0].w for name in ("embed", "output")}
        largest = max(np.abs(w - want[key]).max() for key, w in (found | once).items())
        assert reports[by].max_error == pytest.approx(largest, rel=1e-3)
    share = {key: error[text][key] / error["none"][key] for key in error[text]}
    assert len(share) == 2 * (2 + 2 * (3 if kind == "mixtral" else 1))
    assert max(share.values()) < 0.9 and share["qkv", 0, 0] < 0.3, share
    for name in ("embed", "output"):
        assert np.array_equal(files["none"].once[name][0].w, files[text].once[name][0].w)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.llm", "src", "text.txt"]


@pytest.mark.parametrize("threads", [1, 5])
def test_calibrated_int8_has_the_same_bytes_with_any_threads(
    tmp_path: Path,
    text: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    monkeypatch.setattr(flatfile, "JOB", 64 * 16 * 3)
    source, _, _ = make(tmp_path)
    convert(source, tmp_path / "want.llm", dtype="int8", calibrate=text)
    monkeypatch.setattr("pyllm.tools.convert.lib", Threads(threads))
    convert(source, tmp_path / "out.llm", dtype="int8", calibrate=text)
    assert (tmp_path / "out.llm").read_bytes() == (tmp_path / "want.llm").read_bytes()


class Threads:
    """lib, which says that there are so many threads."""

    def __init__(self, count: int) -> None:
        self.count = count

    def llm_default_threads(self) -> int:
        return self.count

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)
