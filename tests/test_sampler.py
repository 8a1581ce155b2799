"""The sampler against an independent one written from the definitions, in float64 and with sorting."""

import itertools
import math

import numpy as np
import pytest
from pyllm._llm import ffi, lib

NAN, INF = math.nan, math.inf
EACH_PATH = [dict(), dict(temperature=0), dict(top_k=3), dict(top_p=0.9), dict(min_p=0.1)]


class Sampler:
    """llm_sampler with its parameters by name; bias is {token: value}."""

    def __init__(self, vocab_size, bias=None, **params):
        self.params = lib.llm_sampling_default()
        self.params.temperature, self.params.top_p = 1.0, 1.0
        for name, value in params.items():
            setattr(self.params, name, value)
        if bias:
            self.keep = ffi.new("uint32_t[]", list(bias)), ffi.new("float[]", list(bias.values()))
            self.params.n_bias = len(bias)
            self.params.bias_tokens, self.params.bias_values = self.keep
        err = ffi.new("char[256]")
        sampler = lib.llm_sampler_open(ffi.new("llm_sampling *", self.params), vocab_size, err, 256)
        if not sampler:
            raise ValueError(ffi.string(err).decode())
        self.sampler = ffi.gc(sampler, lib.llm_sampler_close)
        self.vocab_size = vocab_size

    def accept(self, token, generated):
        lib.llm_sampler_accept(self.sampler, token, generated)

    def draw(self, logits, n=1, allowed=None):
        logits = np.ascontiguousarray(logits, dtype=np.float32)
        assert logits.size == self.vocab_size
        before = logits.tobytes()
        pointer = ffi.cast("float *", logits.ctypes.data)
        mask = ffi.NULL if allowed is None else ffi.from_buffer("uint32_t[]", bits(allowed))
        tokens = [lib.llm_sample(self.sampler, pointer, mask) for _ in range(n)]
        assert logits.tobytes() == before  # the caller's logits are not changed
        return tokens


def bits(allowed):
    """A mask: a bit for each token that may be drawn, in words of 32."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


def splitmix64(seed):
    """The uniform numbers of Vigna's splitmix64.c, its upper 53 bits as a fraction."""
    mask = (1 << 64) - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield ((z ^ (z >> 31)) >> 11) / 2**53


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The probabilities that tokens are drawn with, by sorting, in float64."""
    logits = np.asarray(logits, dtype=np.float32).astype(np.float64)
    logits = np.where(np.isnan(logits), -np.inf, logits)
    weights = np.exp((logits - logits.max()) / np.float64(np.float32(temperature)))
    ranked = np.argsort(-logits, kind="stable")  # the lower id first among equals
    keep = np.ones(len(logits), dtype=bool)
    if top_k:
        keep[ranked[top_k:]] = False
    if top_p < 1:
        mass = np.cumsum(np.where(keep, weights, 0)[ranked])
        keep[ranked[np.searchsorted(mass, np.float64(np.float32(top_p)) * mass[-1]) + 1 :]] = False
    keep &= weights >= np.float32(min_p)
    weights = np.where(keep, weights, 0)
    return weights / weights.sum()


def logits_like_a_model(vocab_size, seed):
    """A few likely tokens above a broad floor."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, vocab_size)
    logits[random.integers(0, vocab_size, 12)] += np.linspace(4, 12, 12)
    return logits.astype(np.float32)


def assert_draws_match(sampler, logits, probabilities, seed, n):
    """The n-th token is the inverse of the distribution, in the order of ids, at splitmix64's n-th number.

    The sampler's float32 weights move the steps of the distribution by less than 1e-5, so a draw may be the
    token on either side of a step that close.
    """
    steps = np.cumsum(probabilities)
    for token, u in zip(sampler.draw(logits, n), splitmix64(seed), strict=False):
        near = [v for v in (u - 1e-5, u, u + 1e-5) if 0 <= v < steps[-1]]
        allowed = np.searchsorted(steps, near, side="right")
        assert token in allowed
        assert probabilities[token] > 0


# ----------------------------------------------------------------------------------------------------------
# Filters


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 64, 65, 1000, 50_001])
@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p",
    list(itertools.product([0.7, 1.0, 2.5], [0, 1, 40], [0.3, 0.9, 1.0], [0.0, 0.05])),
)
def test_every_combination_of_filters_matches_the_reference(vocab_size, temperature, top_k, top_p, min_p):
    logits = logits_like_a_model(vocab_size, seed=vocab_size)
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampler = Sampler(vocab_size, seed=7, **settings)
    assert_draws_match(sampler, logits, reference(logits, **settings), seed=7, n=100)


@pytest.mark.parametrize("seed", range(40))
def test_random_settings_match_the_reference(seed):
    random = np.random.default_rng(seed)
    vocab_size = int(random.integers(2, 5000))
    logits = random.normal(0, random.uniform(0.01, 8), vocab_size).astype(np.float32)
    if seed % 2:  # many equal logits
        logits = np.round(logits)
    settings = dict(
        temperature=float(random.uniform(0.1, 3)),
        top_k=int(random.integers(0, vocab_size + 5)),
        top_p=float(random.uniform(0.01, 1)),
        min_p=float(random.choice([0, random.uniform(0, 1)])),
    )
    sampler = Sampler(vocab_size, seed=seed, **settings)
    assert_draws_match(sampler, logits, reference(logits, **settings), seed, n=200)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(top_k=8),
        dict(top_p=0.8),
        dict(min_p=0.02),
        dict(temperature=1.7, top_k=20, top_p=0.9, min_p=0.01),
    ],
    ids=str,
)
def test_frequencies_follow_the_probabilities(settings):
    """Pearson's statistic over the tokens expected at least 5 times.

    The bound is its mean plus 10 standard deviations, which chance passes less than once in 10^5 seeds at any
    number of degrees of freedom from 3 on; the seed is fixed.
    """
    n, logits = 20_000, logits_like_a_model(60, seed=1)
    p = reference(logits, **settings)
    counts = np.bincount(Sampler(60, seed=11, **settings).draw(logits, n), minlength=60)
    assert not counts[p == 0].any()
    often = p * n >= 5
    freedom = often.sum() - 1
    statistic = ((counts[often] - p[often] * n) ** 2 / (p[often] * n)).sum()
    assert statistic < freedom + 10 * math.sqrt(2 * freedom)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25], dtype=np.float32))
    for top_p, n in [(0.01, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.89, 3), (0.91, 4)]:
        kept = {1, 3, 2, 0} - set([1, 3, 2, 0][n:])
        assert set(Sampler(4, top_p=top_p).draw(logits, 300)) == kept


def test_top_p_is_of_what_top_k_leaves():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    assert set(Sampler(4, top_p=0.55).draw(logits, 300)) == {0, 1}  # 0.4 alone is less than 0.55 of all
    assert set(Sampler(4, top_p=0.55, top_k=2).draw(logits, 300)) == {0}  # but more than 0.55 of 0.7


def test_min_p_is_relative_to_the_most_likely():
    logits = np.log(np.array([0.5, 0.26, 0.24], dtype=np.float32))
    assert set(Sampler(3, min_p=0.5).draw(logits, 300)) == {0, 1}
    assert set(Sampler(3, min_p=1.0).draw(logits, 300)) == {0}


# ----------------------------------------------------------------------------------------------------------
# Greedy, ties, special values


def test_temperature_zero_takes_the_most_likely():
    logits = logits_like_a_model(1000, seed=3)
    assert Sampler(1000, temperature=0).draw(logits, 5) == [int(np.argmax(logits))] * 5


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(top_k=1), dict(top_p=1e-6)], ids=str)
def test_lowest_id_wins_among_equals(settings):
    logits = np.zeros(300, dtype=np.float32)
    logits[[70, 71, 200, 299]] = 5
    assert Sampler(300, **settings).draw(logits, 20) == [70] * 20


@pytest.mark.parametrize("vocab_size", [100, 10_000])
def test_top_k_keeps_the_lower_ids_among_equals(vocab_size):
    logits = np.zeros(vocab_size, dtype=np.float32)
    logits[vocab_size - 1] = 1
    assert set(Sampler(vocab_size, top_k=4).draw(logits, 400)) == {vocab_size - 1, 0, 1, 2}


@pytest.mark.parametrize("order", [1, -1])
def test_sorted_logits_are_no_special_case(order):
    logits = np.linspace(-20, 20, 40_000)[::order]
    settings = dict(top_k=100, top_p=0.9)
    assert_draws_match(Sampler(40_000, seed=5, **settings), logits, reference(logits, **settings), 5, 200)


@pytest.mark.parametrize("settings", EACH_PATH, ids=str)
def test_nan_counts_as_minus_infinity(settings):
    logits = np.full(200, NAN, dtype=np.float32)
    logits[[5, 150]] = 1.0, 0.9
    logits[7] = -INF
    assert set(Sampler(200, **settings).draw(logits, 100)) <= {5, 150}


@pytest.mark.parametrize("settings", EACH_PATH, ids=str)
def test_logits_without_a_finite_maximum_give_the_most_likely(settings):
    draw = Sampler(100, **settings).draw
    assert draw(np.full(100, NAN)) == [0]
    assert draw(np.full(100, -INF)) == [0]
    mixed = np.full(100, NAN)
    mixed[[30, 60, 90]] = INF, INF, 3.0
    assert draw(mixed) == [30]


def test_all_tokens_forbidden_gives_the_most_likely_before_the_bias():
    logits = [0.0, 3.0, 2.0]
    assert Sampler(3, bias={0: -INF, 1: -INF, 2: -INF}).draw(logits) == [1]


@pytest.mark.parametrize("temperature", [1e-45, 1e-6, 1e6, 3e38])
def test_extreme_temperatures_and_logits(temperature):
    logits = np.array([3e38, -3e38, 0, 3e38], dtype=np.float32)
    tokens = Sampler(4, temperature=temperature).draw(logits, 200)
    if temperature < 1:
        assert set(tokens) == {0, 3}
    assert set(tokens) <= {0, 1, 2, 3}


def test_a_large_vocabulary_with_equal_logits_draws_from_all():
    tokens = np.array(Sampler(200_000, top_p=0.5).draw(np.zeros(200_000), 300))
    assert tokens.max() < 100_000  # half of the mass: the lower half of the ids
    assert tokens.max() > 90_000 and tokens.min() < 10_000


# ----------------------------------------------------------------------------------------------------------
# Penalties and bias


def first_above(sampler, logits, token, values):
    """The first of `values` at which the logit of `token`, set to it, wins: what was subtracted from it."""
    for value in values:
        logits[token] = value
        if sampler(list(logits)) == token:
            return value
    raise AssertionError("none wins")


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits():
    def draw(accepted, logits):
        sampler = Sampler(3, temperature=0, repeat_penalty=2.0)
        for token in accepted:
            sampler.accept(token, 0)
        return sampler.draw(logits)[0]

    assert draw([], [4.0, 3.0, 0.0]) == 0
    assert draw([0], [4.0, 3.0, 0.0]) == 1  # 4 / 2 < 3
    assert draw([0, 0, 0], [6.5, 3.0, 0.0]) == 0  # once, however often it was seen
    assert draw([0], [-1.0, -1.5, -9.0]) == 1  # -1 * 2 < -1.5
    assert draw([0], [-0.7, -1.5, -9.0]) == 0


def test_presence_and_frequency_penalties_count_generated_tokens_only():
    def needed(accepts, **penalties):
        def draw(logits):
            sampler = Sampler(2, temperature=0, **penalties)
            for generated in accepts:
                sampler.accept(0, generated)
            return sampler.draw(logits)[0]

        return first_above(draw, [0.0, 0.0], 0, np.arange(0, 6, 0.25))

    assert needed([0, 0], presence_penalty=1.5, frequency_penalty=1.0) == 0
    assert needed([1], presence_penalty=1.5) == 1.5
    assert needed([1, 1, 1], presence_penalty=1.5) == 1.5
    assert needed([1, 1, 1], frequency_penalty=0.75) == 2.25
    assert needed([0, 1, 1], presence_penalty=1.0, frequency_penalty=0.5) == 2.0


def test_sampled_tokens_are_accepted_by_themselves():
    sampler = Sampler(4, temperature=0, presence_penalty=1.0)
    assert sampler.draw([3.0, 2.5, 2.25, 2.0], 4) == [0, 1, 2, 0]
    sampler = Sampler(3, temperature=0, repeat_penalty=1000.0)
    assert sampler.draw([3.0, 2.0, 1.0], 3) == [0, 1, 2]


def test_penalties_come_before_the_filters():
    sampler = Sampler(4, top_k=1, presence_penalty=2.0)
    assert sampler.draw([3.0, 2.0, 0.0, 0.0], 2) == [0, 1]


def test_accept_ignores_tokens_outside_the_vocabulary():
    sampler = Sampler(3, temperature=0, repeat_penalty=2.0)
    for token in (3, 1000, 2**32 - 1):
        sampler.accept(token, 1)
    assert sampler.draw([0.0, 1.0, 0.0]) == [1]


def test_bias_is_added_after_the_penalties():
    logits = [1.0, 0.0, 0.0]
    assert Sampler(3, temperature=0, bias={2: 1.5}).draw(logits) == [2]
    sampler = Sampler(3, temperature=0, bias={0: 3.0}, repeat_penalty=4.0)
    sampler.accept(0, 0)
    assert sampler.draw([1.0, 3.1, 0.0]) == [0]  # 1 / 4 + 3 > 3.1; (1 + 3) / 4 would not be


def test_bias_of_minus_infinity_forbids_a_token():
    assert set(Sampler(3, bias={0: -INF}).draw([50.0, 0.0, 0.0], 200)) == {1, 2}


def test_bias_arrays_are_copied():
    sampler = Sampler(3, temperature=0, bias={2: 5.0})
    sampler.keep[0][0], sampler.keep[1][0] = 1, 100.0
    assert sampler.draw([1.0, 0.0, 0.0]) == [2]


# ----------------------------------------------------------------------------------------------------------
# Seeds, errors, defaults


def test_same_seed_same_tokens():
    logits = logits_like_a_model(5000, seed=9)
    a, b, c = (Sampler(5000, seed=seed).draw(logits, 50) for seed in (3, 3, 4))
    assert a == b != c
    assert Sampler(5000, seed=2**64 - 1).draw(logits, 50) != a


def test_neighbouring_seeds_are_unrelated():
    tokens = [Sampler(1000, seed=seed).draw(np.zeros(1000))[0] for seed in range(1000)]
    assert len(set(tokens)) > 550  # 632 +- 10 of 1000 if they are independent
    assert 450 < np.mean(tokens) < 550


def test_defaults():
    params = lib.llm_sampling_default()
    assert (params.temperature, params.top_p) == (pytest.approx(0.8), pytest.approx(0.95))
    assert (params.min_p, params.top_k, params.seed, params.n_bias) == (0, 0, 0, 0)
    assert (params.repeat_penalty, params.presence_penalty, params.frequency_penalty) == (1, 0, 0)


@pytest.mark.parametrize(
    "field, values",
    {
        "temperature": [-0.1, NAN, INF],
        "top_p": [0.0, -1.0, 1.1, NAN],
        "min_p": [-0.1, 1.1, NAN],
        "repeat_penalty": [0.0, -1.0, NAN, INF],
        "presence_penalty": [NAN, INF, -INF],
        "frequency_penalty": [NAN, INF, -INF],
        "n_bias": [1],
    }.items(),
)
def test_open_rejects_values_out_of_range_and_names_the_field(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{field} "):
            Sampler(10, **{field: value})


def test_open_rejects_bad_bias_and_vocabulary():
    with pytest.raises(ValueError, match=r"^bias_tokens\[1\]"):
        Sampler(10, bias={1: 0.0, 10: 0.0})
    for value in (NAN, INF):
        with pytest.raises(ValueError, match=r"^bias_values\[0\]"):
            Sampler(10, bias={1: value})
    for vocab_size in (0, 2**32):
        with pytest.raises(ValueError, match="^vocab_size "):
            Sampler(vocab_size)


def test_errors_need_no_buffer():
    params = ffi.new("llm_sampling *", lib.llm_sampling_default())
    params.top_p = 2
    assert lib.llm_sampler_open(params, 10, ffi.NULL, 0) == ffi.NULL
    short = ffi.new("char[]", b"xxxxx")
    assert lib.llm_sampler_open(params, 10, short, 4) == ffi.NULL
    assert bytes(ffi.buffer(short, 5)) == b"top\0x"
    lib.llm_sampler_close(ffi.NULL)


# ----------------------------------------------------------------------------------------------------------
# Log-probabilities


def logprobs(logits, token, n):
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    tokens, values = ffi.new("uint32_t[]", n), ffi.new("float[]", n)
    chosen = lib.llm_logprobs(ffi.cast("float *", logits.ctypes.data), logits.size, token, n, tokens, values)
    return chosen, list(tokens), list(values)


@pytest.mark.parametrize("vocab_size", [1, 5, 64, 65, 1000, 128_256])
@pytest.mark.parametrize("n", [0, 1, 5, 20, 300])
def test_logprobs_match_float64(vocab_size, n):
    logits = logits_like_a_model(vocab_size, seed=vocab_size)
    logits[:: max(1, vocab_size // 7)] = np.float32(0.5)  # ties
    expected = logits.astype(np.float64)
    expected -= expected.max() + np.log(np.exp(expected - expected.max()).sum())
    ranked = np.argsort(-expected, kind="stable")[:n]
    token = int(vocab_size * 0.7)
    chosen, tokens, values = logprobs(logits, token, n)
    assert tokens[: len(ranked)] == ranked.tolist()
    # float32 weights are good to 2e-7 and their sum to 1e-6; the result is rounded to float32
    np.testing.assert_allclose(values[: len(ranked)], expected[ranked], rtol=1e-6, atol=1e-6)
    assert chosen == pytest.approx(expected[token], rel=1e-6, abs=1e-6)


def test_logprobs_do_not_write_past_the_vocabulary():
    _, tokens, values = logprobs([0.0, 1.0], 0, 5)
    assert tokens == [1, 0, 0, 0, 0] and values[2:] == [0, 0, 0]


def test_logprobs_without_top_tokens_takes_null():
    logits = ffi.new("float[]", [0.0, 0.0])
    assert lib.llm_logprobs(logits, 2, 1, 0, ffi.NULL, ffi.NULL) == pytest.approx(math.log(0.5))


def test_logprobs_of_special_values():
    chosen, tokens, values = logprobs([NAN, 1.0, -INF, 1.0], 0, 4)
    assert chosen == -INF
    assert tokens == [1, 3, 0, 2]
    assert values == [pytest.approx(math.log(0.5))] * 2 + [-INF] * 2
    half = pytest.approx(math.log(0.5))
    assert logprobs([0.0, INF, INF], 1, 2) == (half, [1, 2], [half, half])
    assert logprobs([-INF, NAN], 1, 2) == (-INF, [0, 1], [-INF] * 2)
    assert logprobs([0.0, 0.0], 2, 0)[0] == -INF  # no such token


def test_logprobs_ignore_the_sampler():
    """They are those of the model: no temperature, no penalty."""
    logits = [2.0, 1.0, 0.0]
    total = math.log(sum(map(math.exp, logits)))
    assert logprobs(logits, 1, 1)[0] == pytest.approx(1 - total, rel=1e-6)


# ----------------------------------------------------------------------------------------------------------
# Masks


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 65, 1000])
@pytest.mark.parametrize("settings", EACH_PATH)
def test_a_mask_forbids_what_a_bias_of_minus_infinity_forbids(vocab_size, settings):
    logits = logits_like_a_model(vocab_size, seed=3)
    allowed = np.random.default_rng(vocab_size).random(vocab_size) < 0.3
    allowed[vocab_size // 2] = True
    forbidden = {int(token): -INF for token in np.flatnonzero(~allowed)}
    masked = Sampler(vocab_size, seed=5, **settings).draw(logits, 50, allowed)
    assert masked == Sampler(vocab_size, bias=forbidden, seed=5, **settings).draw(logits, 50)
    assert all(allowed[token] for token in masked)


def test_a_mask_counts_for_its_own_draw_only():
    logits = [0.0, 5.0, 1.0]
    sampler = Sampler(3, temperature=0)
    assert sampler.draw(logits, 1, [True, False, True]) == [2]
    assert sampler.draw(logits, 1) == [1]


def test_a_mask_goes_with_penalties_and_bias():
    sampler = Sampler(3, temperature=0, bias={2: 3.0}, presence_penalty=9.0)
    assert sampler.draw([0.0, 5.0, 1.0], 2, [True, False, True]) == [2, 0]


@pytest.mark.parametrize(
    "logits, allowed, token",
    [
        (
            [3.0, 2.0, 1.0, 0.0],
            [False, True, True, False],
            1,
        ),  # the bias leaves nothing: the model's own choice
        ([3.0, -INF, -INF, 0.0], [False, False, True, True], 3),
        (
            [3.0, -INF, -INF, -INF],
            [False, False, True, True],
            2,
        ),  # nothing is likely: the first that may come
        ([NAN, NAN, NAN, NAN], [False, False, False, True], 3),
    ],
)
def test_what_a_mask_forbids_never_comes(logits, allowed, token):
    bias = {i: -INF for i in range(4)}
    assert Sampler(4, bias=bias).draw(logits, 3, allowed) == [token] * 3


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65, 1000])
def test_the_mass_of_a_mask_is_the_sum_of_its_probabilities(vocab_size):
    logits = logits_like_a_model(vocab_size, seed=4)
    allowed = np.random.default_rng(1).random(vocab_size) < 0.5
    expected = reference(logits)[allowed].sum()
    mask = ffi.from_buffer("uint32_t[]", bits(allowed))
    mass = lib.llm_mass(ffi.cast("float *", logits.ctypes.data), vocab_size, mask)
    assert abs(mass - expected) < 1e-6


def test_there_is_no_mass_without_finite_logits():
    for logits in ([NAN, NAN], [-INF, -INF], [INF, 0.0]):
        x = np.array(logits, np.float32)
        assert math.isnan(lib.llm_mass(ffi.cast("float *", x.ctypes.data), 2, ffi.new("uint32_t[]", [3])))
