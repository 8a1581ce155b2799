"""Four-bit weights: what is packed comes back, what lies on a grid stays on it, and what is known of the
inputs makes the products better."""

import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pyllm.tools import calibrate, int4
from pyllm.tools.int4 import FLOAT4, GRIDS, NONLINEAR, UNIFORM, Int4

random = np.random.default_rng


def weights_of(rows: int, cols: int, seed: int = 1) -> np.ndarray:
    return (random(seed).standard_normal((rows, cols)) * 0.02).astype(np.float32)


def inputs_of(tokens: int, cols: int, seed: int = 2) -> np.ndarray:
    """Inputs as a model has them: columns that go together, and some much larger than others."""
    generator = random(seed)
    mixture = random(7).standard_normal((cols // 2, cols)) / np.sqrt(cols)
    some = generator.standard_normal((tokens, cols // 2)) @ mixture
    some += 0.2 * generator.standard_normal((tokens, cols))
    return (some * np.exp(random(8).standard_normal(cols))).astype(np.float32)


def loss(matrix: Int4, weights: np.ndarray, x: np.ndarray) -> float:
    """The mean square of the error of x @ weights.T."""
    return float(np.square(x @ (int4.decode(matrix) - weights).T).mean())


def moments_of(x: np.ndarray) -> np.ndarray:
    return x.T @ x / np.float32(len(x))


# ---------------------------------------------------------------------------------------------------------
# The layout


def naive_bytes(matrix: Int4) -> bytes:
    """The layout as the format's description has it, one nibble at a time."""
    rows, cols = matrix.indices.shape
    tiles, stride = -(-rows // 16), -(-cols // 64) * 64
    zero = int(np.abs(matrix.codebook.astype(int)).argmin())
    out = bytearray(matrix.codebook.tobytes() + bytes(48))
    for tile in range(tiles):
        for c in range(0, stride, 8):
            for row in range(16 * tile, 16 * tile + 16):
                for j in range(4):
                    low, high = (
                        int(matrix.indices[row, k]) if row < rows and k < cols else zero
                        for k in (c + j, c + 4 + j)
                    )
                    out.append(low | high << 4)
    for tile in range(tiles):
        for group in range(stride // 32):
            for row in range(16 * tile, 16 * tile + 16):
                inside = row < rows and group < matrix.scale.shape[1]
                out += (matrix.scale[row, group] if inside else np.float16(0)).tobytes()
    return bytes(out)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 40), (16, 64), (17, 65), (35, 96), (48, 200)])
def test_packed_bytes_are_those_of_the_description_and_unpack(rows: int, cols: int) -> None:
    generator = random(rows)
    matrix = Int4(
        np.sort(generator.choice(np.arange(-128, 128), 16, replace=False)).astype(np.int8),
        generator.integers(0, 16, (rows, cols)).astype(np.uint8),
        generator.standard_normal((rows, int4.groups(cols))).astype(np.float16),
    )
    data = int4.pack(matrix)
    assert data == naive_bytes(matrix)
    assert len(data) == int4.size(rows, cols)
    for sent, got in zip(matrix, int4.unpack(data, rows, cols), strict=True):
        assert sent.dtype == got.dtype and np.array_equal(sent, got)


def test_unpack_refuses_another_size() -> None:
    data = int4.pack(int4.encode(weights_of(16, 64)))
    with pytest.raises(ValueError, match="17 x 64 weights take 1216 bytes, not 640"):
        int4.unpack(data, 17, 64)


def test_decode_multiplies_value_and_scale() -> None:
    matrix = Int4(UNIFORM, np.array([[0, 8, 15, 9] + [8] * 29], np.uint8), np.array([[-0.5, 2]], np.float16))
    assert int4.decode(matrix)[0, [0, 1, 2, 3, 32]].tolist() == [4, 0, -3.5, -0.5, 0]


# ---------------------------------------------------------------------------------------------------------
# Without data


def test_a_weight_has_the_nearest_value() -> None:
    weights = weights_of(40, 64)
    matrix = int4.encode(weights)
    scale = np.repeat(matrix.scale.astype(np.float32), 32, axis=1)
    all_values = matrix.codebook.astype(np.float32) * scale[:, :, None]
    best = np.abs(all_values - weights[:, :, None]).min(axis=2)
    error = np.abs(int4.decode(matrix) - weights)
    assert (error <= best + np.abs(scale) * 1e-4).all()


def test_search_fits_better_than_the_largest_weight_does() -> None:
    weights = weights_of(64, 256)
    matrix = int4.encode(weights, codebook=NONLINEAR)
    scale = np.abs(weights.reshape(64, 8, 32)).max(axis=2) / 127
    relative = weights.reshape(64, 8, 32) / scale[:, :, None]
    nearest = NONLINEAR[np.abs(relative[..., None] - NONLINEAR.astype(np.float32)).argmin(axis=3)]
    simple = (nearest * scale[:, :, None]).reshape(weights.shape)
    # measured on Gaussian weights: 22.7 dB against 20.7
    assert np.square(int4.decode(matrix) - weights).sum() < 0.75 * np.square(simple - weights).sum()


def test_scales_of_both_signs_are_used() -> None:
    """The codebook reaches to -127 and to 113, so a group's largest weight is better off on its long side."""
    scale = int4.encode(weights_of(64, 256), codebook=NONLINEAR).scale
    assert 0.2 < (scale < 0).mean() < 0.8


def test_a_fitted_codebook_suits_its_weights() -> None:
    """Weights of few values: fitted, the codebook has them."""
    generator = random(3)
    values = np.array([-1, -0.6, 0, 0.11, 0.42, 0.9], np.float32)
    weights = generator.choice(values, (64, 256)) * (1 + 0.003 * generator.standard_normal((64, 256)))
    weights = weights.astype(np.float32)
    fitted = int4.encode(weights)
    given = int4.encode(weights, codebook=NONLINEAR)
    assert np.array_equal(fitted.codebook, np.sort(fitted.codebook))
    assert np.abs(fitted.codebook.astype(int)).max() == 127
    error = [np.square(int4.decode(matrix) - weights).sum() for matrix in (fitted, given)]
    assert error[0] < 0.5 * error[1]


# ---------------------------------------------------------------------------------------------------------
# With data


def test_mean_squares_make_products_better() -> None:
    weights, x, others = weights_of(96, 128), inputs_of(2000, 128), inputs_of(500, 128, seed=5)
    plain, weighted = int4.encode(weights), int4.encode(weights, np.square(x).mean(axis=0))
    assert loss(weighted, weights, others) < 0.85 * loss(plain, weights, others)


@pytest.mark.parametrize("cols", [96, 128, 200])
def test_second_moments_make_products_better_still(cols: int) -> None:
    """On inputs that were not seen, drawn like those that were."""
    weights, x, others = weights_of(96, cols), inputs_of(4000, cols), inputs_of(500, cols, seed=5)
    weighted = int4.encode(weights, np.square(x).mean(axis=0))
    in_turn = int4.encode(weights, moments=moments_of(x), tokens=len(x))
    assert loss(in_turn, weights, others) < 0.8 * loss(weighted, weights, others)


def test_rounding_in_turn_is_gptq() -> None:
    """The published algorithm, which updates the weights that are still to be rounded by the inverse's
    Cholesky factor, in float64: given the scales, it makes no smaller error in any group, and often the same
    (of the values that a scale beside the final one led to, those are kept that are better)."""
    weights, x = weights_of(24, 64), inputs_of(1000, 64)
    feedback = int4.factor(moments_of(x), float("inf"))
    order = feedback.columns
    index, scale = int4.round_rows(weights, NONLINEAR, feedback.weight, feedback)
    index, scale = index[:, order], scale[:, order[::32] // 32].astype(np.float64)
    moments = moments_of(x).astype(np.float64)[np.ix_(order, order)]
    moments += np.eye(64) * int4.DAMPING * np.diagonal(moments).mean()
    upper = np.linalg.cholesky(np.linalg.inv(moments)).T
    left = weights[:, order].astype(np.float64)

    def round_group(left: np.ndarray, group: int, given: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rounds a group of `left`, which it changes, to the nearest values or to those given; these, and the
        group's error."""
        found, total = np.empty((24, 32), int), np.zeros(24)
        for j in range(32 * group, 32 * group + 32):
            steps = left[:, j] / scale[:, group]
            nearest = np.abs(steps[:, None] - NONLINEAR.astype(np.float64)).argmin(axis=1)
            found[:, j % 32] = nearest if given is None else given[:, j]
            error = (left[:, j] - NONLINEAR[found[:, j % 32]] * scale[:, group]) / upper[j, j]
            left[:, j:] -= error[:, None] * upper[j, j:]
            total += np.square(error)
        return found, total

    for group in range(2):
        these = slice(32 * group, 32 * group + 32)
        # errors are compared as differences of sums like this one, of 32 terms in float32
        whole = np.square(left[:, these] / np.diagonal(upper)[these]).sum(axis=1)
        expected, most = round_group(left.copy(), group, None)
        same, error = round_group(left, group, index)
        assert (error <= most + 32 * np.finfo(np.float32).eps * whole).all()
        assert 0.2 < (expected == same).all(axis=1).mean()


@pytest.mark.parametrize(("tokens", "cols"), [(1, 1), (130, 33), (300, 200), (700, 520)])
def test_moments_are_sums_of_squares_and_factors_multiply_to_them(tokens: int, cols: int) -> None:
    """Against NumPy's products in float64."""
    x = inputs_of(tokens, cols + 1)[:, 1:]
    (found,) = calibrate.moments_of(x, cols).blocks
    assert np.array_equal(found, found.T)
    exact = x.T.astype(np.float64) @ x
    want = exact / (tokens + calibrate.ALIKE)
    want += np.eye(cols) * np.diagonal(exact).mean() / tokens * calibrate.ALIKE / (tokens + calibrate.ALIKE)
    np.testing.assert_allclose(found, want, atol=1e-5 * np.diagonal(want).max(), rtol=1e-5)

    lower, weight, order = int4.factor(found, float("inf"))
    lower = np.tril(lower).astype(np.float64)
    assert np.array_equal(np.sort(order), np.arange(cols)) and (np.diagonal(lower) == 1).all()
    damped = want + np.eye(cols) * int4.DAMPING * np.diagonal(want).mean()
    np.testing.assert_allclose(
        lower.T @ (weight[:, None] * lower), damped[order[:, None], order], atol=1e-5 * damped.max(), rtol=0
    )


def test_a_matrix_that_is_not_positive_definite_is_damped_more() -> None:
    moments = np.full((40, 40), 1, np.float32)
    moments[0, 1] = moments[1, 0] = 3
    feedback = int4.factor(moments, float("inf"))
    assert (feedback.weight > 0).all() and np.isfinite(feedback.lower).all()


@pytest.mark.parametrize("codebook", [NONLINEAR, UNIFORM, np.arange(-127, 128, dtype=np.int8)])
def test_instruction_sets_and_threads_give_the_same_bits(
    codebook: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, x = weights_of(70, 300), inputs_of(400, 300)

    def made(each: int4.Map = map) -> list[bytes]:
        (moments,) = calibrate.moments_of(x, 300, each).blocks
        feedback = int4.factor(moments, 400, each=each)
        arrays = [moments, feedback.lower, feedback.weight]
        arrays += int4.round_rows(weights, codebook, feedback.weight)
        arrays += int4.round_rows(weights, codebook, feedback.weight, feedback)
        return [array.tobytes() for array in arrays]

    here = made()
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(int4, "SHARE", 32)
        assert made(pool.map) == here
    monkeypatch.setenv("PYLLM_ISA", "scalar")
    assert made() == here


def test_consecutive_values_are_rounded_to_as_any_others() -> None:
    """int8, say: what is nearest, by the plain arithmetic of NumPy."""
    weights, codebook = weights_of(40, 64), np.arange(-127, 128, dtype=np.int8)
    index, scale = int4.round_rows(weights, codebook, np.ones(64, np.float32))
    scale = np.repeat(scale, 32, axis=1)
    assert (np.abs(weights / scale - codebook[index]) <= 0.5001).all()
    simple = np.repeat(np.abs(weights.reshape(40, 2, 32)).max(axis=2) / 127, 32, axis=1)
    error = np.square(weights - np.rint(weights / simple) * simple).sum()
    assert np.square(weights - codebook[index] * scale).sum() < error


def test_groups_of_large_inputs_are_rounded_first() -> None:
    mean_squares = np.ones(100, np.float32)
    mean_squares[40] = 5  # in the second group of 32; the fourth has 4 columns
    assert int4.in_order(mean_squares).tolist() == [*range(32, 64), *range(32), *range(64, 100)]


def test_pieces_of_rows_give_the_same_bits_as_all_at_once() -> None:
    weights, x = weights_of(70, 96), inputs_of(500, 96)
    whole = int4.encode(weights, moments=moments_of(x), tokens=500, codebook=NONLINEAR)
    rounds = int4.Rounder(NONLINEAR, np.diagonal(moments_of(x)), [int4.factor(moments_of(x), 500)])
    pieces = [rounds.rows(weights[a:b]) for a, b in ((0, 3), (3, 40), (40, 70))]
    for name in ("indices", "scale"):
        together = np.concatenate([getattr(piece, name) for piece in pieces])
        assert np.array_equal(together, getattr(whole, name))


def test_few_inputs_are_believed_less() -> None:
    """Moments of fewer inputs than columns are singular: they must help a little on others, not harm."""
    weights, others = weights_of(96, 128), inputs_of(500, 128, seed=5)
    x = inputs_of(40, 128)
    weighted = int4.encode(weights, np.square(x).mean(axis=0))
    in_turn = int4.encode(weights, moments=moments_of(x), tokens=len(x))
    assert loss(in_turn, weights, others) < 1.05 * loss(weighted, weights, others)
    assert int4.shrinkage(128, 40) > 0.8 > 0.1 > int4.shrinkage(128, 4000)


# ---------------------------------------------------------------------------------------------------------
# Weights that are hard


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = weights_of(4, 64)
    for value, words in ((np.nan, "not finite"), (np.inf, "not finite"), (1e8, "magnitude 1e\\+08, above")):
        weights[2, 5] = value
        with pytest.raises(ValueError, match=words):
            int4.encode(weights)


def test_the_largest_weights_fit() -> None:
    weights = np.full((1, 32), int4.FP16_MAX * 127, np.float32)
    weights[0, ::2] *= -1
    decoded = int4.decode(int4.encode(weights, codebook=NONLINEAR))
    assert np.isfinite(decoded).all() and np.abs(decoded / weights - 1).max() < 0.15


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-7, 1e-9, 1e-12, 1e-42])
def test_small_weights_keep_what_fp16_scales_can_hold(size: float) -> None:
    weights = (random(4).standard_normal((8, 64)) * size).astype(np.float32)
    error = np.abs(int4.decode(int4.encode(weights)) - weights)
    # the smallest scale is 2^-24, and two values of a codebook are at most 24 steps apart
    assert error.max() <= max(0.3 * size, 12 * 2.0**-24)


@pytest.mark.parametrize("with_data", [False, True])
def test_zeros_stay_zeros(with_data: bool) -> None:
    weights = weights_of(20, 96)
    weights[3] = 0
    weights[5, 32:64] = 0
    moments = moments_of(inputs_of(300, 96)) if with_data else None
    matrix = int4.encode(weights, moments=moments, tokens=300)
    decoded = int4.decode(matrix)
    assert not decoded[3].any() and np.isfinite(decoded).all()
    if not with_data:
        assert not decoded[5, 32:64].any() and matrix.scale[5, 1] == 0
    assert not int4.decode(int4.encode(np.zeros((2, 32), np.float32))).any()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 33), (2, 31), (5, 32)])
def test_tiny_matrices(rows: int, cols: int) -> None:
    weights, x = weights_of(rows, cols), random(1).standard_normal((10, cols)).astype(np.float32)
    for moments in (None, moments_of(x)):
        matrix = int4.encode(weights, moments=moments, tokens=10)
        assert np.abs(int4.decode(matrix) - weights).max() < 0.2 * np.abs(weights).max()
        assert np.array_equal(int4.unpack(int4.pack(matrix), rows, cols).indices, matrix.indices)


def test_columns_without_input_do_not_break_the_rest() -> None:
    weights, x = weights_of(32, 96), inputs_of(500, 96)
    x[:, 10:50] = 0
    matrix = int4.encode(weights, moments=moments_of(x), tokens=500)
    assert loss(matrix, weights, x) < loss(int4.encode(weights), weights, x)
    assert np.abs(int4.decode(matrix) - weights)[:, 10:50].max() < np.abs(weights).max()


def test_inputs_of_zeros_are_no_data() -> None:
    weights = weights_of(16, 64)
    nothing = int4.encode(weights, moments=np.zeros((64, 64), np.float32), tokens=10)
    assert np.array_equal(nothing.indices, int4.encode(weights).indices)


# ---------------------------------------------------------------------------------------------------------
# Grids


@pytest.mark.parametrize("codebook", GRIDS, ids=["uniform", "nonlinear", "float4"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (40, 96), (20, 70)])
def test_weights_on_a_grid_stay_as_they_are(codebook: np.ndarray, rows: int, cols: int) -> None:
    generator = random(rows)
    scale = (generator.standard_normal((rows, int4.groups(cols))) * 0.01).astype(np.float16)
    scale[0, 0] = 0
    source = Int4(codebook, generator.integers(0, 16, (rows, cols)).astype(np.uint8), scale)
    found = int4.find_grid(int4.decode(source))
    assert found is not None
    assert np.array_equal(int4.decode(found), int4.decode(source))


def test_weights_off_the_grid_are_not_taken_for_weights_on_it() -> None:
    weights = int4.decode(int4.encode(weights_of(40, 96), codebook=UNIFORM))
    assert int4.find_grid(weights) is not None
    weights[37, 90] = np.nextafter(weights[37, 90], np.float32(1))
    assert int4.find_grid(weights) is None
    assert int4.find_grid(weights_of(40, 96)) is None


@pytest.mark.parametrize("wide", [32, 64, 128])
def test_encode_grid_spreads_scales_and_keeps_values(wide: int) -> None:
    generator = random(wide)
    index = generator.integers(0, 16, (6, 256)).astype(np.uint8)
    scale = generator.standard_normal((6, 256 // wide)).astype(np.float16)
    codebook = np.roll(FLOAT4, 5)  # in any order
    matrix = int4.encode_grid(index, codebook, scale)
    assert matrix is not None
    expected = codebook[index].astype(np.float32) * np.repeat(scale.astype(np.float32), wide, axis=1)
    assert np.array_equal(int4.decode(matrix), expected)
    assert np.array_equal(int4.decode(int4.unpack(int4.pack(matrix), 6, 256)), expected)


def test_encode_grid_tells_what_does_not_fit() -> None:
    index = np.zeros((2, 96), np.uint8)
    assert int4.encode_grid(index, UNIFORM, np.full((2, 3), 2.0**-26, np.float32)) is None
    assert int4.encode_grid(index, UNIFORM, np.full((2, 3), 0.1, np.float32)) is None
    with pytest.raises(ValueError, match="5 scales do not divide 96 columns"):
        int4.encode_grid(index, UNIFORM, np.ones((2, 5), np.float32))


# ---------------------------------------------------------------------------------------------------------
# Calibration


def test_wide_inputs_are_taken_in_blocks_of_columns() -> None:
    weights, x, others = weights_of(64, 256), inputs_of(3000, 256), inputs_of(500, 256, seed=5)
    found = {}
    for width in (256, 64):
        encoder = calibrate.Calibration(width=width).observe(0, 0, None, x)
        assert encoder.moments is not None
        assert [len(block) for block in encoder.moments.blocks] == [width] * (256 // width)
        found[width] = loss(encoder.rounder(weights).rows(weights), weights, others)
    weighted = loss(int4.encode(weights, np.square(x).mean(axis=0)), weights, others)
    assert found[256] < found[64] < weighted


def test_blocks_are_of_one_size_and_of_whole_groups() -> None:
    def sizes(cols: int, width: int) -> list[int]:
        return [block.stop - block.start for block in calibrate.blocks(cols, width)]

    assert sizes(4096, 4096) == [4096]
    assert sizes(8960, 4096) == [3008, 3008, 2944]
    assert sizes(100, 64) == [64, 36]
    assert sizes(5, 64) == [5]


@pytest.mark.parametrize("tokens", [1, 3, 10, 40])
def test_few_inputs_are_no_worse_than_none(tokens: int) -> None:
    """An expert that saw one token is not rounded for that token alone."""
    weights, others = weights_of(96, 128), inputs_of(500, 128, seed=5)
    encoder = calibrate.Calibration().observe(4, 0, 7, inputs_of(tokens, 128))
    without = loss(int4.encode(weights), weights, others)
    assert loss(encoder.rounder(weights).rows(weights), weights, others) < without


def test_no_input_is_no_data() -> None:
    weights = weights_of(16, 64)
    encoder = calibrate.Calibration().observe(3, 0, None, np.empty((0, 64), np.float32))
    matrix = encoder.rounder(weights).rows(weights)
    assert np.array_equal(matrix.indices, int4.encode(weights).indices)


def test_an_input_that_is_not_finite_is_refused() -> None:
    x = inputs_of(10, 64)
    x[4, 7] = np.inf
    with pytest.raises(ValueError, match="input of the product is not finite"):
        calibrate.Calibration().observe(3, 0, None, x)


def test_an_expert_that_saw_little_is_rounded_by_what_its_layer_saw() -> None:
    weights, x, others = weights_of(64, 128), inputs_of(3000, 128), inputs_of(500, 128, seed=5)
    calibration = calibrate.Calibration()
    alone = [calibration.observe(1, 4, 0, x[:n]).rounder(weights).rows(weights) for n in (0, 3)]
    calibration.layer_inputs(4, x)
    helped = [calibration.observe(1, 4, 0, x[:n]).rounder(weights).rows(weights) for n in (0, 3)]
    for without, with_layer in zip(alone, helped, strict=True):
        assert loss(with_layer, weights, others) < 0.8 * loss(without, weights, others)
    # another layer's inputs, or of another width, tell nothing
    for layer, cols in ((5, 128), (4, 64)):
        assert calibration.observe(1, layer, 0, np.empty((0, cols), np.float32)).moments is None


# ---------------------------------------------------------------------------------------------------------
# The text


def scripts_of(text: str) -> set[str]:
    """The scripts of a text's letters, by the first words of their Unicode names."""
    return {unicodedata.name(letter, "?").split()[0] for letter in set(text) if letter.isalpha()}


def test_the_calibration_text_has_many_kinds_from_its_beginning() -> None:
    text = calibrate.TEXT.read_text(encoding="utf-8")
    assert 30_000 <= len(text.encode()) <= 60_000
    expected = {"LATIN", "CYRILLIC", "CJK", "HIRAGANA", "KATAKANA", "ARABIC", "DEVANAGARI", "HANGUL"}
    signs = (
        "def ",
        "static int",
        "SELECT",
        "#!/bin/sh",
        '{"id"',
        "<form",
        "async function",
        "| City",
        "User:",
    )
    for part in (text, text[:6000]):
        assert expected <= scripts_of(part)
        assert not [sign for sign in signs if sign not in part]
    assert {"GREEK", "HEBREW", "THAI"} <= scripts_of(text)


def test_the_calibration_text_does_not_repeat_itself() -> None:
    paragraphs = calibrate.TEXT.read_text(encoding="utf-8").split("\n\n")
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 40]
    assert len(long) > 60 and len(set(long)) == len(long)
