"""The package pyllm as its users see it, with a tiny random model over bytes and the story model."""

from __future__ import annotations

import errno
import inspect
import math
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from common import BOS, IM_END, IM_START, NONE, SPECIAL, byte_tokenizer
from pyllm._llm import ffi, lib
from reference import FP16, INT8, INT8R, Reference, log_softmax, make_model

import pyllm
from pyllm import (
    LLM,
    ChatOptions,
    Completion,
    ContextError,
    LLMError,
    Reasoning,
    SamplingParams,
    TemplateError,
)
from pyllm.binding import CHUNK, Cache
from pyllm.sampling import Continuation
from pyllm.saved import HEAD
from pyllm.scheduler import MAX_BATCH

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{{ extra or '' }}"
)
HI = [{"role": "user", "content": "Hi"}]


def tiny(more: dict[int, bytes] | None = None, flags: int = lib.LLM_ADD_BOS, **arguments) -> bytes:
    """A flat file of random weights over byte_tokenizer. Two ids at the end have no token."""
    about = {lib.LLM_NAME: b"Tiny", lib.LLM_ABOUT: b"family: test\nlicense: none: at all\n\nnonsense"}
    tokenizer = byte_tokenizer(flags, BOS, IM_END)
    sections = {**about, **tokenizer, lib.LLM_CHAT_TEMPLATE: CHATML.encode(), **(more or {})}
    arguments = {"seed": 5, "dtype": INT8, "context": 700, **arguments}
    return make_model(vocab_size=len(SPECIAL) + 258, sections=sections, **arguments)


@pytest.fixture(scope="session")
def path(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("python") / "tiny.llm"
    file.write_bytes(tiny())
    return str(file)


@pytest.fixture
def llm(path):
    with LLM(path, threads=1) as llm:
        yield llm


# ----------------------------------------------------------------------------------------------------------
# Opening and closing


def test_public_names_are_exported_and_documented():
    for name in pyllm.__all__:
        assert getattr(pyllm, name).__doc__, name
    for kind in (LLM, pyllm.Session):
        for name, member in inspect.getmembers(kind):
            assert name.startswith("_") or inspect.getdoc(member), (kind, name)


def test_properties_say_what_the_file_is(llm, path):
    assert (llm.path, llm.name, llm.dtype, llm.context) == (path, "Tiny", "int8", 700)
    assert (llm.vocab_size, llm.dim, llm.n_layers) == (261, 64, 2)
    assert llm.about == {"family": "test", "license": "none: at all"}
    assert (llm.bos_token, llm.eos_token, llm.stop_tokens) == (BOS, IM_END, (IM_END,))
    assert llm.chat_template == CHATML
    layer = 64 + 64 * 128 + 64 * 64 + 64 + 2 * 128 * 64 + 64 * 128
    assert llm.parameters == 2 * 261 * 64 + 64 + 2 * layer
    for part in (path, "Tiny", "int8", "700", "million"):
        assert part in repr(llm)


def test_parameters_count_every_expert(tmp_path):
    def parameters(**arguments):
        (tmp_path / "m.llm").write_bytes(make_model(**arguments))
        return LLM(tmp_path / "m.llm").parameters

    assert parameters(n_experts=4, n_active=2) - parameters() == 2 * (3 * 3 * 128 * 64 + 4 * 64)


def test_errors_of_files_name_the_file(tmp_path, path):
    with pytest.raises(LLMError, match="absent.llm"):
        LLM(tmp_path / "absent.llm")
    (tmp_path / "cut.llm").write_bytes(Path(path).read_bytes()[:-64])
    with pytest.raises(LLMError, match="cut.llm"):
        LLM(tmp_path / "cut.llm")
    with pytest.raises(ValueError, match="NUL"):
        LLM("a\0b")
    with pytest.raises(TypeError):
        LLM(5)


@pytest.mark.parametrize("name", ["threads", "context"])
def test_bad_arguments_name_themselves(path, name):
    for value, error in (
        (0, ValueError),
        (-1, ValueError),
        (2**40, ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match=name):
            LLM(path, **{name: value})


def test_a_closed_model_refuses_everything(path):
    llm = LLM(path)
    session, stream = llm.session(), llm.stream("a", max_tokens=5)
    next(stream)
    llm.close()
    llm.close()
    uses = [
        lambda: llm.generate("a"), lambda: llm.chat(HI), lambda: llm.stream("a"), lambda: llm.encode("a"),
        lambda: llm.decode([1]), lambda: llm.logits([1]), lambda: llm.score("a", "b"), lambda: llm.session(),
        lambda: llm.about, lambda: llm.stop_tokens, lambda: llm.__enter__(), lambda: session.eval([1]),
        lambda: list(stream),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(LLMError, match="closed"):
            use()
    assert "closed" in repr(llm) and llm.vocab_size == 261
    session.close()


def test_closing_while_threads_generate_is_an_error_there_and_no_crash(path):
    llm, ended = LLM(path, threads=1), []

    def work():
        try:
            while True:
                llm.generate(["a", "b"], max_tokens=50, logit_bias={IM_END: -math.inf})
        except LLMError as error:
            ended.append("closed" in str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    llm.generate("c", max_tokens=20)
    llm.close()
    for thread in threads:
        thread.join(30)
    assert ended == [True] * 3


def test_pickling_opens_the_file_again(path, monkeypatch):
    monkeypatch.chdir(Path(path).parent)
    llm = LLM("tiny.llm", threads=1, context=50)
    data = pickle.dumps(llm)
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert (copy.path, copy.context) == (llm.path, 50)
    assert copy.generate("a", max_tokens=9, seed=1) == llm.generate("a", max_tokens=9, seed=1)
    params = SamplingParams(logit_bias={1: 2.0}, stop="x")
    assert pickle.loads(pickle.dumps(params)) == params


def forked(llm, pipe):
    pipe.send(llm.generate("abc", max_tokens=20, seed=3))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_generate(path):
    llm = LLM(path, threads=2)
    expected = llm.generate("abc", max_tokens=20, seed=3)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=forked, args=(llm, there))
    child.start()
    assert here.poll(30), "the child hangs"
    assert here.recv() == expected
    child.join()


def test_nothing_is_printed(path, tmp_path):
    script = f"""if True:
        import pyllm
        llm = pyllm.LLM({path!r})
        llm.generate(["a", "b"], max_tokens=5), llm.logits("abc"), llm.chat({HI!r}, max_tokens=3)
        with llm.session() as s: s.eval([1])
        try: pyllm.LLM("absent.llm")
        except pyllm.LLMError: pass
        left_open = llm.stream("a", max_tokens=50)
        next(left_open)
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# ----------------------------------------------------------------------------------------------------------
# Text and tokens


def test_encode_has_the_flags_of_the_library(llm):
    assert llm.encode("ab") == [BOS, 97, 98] == llm.encode("ab", bos=True) == llm.encode(b"ab")
    assert llm.encode("ab", bos=False) == [97, 98]
    assert llm.encode("<s>a<|im_end|>", bos=True) == [BOS, 97, IM_END]
    assert llm.encode("<|im_end|>", bos=False, special=False) == list(b"<|im_end|>")
    assert llm.encode("") == [BOS] and llm.encode("", bos=False) == []
    assert llm.encode("é" * 1000, bos=False) == list("é".encode() * 1000)
    with pytest.raises(TypeError, match="text"):
        llm.encode(5)


def test_encode_takes_lone_surrogates_and_bad_bytes_as_replacement_characters(llm):
    assert llm.encode("a\ud800b", bos=False) == list("a\ufffdb".encode())
    assert llm.encode("\ud83d\ude00", bos=False) == list("😀".encode())  # a pair is the character
    assert llm.encode(b"a\xffb", bos=False) == list("a\ufffdb".encode())


def test_decode_is_the_inverse(llm):
    text = "naïve 😀\0 text"
    ids = llm.encode(text)
    assert llm.decode(ids) == text
    assert llm.decode(np.array(ids, np.int64)) == llm.decode(tuple(ids)) == text
    assert llm.decode(ids, special=True) == "<s>" + text
    assert llm.decode([97, 0xF0, 0x9F]) == "a\ufffd"
    assert llm.decode([]) == llm.decode([259]) == ""  # 259 is a row of the embedding that has no token


@pytest.mark.parametrize("ids", [[261], [-1], [2**70], [1, 10**12]])
def test_ids_out_of_range_are_value_errors(llm, ids):
    for use in (llm.decode, llm.logits, llm.generate, llm.session().eval):
        with pytest.raises((ValueError, TypeError), match="id"):
            use(ids)


@pytest.mark.parametrize(
    "ids", [[1.5], [True, False], [[1], [2, 3]], np.zeros((2, 2), int), 5, None, ["a"], {1: 2}]
)
def test_what_is_no_row_of_integers_is_a_type_error(llm, ids):
    for use in (llm.decode, llm.logits, llm.session().eval):
        with pytest.raises(TypeError):
            use(ids)


# ----------------------------------------------------------------------------------------------------------
# Parameters


def test_defaults_are_those_of_the_c_side():
    params, c = SamplingParams(), lib.llm_sampling_default()
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):
        assert np.float32(getattr(params, name)) == getattr(c, name)
    assert params.max_tokens is params.seed is params.logprobs is params.logit_bias is None


@pytest.mark.parametrize(
    ("field", "values", "error"),
    [
        ("max_tokens", [-1], ValueError),
        ("temperature", [-1, math.nan, math.inf, 1e39, 10**400], ValueError),
        ("top_k", [-2, 2**32], ValueError),
        ("top_p", [0, 1.1, math.nan], ValueError),
        ("min_p", [-0.1, 1.1], ValueError),
        ("repeat_penalty", [0, -1], ValueError),
        ("presence_penalty", [math.inf], ValueError),
        ("frequency_penalty", [math.nan], ValueError),
        ("logit_bias", [{1: math.nan}, {1: math.inf}, {1: 1e39}, {-1: 0}], ValueError),
        ("seed", [-2, 2**64], ValueError),
        ("stop", ["", ["a", ""]], ValueError),
        ("logprobs", [-1], ValueError),
        ("max_tokens", ["5", 5.0, True], TypeError),
        ("temperature", ["hot", None, True], TypeError),
        ("top_k", [None, 1.0], TypeError),
        ("logit_bias", [[1, 2], {1: "a"}, {"a": 1}, {1.5: 1}], TypeError),
        ("seed", ["a", 1.5], TypeError),
        ("stop", [5, [5], b"x", {"a"}], TypeError),
        ("logprobs", [True, 1.5], TypeError),
    ],
)
def test_bad_parameters_name_their_field(field, values, error):
    for value in values:
        with pytest.raises(error, match=field):
            SamplingParams(**{field: value})


REALS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
INTEGERS = ("max_tokens", "top_k", "seed", "logprobs")
HUGE = 10**5000  # Python refuses to write its digits


@pytest.mark.parametrize("field", [*REALS, *INTEGERS, "logit_bias"])
def test_numbers_of_every_type_are_taken_or_refused_by_name_and_without_a_warning(field):
    """Warnings are errors, Python's and NumPy's: np.float16(0.7) > 3.4e38 overflows."""
    halves = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), Fraction(1, 2)]
    halves.append(Decimal("0.5"))
    ones = [1, np.int8(1), np.uint8(1), np.int64(1), np.uint64(1)]
    wrong = [True, np.bool_(True), "1", b"1", 1j, [1], np.zeros(1), np.zeros(()), np.datetime64(1, "s"), {}]
    wild = [np.float16(math.nan), np.float32(math.inf), np.longdouble("1e4000"), Decimal("sNaN")]
    wild += [Decimal("1e999"), HUGE, Fraction(HUGE, 3), Decimal(HUGE)]
    wild += [] if field == "logit_bias" else [-HUGE, -(10**400)]
    as_field = (lambda value: {7: value}) if field == "logit_bias" else (lambda value: value)

    def taken(value):
        kept = getattr(SamplingParams(**{field: as_field(value)}), field)
        return kept[7] if field == "logit_bias" else kept

    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for value in ones if field in INTEGERS else halves + ones:
            kept = taken(value)
            assert kept == float(value) and type(kept) is (int if field in INTEGERS else float), value
        for value in wrong + (halves if field in INTEGERS else []):
            with pytest.raises(TypeError, match=field):
                taken(value)
        for value in wild:
            if field in ("max_tokens", "logprobs") and value is HUGE:
                continue  # no upper limit
            with pytest.raises((TypeError, ValueError), match=field):
                taken(value)


def test_small_floats_give_what_their_values_give(llm):
    for value in (np.float16(0.7), Fraction(7, 10), Decimal("0.7")):
        same = dict(temperature=float(value), logit_bias={97: float(value)}, seed=1, max_tokens=20)
        given = dict(same, temperature=value, logit_bias={np.int64(97): value})
        assert llm.generate("Once", **given) == llm.generate("Once", **same)
    batch = llm.generate(["a", "b"], seed=np.uint64(2**64 - 1), max_tokens=1)  # counting up is Python's own
    assert [done.seed for done in batch] == [2**64 - 1, 0]
    params = SamplingParams(logit_bias={1: -(10**400), 2: -1e39, 3: np.float16(-math.inf)})
    assert set(params.logit_bias.values()) == {-math.inf, -1e39}


def test_minus_one_is_a_random_seed_and_no_top_k_as_clients_send_them(llm):
    for minus_one in (-1, np.int64(-1), np.int8(-1)):
        params = SamplingParams(seed=minus_one, top_k=minus_one)
        assert params == SamplingParams(seed=None, top_k=0)
    seeds = {llm.generate("a", seed=-1, max_tokens=1).seed for _ in range(4)}
    seeds |= {done.seed for done in llm.generate(["a", "b"], seed=-1, max_tokens=1)}
    each = [SamplingParams(seed=5), SamplingParams()]
    seeds |= {done.seed for done in llm.generate(["a", "b"], each, seed=-1, max_tokens=1)}
    assert len(seeds) == 8
    done = llm.generate("Once", top_k=-1, seed=3, max_tokens=20)
    assert done == llm.generate("Once", top_k=0, seed=3, max_tokens=20)


def test_refusals_say_what_to_write_instead():
    with pytest.raises(ValueError, match="max_tokens must be at least 0, not -1; None: until"):
        SamplingParams(max_tokens=-1)
    with pytest.raises(TypeError, match="logprobs .* not True: write 0 .* n "):
        SamplingParams(logprobs=True)
    with pytest.raises(TypeError, match="logprobs .* not False: write None"):
        SamplingParams(logprobs=np.bool_(False))


def test_parameters_are_checked_before_any_work(llm):
    with pytest.raises(ValueError, match="logit_bias: 261"):
        llm.generate(["a", "b"], [SamplingParams(), SamplingParams(logit_bias={261: 1})])
    with pytest.raises(TypeError, match="temprature"):
        llm.generate("a", temprature=1)
    with pytest.raises(ValueError, match="1 entries for 2 prompts"):
        llm.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(TypeError, match="params"):
        llm.generate("a", {"temperature": 1})
    with pytest.raises(TypeError, match="stream"):
        llm.stream(["a", "b"])
    for prompt in (5, None, {"a"}, (c for c in "ab")):
        with pytest.raises(TypeError, match="prompt"):
            llm.generate(prompt)


def test_prompts_that_are_too_long_name_both_lengths(llm):
    with pytest.raises(ContextError, match="701 tokens.* 700"):
        llm.generate("a" * 700)
    with pytest.raises(ContextError, match="prompt 1 .*701 tokens.* 700"):
        llm.generate(["a", "a" * 700])
    for use in (llm.stream, llm.logits, lambda text: llm.score(text, "b")):
        with pytest.raises(ContextError, match="70[12] tokens.* 700"):
            use("a" * 700)
    with pytest.raises(ContextError, match="7[0-9][0-9] tokens.* 700"):
        llm.chat([{"role": "user", "content": "a" * 700}])
    assert issubclass(ContextError, LLMError)
    done = llm.generate("a" * 699)
    assert len(done.tokens) <= 1 and done.prompt_tokens == 700


def test_empty_prompts(tmp_path, llm):
    assert llm.generate([]) == [] and llm.generate("", max_tokens=1).prompt_tokens == 1
    (tmp_path / "m.llm").write_bytes(tiny(flags=0))
    without = LLM(tmp_path / "m.llm")
    for prompt in ("", b"", [[]], ["a", ""], np.zeros(0, int)):
        with pytest.raises(ValueError, match="has no tokens"):
            without.generate(prompt)
    assert llm.logits([]).shape == (0, 261)
    assert llm.score("", "ab") == llm.score([BOS], [97, 98]) == without.score("", "ab")
    with pytest.raises(ValueError, match="context has no tokens"):
        llm.score([], [1])


def test_without_a_tokenizer_ids_still_work(tmp_path):
    (tmp_path / "m.llm").write_bytes(data := make_model())
    llm = LLM(tmp_path / "m.llm")
    np.testing.assert_allclose(llm.logits([1, 2, 3]), Reference(data).logits([1, 2, 3]), atol=0.05)
    assert llm.score([1, 2], [3]).logprob < 0
    for use in (
        lambda: llm.encode("a"),
        lambda: llm.decode([1]),
        lambda: llm.generate([1]),
        lambda: llm.stop_tokens,
    ):
        with pytest.raises(LLMError, match="no tokenizer"):
            use()


# ----------------------------------------------------------------------------------------------------------
# Generating


def test_greedy_is_the_argmax_of_the_logits(llm):
    done = llm.generate("Once", temperature=0, max_tokens=20, logit_bias={IM_END: -math.inf})
    ids = llm.encode("Once") + done.tokens
    logits = llm.logits(ids)
    logits[:, IM_END] = -math.inf
    assert done.tokens == logits[4:-1].argmax(-1).tolist()
    assert (done.finish_reason, done.stop, done.prompt_tokens) == ("length", None, 5)


def test_text_is_what_the_tokens_decode_to(llm):
    for seed in range(5):
        done = llm.generate("Once", seed=seed, max_tokens=40)
        assert done.text == str(done) == llm.decode(list(b"Once") + done.tokens)[4:]


def test_logprobs_are_the_log_softmax_of_the_logits(llm):
    done = llm.generate("Once", seed=1, max_tokens=15, temperature=1.7, repeat_penalty=1.3, logprobs=3)
    expected = log_softmax(llm.logits(llm.encode("Once") + done.tokens))[4:-1]
    assert [entry.token for entry in done.logprobs] == done.tokens
    for entry, row in zip(done.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token], abs=1e-5)
        assert [i for i, _ in entry.top] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [p for _, p in entry.top] == pytest.approx(np.sort(row)[::-1][:3].tolist(), abs=1e-5)
    assert llm.generate("a", max_tokens=1, logit_bias={IM_END: -math.inf}, logprobs=0).logprobs[0].top == []
    assert len(llm.generate("a", max_tokens=1, temperature=0, logprobs=10**6).logprobs[0].top) == 261
    assert llm.generate("a", max_tokens=1).logprobs is None


def test_a_seed_repeats_and_is_reported(llm):
    one = llm.generate("Once", max_tokens=30)
    assert llm.generate("Once", max_tokens=30, seed=one.seed) == one
    assert llm.generate("Once", max_tokens=30) != one
    assert llm.generate("Once", seed=2**64 - 1, max_tokens=5).seed == 2**64 - 1


def test_a_batch_gives_what_each_prompt_gives_alone(llm):
    rng = np.random.default_rng(3)
    texts = ["Once upon a time" + "x" * int(n) for n in rng.integers(0, 90, 2 * MAX_BATCH + 5)]
    params = SamplingParams(max_tokens=12, seed=2**64 - 3, logprobs=2, repeat_penalty=1.1)
    batch = llm.generate(texts, params)
    assert [done.seed for done in batch[:4]] == [2**64 - 3, 2**64 - 2, 2**64 - 1, 0]
    fresh = LLM(llm.path, threads=1)
    for text, done in zip(texts, batch, strict=True):
        assert fresh.generate(text, params, seed=done.seed) == done


def test_a_batch_may_mix_kinds_of_prompts_and_parameters(llm):
    prompts = ["ab", b"ab", [BOS, 97, 98], np.array([BOS, 97, 98]), "a" * 600, "ab"]
    each = [SamplingParams(max_tokens=i + 1, seed=7, temperature=i / 2) for i in range(6)]
    batch = llm.generate(prompts, each, top_k=50)
    assert batch == [llm.generate(p, e, top_k=50) for p, e in zip(prompts, each, strict=True)]
    assert [done.seed for done in llm.generate(prompts[:2], each[:2], seed=1)] == [1, 2]
    assert llm.generate(np.array([[BOS, 97]] * 2), max_tokens=3, temperature=0, seed=1)[0].prompt_tokens == 2


def test_a_batch_computes_a_shared_prefix_once(llm, monkeypatch):
    counts, forward = [], Cache.forward

    def counted(self, tokens, *rest):
        counts.append(len(tokens))
        return forward(self, tokens, *rest)

    monkeypatch.setattr(Cache, "forward", counted)
    llm.generate(["a" * 300 + c for c in "bcdefgh"], max_tokens=1)
    assert sum(counts) == 301 + 7
    counts.clear()
    llm.generate("a" * 300 + "b", max_tokens=1)  # and it is still there
    assert sum(counts) == 1


def test_prefix_reuse_does_not_change_results(llm):
    texts = ["abcdef", "abcxyz", "abcdef", "abcdefgh", "q", "abcdefghij" * 9, "abcdefg"]
    used = [llm.generate(text, max_tokens=8, seed=4, logprobs=1) for text in texts]
    for text, done in zip(texts, used, strict=True):
        assert LLM(llm.path, threads=1).generate(text, max_tokens=8, seed=4, logprobs=1) == done


def test_results_do_not_depend_on_threads(path):
    runs = [
        LLM(path, threads=n).generate(["a", "bb", "ccc"], seed=2, max_tokens=20, logprobs=1)
        for n in (1, 2, 4)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_python_threads_may_share_a_model(llm):
    def work(i: int) -> Completion | float:
        if i % 3 == 2:
            return llm.score("ab" * i, "cd")
        return llm.generate("ab" * i, max_tokens=20, seed=i)

    alone = [work(i) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(24))) == alone


# ----------------------------------------------------------------------------------------------------------
# Stopping and streaming


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(llm):
    done = llm.generate("a", max_tokens=9, logit_bias={IM_END: 1000})
    assert done == Completion("", [], None, "stop", IM_END, 2, done.seed)


@pytest.fixture
def greedy(llm):
    """Greedy parameters that allow only ASCII, and the 60 characters of text that they give after "Once"."""
    bias = dict.fromkeys(range(128, 261), -math.inf)
    params = SamplingParams(temperature=0, max_tokens=60, repeat_penalty=1.2, logit_bias=bias)
    return params, llm.generate("Once", params).text


def test_stop_texts_end_the_text_before_them(llm, greedy):
    params, text = greedy
    for stop in (text[20], text[20:23], text[25:40], [text[30:32], text[20:23], "never"], text[:2], text[-1]):
        done = llm.generate("Once", params, stop=stop)
        stops = [stop] if isinstance(stop, str) else stop
        at, which = min((text.find(s), s) for s in stops if s in text)
        assert (done.text, done.finish_reason, done.stop) == (text[:at], "stop", which)
        assert len(done.tokens) == at + len(which)


# Parameters with which IM_START, which does not end a text by itself, comes after some letters.
SOMETIMES = dict(logit_bias={IM_START: 4.0, IM_END: -math.inf}, top_p=1.0, temperature=1.0, max_tokens=60)


def test_a_stop_text_that_is_a_control_token_stops_at_that_token(llm):
    lengths = set()
    for seed in range(8):
        whole = llm.generate("Once", seed=seed, logprobs=1, **SOMETIMES)
        assert IM_START in whole.tokens and "<|im_start|>" not in whole.text
        at = whole.tokens.index(IM_START)
        expected = Completion(
            llm.decode(list(b"Once") + whole.tokens[:at])[4:],
            whole.tokens[:at],
            whole.logprobs[:at],
            "stop",
            "<|im_start|>",
            5,
            seed,
        )
        for stop in ("<|im_start|>", ["<|im_start|>"], ("never", "<|im_start|>", "<|im_end|>")):
            options = dict(SOMETIMES, seed=seed, stop=stop, logprobs=1)
            assert llm.generate("Once", **options) == expected
            stream, pieces = llm.stream("Once", **options), []
            while True:
                try:
                    pieces.append(next(stream))
                except StopIteration as end:
                    assert end.value == expected and "".join(pieces) == expected.text
                    break
        batch = llm.generate(["a", "Once"], stop="<|im_start|>", seed=seed - 1 if seed else 2**64 - 1,
                             logprobs=1, **SOMETIMES)  # fmt: skip
        assert batch[1] == expected
        lengths.add(at)
    assert len(lengths) > 3 and max(lengths) > 3


def test_a_stop_text_names_the_models_own_stop_token_and_letters_still_spell_it(llm):
    ends = dict(max_tokens=9, logit_bias={IM_END: 1000})
    assert llm.generate("a", stop="<|im_end|>", **ends).stop == "<|im_end|>"
    assert llm.generate("a", stop="<|im_start|>", **ends).stop == IM_END
    chat = llm.chat(HI, stop=["<|im_end|>"], **ends)
    assert (chat.text, chat.tokens, chat.finish_reason, chat.stop) == ("", [], "stop", "<|im_end|>")
    spelled = Continuation(llm._open(), [BOS], SamplingParams(stop="<|im_start|>", temperature=0), 700)
    spelled.start()
    logits = np.eye(llm.vocab_size, dtype=np.float32)
    for byte in b"so<|im_start|>":
        spelled.accept(ffi.from_buffer("float[]", logits[byte]))
    done = spelled.completion()
    assert (done.text, done.stop, done.tokens) == ("so", "<|im_start|>", list(b"so<|im_start|>"))


def test_text_held_back_for_a_stop_text_is_given_out_at_a_control_token(llm):
    params = dict(SOMETIMES, logit_bias={ord("x"): 1000, IM_START: 999.0}, stop=["<|im_start|>", "x" * 61])
    done = llm.generate("Once", seed=4, **params)
    assert done.stop == "<|im_start|>" and done.text == "x" * len(done.tokens) != ""
    assert "".join(llm.stream("Once", seed=4, **params)) == done.text


@pytest.mark.parametrize(
    "stop",
    ["<|im_end|>\n", "\n<|im_end|>", "a<s>", "<|im_start|><|im_end|>", ["ok", "<|im_end|> "], "<s><s>"],
)
def test_a_stop_text_with_a_control_token_inside_is_refused_before_any_work(llm, stop):
    text = stop if isinstance(stop, str) else stop[1]
    token = next(t.decode() for t in SPECIAL if t.decode() in text)
    uses = [
        lambda **o: llm.generate("a", **o), lambda **o: llm.generate(["a", "b"], **o),
        lambda **o: llm.stream("a", **o), lambda **o: llm.chat(HI, **o), lambda **o: llm.stream_chat(HI, **o),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match="stop") as error:
            use(stop=stop)
        assert repr(text) in str(error.value) and token in str(error.value)


def test_stop_texts_that_only_look_like_control_tokens_are_texts(llm):
    for stop in ("<|im_end", "im_end", "<|im_end |>", "<|IM_END|>", "</s>"):
        params = dict(stop=stop, max_tokens=30, logit_bias={IM_END: -math.inf})
        assert llm.generate("a", **params).finish_reason == "length"


def test_white_space_that_a_control_token_takes_along_is_part_of_it(tmp_path):
    space = struct.pack("<4III", 1 << 10, 1, 0, 0, 0, 0)  # of the first 128 characters: newline and space
    classes = struct.pack("<II", 2, 0) + space + struct.pack("<4III", 0, 0, 0, 0, 0, 0)
    more = byte_tokenizer(0, BOS, IM_END, strip=lib.LLM_ADDED_LSTRIP | lib.LLM_ADDED_RSTRIP)
    (tmp_path / "m.llm").write_bytes(tiny({**more, lib.LLM_CLASSES: classes}))
    llm = LLM(tmp_path / "m.llm", threads=1)
    for stop in ("<|im_start|>\n", " <|im_start|>", "\n<|im_start|> "):
        assert llm.encode(stop) == [IM_START]
        done = llm.generate("a", stop=[stop, "<|im_start|>"], max_tokens=9, logit_bias={IM_START: 1000})
        assert (done.tokens, done.stop) == ([], stop)
    with pytest.raises(ValueError, match="stop"):
        llm.generate("a", stop="b <|im_start|>")


def test_an_unknown_character_in_a_stop_text_is_not_the_unknown_token(tmp_path):
    sections = byte_tokenizer(0, BOS, IM_END)
    head = struct.unpack("<8I", sections[lib.LLM_TOKENIZER][:32])
    head = struct.pack("<8I", 0, *head[1:4], BOS, 0, 0, 0)  # <s> stands for unknown characters
    sections[lib.LLM_TOKENIZER] = head + np.full(256, NONE, "<u4").tobytes()
    (tmp_path / "m.llm").write_bytes(tiny(sections))
    llm = LLM(tmp_path / "m.llm", threads=1)
    assert llm.encode("☃") == llm.encode("<s>") == [BOS]
    for stop in ("☃", "a☃", ["☃☃"]):
        done = llm.generate("a", stop=stop, max_tokens=4, logit_bias={BOS: 1000})
        assert (done.tokens, done.finish_reason) == ([BOS] * 4, "length")
    assert llm.generate("a", stop="<s>", max_tokens=4, logit_bias={BOS: 1000}).stop == "<s>"


def test_stop_texts_may_hold_a_control_token_that_has_a_text_in_this_chat(tmp_path):
    special = [*SPECIAL, b"[THINK]", b"[/THINK]"]
    template = CHATML + "{# [THINK] [/THINK] #}"
    more = {**byte_tokenizer(0, BOS, IM_END, special), lib.LLM_CHAT_TEMPLATE: template.encode()}
    (tmp_path / "m.llm").write_bytes(tiny(more))
    llm = LLM(tmp_path / "m.llm", threads=1)
    (end,) = llm.encode("[/THINK]")
    params = dict(max_tokens=9, logit_bias={end: 1000})
    assert llm.chat(HI, **params).text == "[/THINK]" * 9
    for reasoning in ("show", "hide", "apart"):
        alone = llm.chat(HI, stop="[/THINK]", reasoning=reasoning, **params)
        assert (alone.text, alone.tokens, alone.stop) == ("", [], "[/THINK]")
        among = llm.chat(HI, stop="[/THINK][/THINK]", reasoning=reasoning, **params)
        assert (among.text, among.tokens, among.stop) == ("", [end, end], "[/THINK][/THINK]")
        with pytest.raises(ValueError, match="im_end"):
            llm.chat(HI, stop="[/THINK]<|im_end|>", reasoning=reasoning)
    assert llm.generate("a", stop="[/THINK]", **params).stop == "[/THINK]"
    with pytest.raises(ValueError, match="THINK"):
        llm.generate("a", stop="[/THINK]\n")


def test_streams_give_the_text_of_generate(llm, greedy):
    params, text = greedy
    for stop in (
        None,
        text[20:23],
        text[20:23] + "never",
        [text[i : i + 3] + "never" for i in range(40)],
        text[-1],
    ):
        stream, pieces = llm.stream("Once", params, stop=stop), []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                done = end.value
                break
        assert all(pieces) and len(pieces) > 5
        assert "".join(pieces) == done.text
        assert done == llm.generate("Once", params, stop=stop, seed=done.seed)


def test_streams_hold_back_what_may_become_a_stop_text(llm, greedy):
    params, text = greedy
    end = next(i for i in range(10, 50) if text.find(text[i : i + 3]) == i)
    seen = ""
    for piece in llm.stream("Once", params, stop=text[end : end + 3]):
        seen += piece
        assert len(seen) <= end
    assert seen == text[:end]


def events_of(stream) -> tuple[list[pyllm.StreamEvent], Completion]:
    """What a stream yields, and what it returns."""
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            return events, end.value


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("stop", [None, "e", ["st", "<|im_start|>"]])
def test_events_of_a_stream_make_up_its_completion(llm, stop, logprobs):
    for seed in range(6):
        params = dict(SOMETIMES, seed=seed, stop=stop, logprobs=logprobs)
        events, done = events_of(llm.stream("Once", events=True, **params))
        assert done == llm.generate("Once", **params)
        assert "".join(event.text for event in events) == done.text
        assert [token for event in events for token in event.tokens] == done.tokens
        if logprobs is None:
            assert done.logprobs is None and all(event.logprobs is None for event in events)
        else:
            assert [entry for event in events for entry in event.logprobs] == done.logprobs
        assert all(len(event.tokens) == 1 for event in events[:-1])
        assert {(event.finish_reason, event.stop, event.usage) for event in events[:-1]} <= {(None,) * 3}
        last = events[-1]
        assert (last.finish_reason, last.stop, last.usage) == (done.finish_reason, done.stop, done.usage)
        assert done.usage[:2] == (5, len(done.tokens))
        assert "".join(llm.stream("Once", **params)) == done.text


def test_usage_says_what_had_been_computed_before(llm):
    params = dict(max_tokens=2, seed=1, logit_bias={IM_END: -math.inf})
    assert llm.generate("a" * 99, **params).usage[:3] == (100, 2, 0)
    assert llm.generate("a" * 99, **params).usage[:3] == (100, 2, 99)
    assert llm.generate("a" * 99 + "b", **params).usage[:3] == (101, 2, 100)
    events, done = events_of(llm.stream("a" * 99 + "bc", events=True, **params))
    assert events[-1].usage == done.usage and done.usage[:3] == (102, 2, 101)


def test_the_context_ends_a_text(path):
    llm = LLM(path, threads=1, context=20)
    done = llm.generate("a" * 9, logit_bias={IM_END: -math.inf})
    assert (done.finish_reason, done.prompt_tokens, len(done.tokens)) == ("length", 10, 11)


# ----------------------------------------------------------------------------------------------------------
# Chat


def test_chats_are_rendered_and_encoded_without_a_second_bos(llm):
    text = llm.render_chat(HI)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = [IM_START, *b"user\nHi", IM_END, 10, IM_START, *b"assistant\n"]
    assert llm.encode(text, bos=False) == ids
    reply = llm.chat(HI, seed=1, max_tokens=9)
    assert reply == llm.generate(ids, seed=1, max_tokens=9)
    assert "".join(llm.stream_chat(HI, seed=1, max_tokens=9)) == reply.text
    assert llm.render_chat(HI, add_generation_prompt=False, template_kwargs={"extra": "!"}).endswith(
        "<|im_end|>\n!"
    )


def test_options_of_a_chat_can_be_given_at_once_or_by_name(llm):
    options = ChatOptions(template_kwargs={"extra": "!"}, add_generation_prompt=False)
    by_name = dict(template_kwargs={"extra": "!"}, add_generation_prompt=False)
    text = llm.render_chat(HI, options)
    assert text == llm.render_chat(HI, **by_name) == "<|im_start|>user\nHi<|im_end|>\n!"
    params = dict(seed=1, max_tokens=9)
    expected = llm.generate(llm.encode(text, bos=False), **params)
    for given in ((SamplingParams(**params), options), (None, options)):
        assert llm.chat(HI, *given, **params) == expected == llm.chat(HI, **by_name, **params)
        assert "".join(llm.stream_chat(HI, *given, **params)) == expected.text
    other = llm.chat(HI, None, options, template_kwargs={"extra": "?"}, **params)
    assert other == llm.generate(llm.encode(text[:-1] + "?", bos=False), **params) != expected
    for use in (llm.chat, llm.stream_chat):
        with pytest.raises(TypeError, match="options must be ChatOptions, not"):
            use(HI, None, {"tools": []})
    with pytest.raises(TypeError, match="max_tokens"):
        llm.render_chat(HI, max_tokens=5)
    with pytest.raises(ValueError, match="reasoning must be one of show, hide, apart, not 'no'"):
        ChatOptions(reasoning="no")
    assert pickle.loads(pickle.dumps(options)) == options


def test_events_of_a_chat_keep_reasoning_apart(tmp_path):
    special = [*SPECIAL, b"[THINK]", b"[/THINK]"]
    template = CHATML + "[THINK]{# [/THINK] #}"
    more = {**byte_tokenizer(0, BOS, IM_END, special), lib.LLM_CHAT_TEMPLATE: template.encode()}
    (tmp_path / "m.llm").write_bytes(tiny(more))
    llm = LLM(tmp_path / "m.llm", threads=1)
    (end,) = llm.encode("[/THINK]")
    parted = 0
    for seed in range(12):
        params = dict(seed=seed, max_tokens=30, temperature=1.0, top_p=1.0, logit_bias={end: 2.5}, logprobs=0)
        for reasoning in ("show", "hide", "apart"):
            options = dict(params, reasoning=reasoning)
            events, done = events_of(llm.stream_chat(HI, events=True, **options))
            assert done == llm.chat(HI, **options)
            assert "".join(event.text for event in events) == done.text
            assert "".join(event.reasoning_content for event in events) == (done.reasoning_content or "")
            assert [token for event in events for token in event.tokens] == done.tokens
            assert [entry for event in events for entry in event.logprobs] == done.logprobs
            pieces, _ = events_of(llm.stream_chat(HI, **options))
            thought = "".join(piece for piece in pieces if isinstance(piece, Reasoning))
            assert thought == (done.reasoning_content or "") and all(pieces)
        parted += bool(done.text and done.reasoning_content)
    assert parted > 3


def test_a_list_of_chats_runs_as_a_batch(llm):
    other = [*HI, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And?"}]
    batch = llm.chat([HI, other], seed=1, max_tokens=9)
    assert batch == [llm.chat(HI, seed=1, max_tokens=9), llm.chat(other, seed=2, max_tokens=9)]


def test_a_second_turn_computes_only_what_is_new(llm, monkeypatch):
    reply = llm.chat([{"role": "user", "content": "x" * 200}], temperature=0, max_tokens=4)
    counts, forward = [], Cache.forward
    monkeypatch.setattr(Cache, "forward", lambda *args: counts.append(len(args[1])) or forward(*args))
    turns = [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": reply.text}, *HI]
    llm.chat(turns, temperature=0, max_tokens=1)
    assert sum(counts) < 60


def test_templates_see_the_texts_of_bos_and_eos(tmp_path):
    (tmp_path / "m.llm").write_bytes(
        tiny({lib.LLM_CHAT_TEMPLATE: b"{{ bos_token }}|{{ eos_token }}|{{ tools }}"})
    )
    llm = LLM(tmp_path / "m.llm")
    assert llm.render_chat(HI) == "<s>|<|im_end|>|None"
    assert llm.render_chat(HI, template_kwargs={"bos_token": "X"}, tools=[]) == "X|<|im_end|>|[]"
    with pytest.raises(TypeError, match="tools"):
        llm.render_chat(HI, template_kwargs={"tools": []})


def test_bad_chats_say_what_is_wrong(tmp_path, llm):
    for messages in ("Hi", HI[0], None, 5, ["Hi"], [HI, "Hi"]):
        with pytest.raises(TypeError, match="message"):
            llm.chat(messages)
    with pytest.raises(ValueError, match="messages is empty"):
        llm.chat([])
    with pytest.raises(TemplateError):
        llm.chat([{"role": "user", "content": None}])
    with pytest.raises(TypeError, match="temprature"):
        llm.chat(HI, temprature=1)
    data = make_model(vocab_size=261, sections=byte_tokenizer(0, BOS, IM_END))
    (tmp_path / "m.llm").write_bytes(data)
    with pytest.raises(LLMError, match="no chat template"):
        LLM(tmp_path / "m.llm").chat(HI)


# ----------------------------------------------------------------------------------------------------------
# Logits and scores


def test_logits_are_those_of_the_reference(llm, path):
    ids = np.random.default_rng(1).integers(0, 256, 2 * CHUNK + 9)
    logits = llm.logits(ids)
    assert (logits.dtype, logits.shape) == (np.float32, (len(ids), 261))
    # keys and values are kept in fp16 and activations in int16, which the reference does not do
    np.testing.assert_allclose(logits, Reference(Path(path).read_bytes()).logits(ids.tolist()), atol=0.05)
    assert np.array_equal(logits[:5], llm.logits(ids[:5].tolist()))
    assert np.array_equal(llm.logits("abc"), llm.logits([BOS, *b"abc"]))


@pytest.mark.parametrize("n", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_score_sums_the_logprobs_of_the_continuation(llm, n):
    context, continuation = [BOS, *b"Once upon"], np.random.default_rng(n).integers(0, 256, n)
    found = llm.score(context, continuation)
    rows = log_softmax(llm.logits([*context, *continuation]))[len(context) - 1 : -1]
    assert found.logprob == pytest.approx(rows[np.arange(n), continuation].sum(), abs=1e-4 * n)
    assert found.greedy == (rows.argmax(-1) == continuation).all()
    assert llm.score(context, continuation) == found  # now with the context kept


def test_score_knows_the_greedy_choice(llm):
    done = llm.generate("Once", temperature=0, max_tokens=6)
    assert llm.score(llm.encode("Once"), done.tokens).greedy
    assert not llm.score(llm.encode("Once"), [*done.tokens[:-1], (done.tokens[-1] + 1) % 256]).greedy


def test_score_moves_trailing_space_to_the_continuation(llm):
    assert llm.score("Once ", "upon") == llm.score("Once", " upon") == llm.score([BOS, *b"Once"], [*b" upon"])
    assert llm.score("a", "b", bos=False) == llm.score([97], [98])
    assert llm.score(b"Once \xff", b"upon") == llm.score("Once \ufffd", "upon")
    for pair in ((b"a", "b"), ("a", b"b"), ("a", [98]), ([97], "b"), ([97], b"b"), ("a", np.array([98]))):
        with pytest.raises(TypeError, match="both"):
            llm.score(*pair)


@pytest.mark.parametrize("nothing", [("ab", ""), (b"ab", b""), ([97], []), ("", ""), ([1], np.zeros(0, "i"))])
def test_nothing_is_not_scored_as_certain(llm, nothing):
    with pytest.raises(ValueError, match="continuation has no tokens to score"):
        llm.score(*nothing)


def test_a_score_may_fill_the_context_and_predict_one_token_more(llm):
    full = [1] * 700
    assert llm.score(full, [2]).logprob == pytest.approx(log_softmax(llm.logits(full))[-1, 2], abs=1e-4)
    for before, after in ((full, [2, 3]), (full[:1], full + [2])):
        with pytest.raises(ContextError, match="702 tokens, .* 700 and the last token"):
            llm.score(before[: 702 - len(after)], after)


def test_the_story_model_tells_stories(story_model):
    with LLM(story_model, threads=1) as llm:
        texts = ["Once upon a time", "One day, a little"]
        batch = llm.generate(texts, max_tokens=40, seed=3)
        assert batch == [llm.generate(text, max_tokens=40, seed=3 + i) for i, text in enumerate(texts)]
        assert all(done.text.isascii() and len(done.text.split()) > 15 for done in batch)
        assert "".join(llm.stream(texts[0], max_tokens=40, seed=3)) == batch[0].text
        assert llm.score("Once upon a", " time").greedy


# ----------------------------------------------------------------------------------------------------------
# Sessions


def test_a_session_gives_the_logits_of_the_whole_sequence(llm):
    ids = np.random.default_rng(2).integers(0, 256, CHUNK + 20)
    whole = llm.logits(ids)
    with llm.session() as s:
        assert np.array_equal(s.eval(ids[:7]), whole[6])
        assert np.array_equal(s.eval(ids[7:9].tolist(), all=True), whole[7:9])
        assert np.array_equal(s.eval(ids[9:]), whole[-1])
        assert s.tokens == ids.tolist() and len(s) == CHUNK + 20 and "276 tokens of 700" in repr(s)
        assert s.eval([], all=True).shape == (0, 261)
        s.truncate(100)
        assert len(s) == 100 and np.array_equal(s.eval(ids[100:102]), whole[101])
        first = s.eval([1])
        kept = first.copy()
        s.eval([2])
        assert np.array_equal(first, kept) and first.shape == (261,)  # results are copies


def test_a_fork_goes_its_own_way(llm):
    with llm.session() as s:
        s.eval(list(b"Once upon"))
        other = s.fork()
        with other, llm.session().fork() as empty:
            assert np.array_equal(s.eval([1]), llm.logits([*b"Once upon", 1])[-1])
            assert np.array_equal(other.eval([2, 3]), llm.logits([*b"Once upon", 2, 3])[-1])
            assert (s.tokens, other.tokens) == ([*b"Once upon", 1], [*b"Once upon", 2, 3])
            assert len(empty) == 0 and empty


def test_sessions_say_what_is_wrong_and_stay_as_they_were(llm):
    with llm.session() as s:
        s.eval([1, 2, 3])
        with pytest.raises(ContextError, match="3 tokens and 698 more .* 700"):
            s.eval([1] * 698)
        with pytest.raises(ValueError, match="length"):
            s.truncate(4)
        with pytest.raises(TypeError, match="length"):
            s.truncate(1.0)
        with pytest.raises(ValueError, match="ids is empty"):
            s.eval([])
        assert s.tokens == [1, 2, 3]
    s.close()
    for use in (lambda: s.eval([1]), lambda: s.tokens, lambda: len(s), s.fork, lambda: s.save("x")):
        with pytest.raises(LLMError, match="session is closed"):
            use()


def test_saved_sessions_continue_elsewhere(llm, tmp_path):
    file = tmp_path / "s.kv"
    with llm.session() as s, LLM(llm.path, threads=1).session() as other:
        s.save(file)
        other.eval([9])
        other.load(file)
        assert other.tokens == []
        s.eval(list(b"Once upon a time"))
        s.save(str(file))
        other.load(str(file))
        assert other.tokens == s.tokens
        assert np.array_equal(other.eval([5, 6]), s.eval([5, 6]))
    assert os.listdir(tmp_path) == ["s.kv"]
    with pytest.raises(FileNotFoundError):
        llm.session().save(tmp_path / "absent" / "s.kv")
    with pytest.raises(FileNotFoundError):
        llm.session().load(tmp_path / "absent.kv")


def test_saved_sessions_replace_only_regular_files_and_keep_what_they_were(llm, tmp_path):
    file, link = tmp_path / "s.kv", tmp_path / "link"
    link.symlink_to("s.kv")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with llm.session() as s:
        s.eval([1, 2, 3])
        s.save(link)  # a link that leads nowhere yet
        assert link.is_symlink() and not file.is_symlink()
        file.chmod(0o600)
        s.save(os.fsencode(link))
        assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o600
        before = file.read_bytes()
        for path in (tmp_path / "fifo", tmp_path / "folder", "/dev/null"):
            kept = os.lstat(path)
            with pytest.raises(OSError, match="not a file that can be replaced"):
                s.save(path)
            assert (os.lstat(path).st_mode, os.lstat(path).st_ino) == (kept.st_mode, kept.st_ino)
        assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder", "link", "s.kv"]


def test_a_session_that_cannot_be_saved_leaves_what_was_there(llm, tmp_path, monkeypatch):
    file = tmp_path / "s.kv"
    file.write_bytes(b"precious")

    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    with llm.session() as s:
        for error in (full, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())):
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", error)
                with pytest.raises((OSError, KeyboardInterrupt)) as caught:
                    s.save(file)
                assert getattr(caught.value, "filename", str(file)) == str(file)
            assert file.read_bytes() == b"precious" and os.listdir(tmp_path) == ["s.kv"]


def test_damaged_saved_sessions_are_refused(llm, tmp_path):
    file = tmp_path / "s.kv"
    with llm.session() as s:
        s.eval([1, 2, 3])
        s.save(file)
        data = file.read_bytes()
        cuts = [data[:n] for n in (0, 7, 50, 103, 104, 110, len(data) - 1)] + [data + b"\0"]
        flips = [
            data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
            for i in range(0, len(data), 1 if len(data) < 500 else 11)
        ]
        for bad in (*cuts, *flips):
            file.write_bytes(bad)
            with pytest.raises(LLMError, match="s.kv"):
                s.load(file)
        assert s.tokens == [1, 2, 3] and np.isfinite(s.eval([4])).all()


def test_sessions_of_other_models_and_longer_ones_are_refused(llm, tmp_path):
    (tmp_path / "other.llm").write_bytes(tiny(seed=6))  # the same shape, other weights
    with llm.session() as s:
        s.eval([1] * 30)
        s.save(tmp_path / "s.kv")
    with pytest.raises(LLMError, match="another model"):
        LLM(tmp_path / "other.llm").session().load(tmp_path / "s.kv")
    with pytest.raises(ContextError, match="30 tokens, more than the context of 20"):
        LLM(llm.path, context=20).session().load(tmp_path / "s.kv")


def test_sessions_whose_keys_are_kept_in_another_way_are_refused(tmp_path):
    (tmp_path / "m.llm").write_bytes(tiny(dtype=INT8R))
    file, llm = tmp_path / "s.kv", LLM(tmp_path / "m.llm")
    with llm.session() as s, llm.session() as other:
        s.eval(ids := list(range(70)))
        s.save(file)
        other.load(file)
        assert np.array_equal(other.eval([7]), llm.logits([*ids, 7])[-1])
        head, rest = list(HEAD.unpack_from(file.read_bytes())), file.read_bytes()[HEAD.size :]
        a_layer = 2 * (16 + 2 + 16 + 4)  # two heads of 16: a key and a value with their scales
        assert head[-1] == 2 * a_layer
        for size, what in ((2 * 2 * 2 * 16 * 2, "are fp16"), (7, "have 7 bytes a token")):
            file.write_bytes(HEAD.pack(*head[:-1], size) + rest)
            with pytest.raises(
                LLMError, match=f"s.kv: its keys and values {what}, not int8 as in this session"
            ):
                other.load(file)
        assert other.tokens == [*ids, 7]


def test_kinds_of_keys_and_exactness_are_chosen(tmp_path):
    """By default int8 for int8r, fp16 for fp16; of fp16 a prompt's logits without `exact` are other ones,
    closely."""
    ids = list(range(60))
    for dtype, default in ((INT8R, "int8"), (FP16, "fp16")):
        (tmp_path / "m.llm").write_bytes(tiny(dtype=dtype))
        found = {kv: LLM(tmp_path / "m.llm", kv=kv, exact=True).logits(ids) for kv in (None, "fp16", "int8")}
        assert np.array_equal(found[None], found[default])
        assert 0 < abs(found["fp16"] - found["int8"]).max() < found[None].std()
        rounded = LLM(tmp_path / "m.llm").logits(ids)
        assert abs(rounded - found[None]).max() < 0.05 * found[None].std()
        assert np.array_equal(rounded, found[None]) == (
            dtype == INT8R or "scalar" in os.environ.get("PYLLM_ISA", "")
        )
    for bad in ("int4", "FP16", 1, ""):
        with pytest.raises(ValueError, match='kv must be None, "fp16" or "int8"'):
            LLM(tmp_path / "m.llm", kv=bad)


def test_threads_may_share_a_session(llm):
    with llm.session() as s:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: s.eval([i] * 10), range(20)))
        assert len(s) == 200
        tokens = s.tokens
        assert all(len(set(tokens[i : i + 10])) == 1 for i in range(0, 200, 10))
        assert np.array_equal(s.eval([7]), llm.logits([*tokens, 7])[-1])
