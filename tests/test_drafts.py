"""Drafts change nothing: what comes with guesses, in Python and in the command, is what comes without."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import random
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import BOS, COMMAND, IM_END, NONE, SPECIAL, byte_tokenizer, place_of
from pyllm._llm import ffi, lib
from reference import FP16, INT8, make_model

from pyllm import LLM, LLMError, drafts, scheduler
from pyllm.binding import CHUNK, Cache, Model
from pyllm.drafts import DraftModel, Lookup, ModelDrafts
from pyllm.sampling import Completion, Continuation, SamplingParams, StreamEvent
from pyllm.scheduler import Scheduler
from tools.bench import drafts as bench

VOCAB = 256 + len(SPECIAL)
QUOTED = "One day a dog met a cat. The cat said: one day a dog met a cat. The cat said: one day a "
TEMPLATE = b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
PARTS = b"\0\0\0\n\0\n\0\0"  # of the same kind, for the command


def tiny(seed: int, *, vocab_size: int = VOCAB, special: list[bytes] = SPECIAL, **more: Any) -> bytes:
    """A random model over bytes that ends at no token by itself. What it says depends on the last token most
    of all, so that it repeats itself when the temperature is low, but not only."""
    sections = {
        **byte_tokenizer(lib.LLM_ADD_BOS, BOS, NONE, special),
        lib.LLM_STOP: b"",
        lib.LLM_CHAT_TEMPLATE: TEMPLATE,
        lib.LLM_CHAT_PARTS: PARTS,
    }
    shape = {"dtype": INT8, "context": 600, "residual_scale": 0.05, **more}
    return make_model(seed, vocab_size=vocab_size, sections=sections, **shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drafts")
    (folder / "tiny.llm").write_bytes(tiny(5))
    (folder / "fp16.llm").write_bytes(tiny(6, dtype=FP16))
    (folder / "other.llm").write_bytes(tiny(7, dim=32, ffn_dim=64, n_layers=1))
    return folder


@pytest.fixture(scope="module")
def path(folder) -> str:
    return str(folder / "tiny.llm")


@pytest.fixture
def steps(monkeypatch) -> list[Counter]:
    """The passes of all models: how many tokens of which sequence each has."""
    made, forward = [], Cache.forward

    def counted(self, tokens, seqs, want):
        made.append(Counter(seqs))
        return forward(self, tokens, seqs, want)

    monkeypatch.setattr(Cache, "forward", counted)
    return made


def both(path: str, **more: Any) -> tuple[LLM, LLM]:
    """The model without and with drafts."""
    return LLM(path, threads=1, draft=False, **more), LLM(path, threads=1, **more)


def stream(llm: LLM, prompt: Any, **params: Any) -> tuple[list[StreamEvent], Completion]:
    events, run = [], llm.stream(prompt, events=True, **params)
    while True:
        try:
            events.append(next(run))
        except StopIteration as end:
            return events, end.value


def without_usage(events: list[StreamEvent]) -> list[StreamEvent]:
    return [replace(event, usage=None) for event in events]


def accepted(results: Completion | list[Completion]) -> int:
    results = [results] if isinstance(results, Completion) else results
    assert all(0 <= done.accepted_tokens <= done.drafted_tokens for done in results)
    return sum(done.accepted_tokens for done in results)


# ----------------------------------------------------------------------------------------------------------
# Guesses from the text


class Text:
    """A text that grows, and what is guessed to follow it."""

    def __init__(self, model: Model) -> None:
        self.lookup = ffi.gc(lib.llm_lookup_open(model.ptr, ffi.NULL, 0), lib.llm_lookup_close)

    def add(self, *tokens: int, generated: int = 0) -> None:
        assert lib.llm_lookup_add(self.lookup, tokens, len(tokens), generated, ffi.NULL, 0) == 0

    def guesses(self, most: int = 14) -> list[int]:
        room = ffi.new("uint32_t[]", [NONE] * (most + 1))
        n = lib.llm_lookup_draft(self.lookup, room, most)
        assert n <= most and room[n] == NONE, "nothing is written behind them"
        return list(room)[:n]


@pytest.fixture(scope="module")
def model(path) -> Model:
    return Model(path)


def test_a_text_that_repeats_goes_on_as_it_did(model):
    text = Text(model)
    text.add(*range(100, 120), 7, 8)
    assert text.guesses() == []
    text.add(103, 104, 105)
    assert text.guesses(2) == [106, 107]
    text.add(106, 107, 108, 109, generated=1)
    assert text.guesses(2) == [110, 111]
    assert text.guesses(0) == []


def test_the_latest_of_several_places_counts(model):
    text = Text(model)
    text.add(1, 2, 3, 50, 1, 2, 3, 60, 9, 9, 1, 2, 3)
    assert text.guesses(1) == [60]


def test_more_tokens_that_agree_count_more_than_a_later_place(model):
    text = Text(model)
    text.add(1, 2, 3, 50, 7, 2, 3, 60, 9, 9, 1, 2, 3)
    assert text.guesses(1) == [50]


def test_a_draft_longer_than_what_follows_goes_on_with_itself(model):
    text = Text(model)
    text.add(*[1, 2, 3] * 4)
    for token in [1, 2, 3] * 10:
        text.add(token, generated=1)
    assert text.guesses(10) == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]


def test_a_replaced_token_does_not_end_a_quotation(model):
    text = Text(model)
    text.add(*range(100, 150), 7, 8, *range(100, 110))
    text.add(9, generated=1)
    assert text.guesses(3)[:1] == [111]


def test_drafts_end_where_guesses_are_wrong_and_grow_where_they_are_right(model):
    text, wrong = Text(model), 0
    text.add(*[1, 2, 3, 4] * 3)
    assert len(text.guesses()) in range(1, 4)
    for token in range(1000, 1200):  # always behind 1, 2: the guess is the token before, and wrong
        text.add(1, 2, generated=1)
        wrong += len(text.guesses())
        text.add(token, generated=1)
    assert text.guesses() == [] and wrong < 40
    for token in [1, 2, 3, 4] * 20:
        text.add(token, generated=1)
    assert len(text.guesses()) == 14


def test_tokens_that_do_not_repeat_are_not_guessed(model):
    text = Text(model)
    for token in random.Random(1).sample(range(1 << 30), 20_000):  # every entry of the index is used
        text.add(token, generated=1)
        assert text.guesses() == []


def test_a_guess_is_what_the_index_says_and_a_collision_gives_none(model):
    """Against a slow lookup without a hash: whatever is guessed follows the same tokens somewhere."""
    draw, text = random.Random(2), Text(model)
    tokens: list[int] = []
    for _ in range(3000):
        tokens.append(draw.choice([draw.randrange(6), draw.randrange(1 << 20)]))
        text.add(tokens[-1], generated=1)
        if guess := text.guesses(1):
            pairs = [(tokens[i : i + 2], tokens[i + 2]) for i in range(len(tokens) - 2)]
            assert (tokens[-2:], guess[0]) in pairs or guess[0] in tokens  # or behind a replaced token
    assert Text(model).guesses() == []


def test_experts_make_a_token_dearer_and_drafts_shorter(model, tmp_path):
    """Each token reads its own: 2 of 8, of which another token's 2 are a quarter."""
    (tmp_path / "experts.llm").write_bytes(data := tiny(5, n_experts=8, n_active=2, ffn_dim=256))
    experts = Model(str(tmp_path / "experts.llm"))
    tensors = [(lib.LLM_GATE_UP, layer) for layer in (0, 1)] + [(lib.LLM_DOWN, layer) for layer in (0, 1)]
    own = sum(place_of(data, *tensor).size for tensor in tensors) * 2 * (1 - 2 / 8) / experts.counts.read
    assert lib.llm_token_cost(model.ptr) == pytest.approx(0.2)
    assert lib.llm_token_cost(experts.ptr) == pytest.approx(0.2 + 0.8 * own) and own > 0.3
    lengths = []
    for each in (model, experts):
        text = Text(each)
        text.add(*[1, 2, 3, 4] * 3)
        lengths.append(len(text.guesses()))
    assert lengths[0] > lengths[1]


# ----------------------------------------------------------------------------------------------------------
# The same results

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.1},
    {"temperature": 0.8, "top_k": 3, "logprobs": 3},
    {"temperature": 0, "repeat_penalty": 1.1, "logprobs": 0},
    {"temperature": 0.1, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"temperature": 0.2, "logit_bias": {65: 3.0, 66: -math.inf}, "min_p": 0.1},
    {"temperature": 0.1, "stop": ["the cat", "\xff", "zz"]},
    {"temperature": 1.5, "top_p": 0.5},
]


@pytest.mark.parametrize("file", ["tiny.llm", "fp16.llm"])
def test_results_are_the_same_for_one_request(folder, file):
    plain, drafting = both(str(folder / file))
    came = 0
    for i in range(24):
        params = dict(PARAMS[i % len(PARAMS)], seed=i, max_tokens=100)
        done = drafting.generate(QUOTED[i:], **params)
        assert done == plain.generate(QUOTED[i:], **params), params
        came += accepted(done)
    assert came > 200


@pytest.mark.parametrize("n", [2, 3, 4])
def test_results_are_the_same_for_several_requests(path, n):
    plain, drafting = both(path)
    came = 0
    for i in range(6):
        prompts = [QUOTED[j:] for j in range(n)]
        params = [
            SamplingParams(**dict(PARAMS[(i + j) % 7], seed=i + j, max_tokens=15 * (j + 1))) for j in range(n)
        ]
        done = drafting.generate(prompts, params)
        assert done == plain.generate(prompts, params)
        assert done == [plain.generate(*each) for each in zip(prompts, params, strict=True)]
        came += accepted(done)
    assert came > 20


def test_a_real_text_is_the_same(story_model):
    """Cut at stop texts, and by the model itself."""
    plain, drafting = both(str(story_model))
    came = 0
    for i, stop in enumerate([None, ["Mom"], [" the", "."], None]):
        for temperature in (0, 0.8):
            params = dict(seed=i, max_tokens=80, stop=stop, temperature=temperature, logprobs=2)
            done = drafting.generate("Once upon a time there was a dog. Once upon a time there was", **params)
            assert done == plain.generate(
                "Once upon a time there was a dog. Once upon a time there was", **params
            )
            came += accepted(done)
    assert came > 0


def test_streams_have_the_same_events(path):
    plain, drafting = both(path)
    came = 0
    for i, params in enumerate(PARAMS):
        events, done = stream(drafting, QUOTED, seed=i, max_tokens=40, **params)
        expected, whole = stream(plain, QUOTED, seed=i, max_tokens=40, **params)
        assert without_usage(events) == without_usage(expected) and done == whole
        assert events[-1].usage == done.usage
        assert done.usage[3:] == (done.drafted_tokens, done.accepted_tokens)
        assert whole.usage == (*done.usage[:3], 0, 0)
        came += accepted(done)
    assert came > 0


def test_chats_are_the_same_and_reuse_as_much(path):
    plain, drafting = both(path)
    came, messages = 0, [{"role": "user", "content": QUOTED}]
    for i in range(4):
        params = dict(seed=i, max_tokens=30, temperature=0.2)
        reply = drafting.chat(messages, **params)
        expected = plain.chat(messages, **params)
        assert (reply, reply.cached_tokens) == (expected, expected.cached_tokens)
        came += accepted(reply)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "and then?"}]
    assert came > 0


def test_what_a_request_leaves_behind_is_what_it_computed(path):
    """The sequence is kept for those that begin alike: without the guesses that never came."""
    plain, drafting = both(path)
    for i in range(12):
        ids = [BOS, *QUOTED[i:].encode()]
        done = drafting.generate(ids, temperature=0.3, seed=i, max_tokens=25 + i)
        longer = [*ids, *done.tokens]
        more = drafting.generate(longer, temperature=0.3, seed=i, max_tokens=25)
        assert more == LLM(path, threads=1, draft=False).generate(
            longer, temperature=0.3, seed=i, max_tokens=25
        )
        assert more.cached_tokens == len(longer) - 1
    assert plain.generate(longer, temperature=0.3, seed=i, max_tokens=25) == more


def test_threads_at_once_get_the_same(path):
    drafting = LLM(path, threads=1)

    def work(i: int, llm: LLM) -> Any:
        params = dict(PARAMS[i % len(PARAMS)], seed=i, max_tokens=10 + 5 * (i % 7))
        if i % 5 == 0:
            return llm.score(QUOTED[i:], QUOTED[: i + 1])
        if i % 5 == 1:
            events, done = stream(llm, QUOTED[i:], **params)
            return without_usage(events), done
        return llm.generate(QUOTED[i:], **params)

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(partial(work, llm=drafting), range(40)))
    plain = LLM(path, threads=1, draft=False)
    assert together == [work(i, plain) for i in range(40)]


@pytest.mark.parametrize(
    "prompt, context, max_tokens",
    [
        (QUOTED, 95, None),
        (QUOTED, 110, None),
        (QUOTED, 600, 1),
        (QUOTED, 600, 2),
        (QUOTED, 600, 17),
        ("abababab", 25, 40),
    ],
)
def test_nothing_is_guessed_behind_the_last_token_that_may_come(
    path, prompt, context, max_tokens, monkeypatch
):
    lengths, forward = [], Cache.forward

    def measured(self, tokens, seqs, want):
        rows = forward(self, tokens, seqs, want)
        lengths.append(len(self.tokens[seqs[0]]))
        return rows

    plain, drafting = both(path, context=context)
    params = dict(temperature=0, seed=0, max_tokens=max_tokens)
    expected = plain.generate(prompt, **params)
    monkeypatch.setattr(Cache, "forward", measured)
    assert drafting.generate(prompt, **params) == expected
    assert max(lengths) == expected.prompt_tokens + len(expected.tokens) - 1


# ----------------------------------------------------------------------------------------------------------
# What is run


def test_every_accepted_token_saves_a_step(path, steps):
    done = LLM(path, threads=1).generate(QUOTED, temperature=0, seed=0, max_tokens=100)
    assert done.accepted_tokens > 20
    assert len(steps) == 100 - done.accepted_tokens
    assert sum(step.total() for step in steps[1:]) == len(steps) - 1 + done.drafted_tokens


def test_steps_with_drafts_stay_below_the_number_from_which_bits_may_change(path, steps):
    llm = LLM(path, threads=1)
    llm.generate([QUOTED, QUOTED[5:]], temperature=0, seed=0, max_tokens=150)
    sizes = [step.total() for step in steps[1:]]
    assert max(sizes) == 15 and scheduler.MAX_DRAFTED == 15


def test_drafts_are_for_one_or_two_requests(path, steps):
    llm = LLM(path, threads=1)
    for n in (1, 2, 3, 4):
        done = llm.generate([QUOTED[i:] for i in range(n)], temperature=0, seed=0, max_tokens=80)
        assert (accepted(done) > 0) == (n <= 2), n
        assert n <= 2 or not any(each.drafted_tokens for each in done)


def test_nothing_is_guessed_beside_a_prompt(path, monkeypatch):
    """Which would wait, and be more tokens than a step with drafts may have."""
    model = Model(path)
    by_hand = type("ByHand", (Scheduler,), {"_wake": lambda self: None})(model, 600, 1)
    params = SamplingParams(temperature=0, seed=0, max_tokens=200)
    job = Continuation(model, [BOS, *QUOTED.encode()], params, 600, drafter=Lookup(model, 1 + len(QUOTED)))
    by_hand.add(job)
    while job.accepted < 30:  # it repeats itself: guesses are in every step
        by_hand.step()
    drafted = job.drafted
    late = Continuation(model, [BOS, *b"x" * 200], params, 600)
    by_hand.add(late)
    while len(late.tokens) == 0:
        by_hand.step()
        assert job.drafted == drafted
    while by_hand.step():
        pass
    assert job.drafted > drafted
    assert job.completion() == LLM(path, threads=1, draft=False).generate(job.prompt, params, seed=job.seed)


def test_a_stop_token_is_not_guessed(path):
    """Nothing can follow it. "b" is always drawn; <|im_end|> followed it before."""
    plain, drafting = both(path)
    ids = [BOS, *b"ab", IM_END, *b"ab", IM_END, *b"a"]
    for stop, guessed in (("<|im_end|>", False), (None, True)):
        params = dict(stop=stop, logit_bias={ord("b"): 50.0}, seed=0, max_tokens=9)
        done = drafting.generate(ids, **params)
        assert done == plain.generate(ids, **params) and done.text == "b" * 9
        first = drafting.generate(ids, **{**params, "max_tokens": 3})
        assert (first.drafted_tokens > 0) == guessed and first.accepted_tokens == 0


def test_a_guess_that_is_no_token_is_not_run(path):
    class Guesses(Lookup):
        def draft(self, ids: list[int], most: int) -> list[int]:
            return [65, VOCAB, 66][:most]

    job = Continuation(Model(path), [BOS], SamplingParams(max_tokens=9), 600, drafter=Guesses(Model(path), 1))
    assert job.draft(14) == job.draft(2) == [65]


def test_a_request_that_is_cancelled_among_its_drafts_leaves_the_others_alone(path):
    plain, drafting = both(path)
    expected = plain.generate(QUOTED, temperature=0, seed=0, max_tokens=80)
    for taken in range(1, 6):
        run = drafting.stream(QUOTED[1:], temperature=0, seed=0, max_tokens=500)
        for _ in range(taken):
            next(run)
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(drafting.generate, QUOTED, temperature=0, seed=0, max_tokens=80)
            run.close()
            assert beside.result(30) == expected


def test_an_error_while_guesses_are_passed_on_ends_its_request_only(path):
    model = Model(path)
    by_hand = type("ByHand", (Scheduler,), {"_wake": lambda self: None})(model, 600, 1)
    params = SamplingParams(temperature=0, seed=0, max_tokens=60)
    prompt = [BOS, *QUOTED.encode()]

    class Failing(Continuation):
        def accept(self, logits: Any) -> None:
            super().accept(logits)
            if self.accepted == 3:
                raise RuntimeError("accept")

    bad = Failing(model, prompt, params, 600, drafter=Lookup(model, len(prompt)))
    good = Continuation(model, prompt[:-1], params, 600, drafter=Lookup(model, len(prompt) - 1))
    by_hand.add(bad, good)
    while by_hand.step():
        pass
    assert str(bad.error) == "accept" and bad.accepted == 3
    plain = LLM(path, threads=1, draft=False)
    assert good.completion() == plain.generate(good.prompt, params, seed=good.seed)
    again = Continuation(model, [*prompt, *bad.tokens], params, 600, drafter=Lookup(model, 1))
    by_hand.add(again)
    while by_hand.step():
        pass
    assert again.cached >= len(prompt) + 2
    assert again.completion() == plain.generate(again.prompt, params, seed=again.seed)


def test_a_drafter_that_fails_ends_its_request_only(path):
    model = Model(path)
    by_hand = type("ByHand", (Scheduler,), {"_wake": lambda self: None})(model, 600, 1)
    params = SamplingParams(temperature=0, seed=0, max_tokens=20)

    class Broken(Lookup):
        def draft(self, ids: list[int], most: int) -> list[int]:
            raise RuntimeError("draft")

    bad, good = (
        Continuation(model, [BOS, 65], params, 600, drafter=each)
        for each in (Broken(model, 2), Lookup(model, 2))
    )
    by_hand.add(bad, good)
    while by_hand.step():
        pass
    assert str(bad.error) == "draft" and good.error is None and len(good.tokens) == 20


def test_a_guess_whose_logits_are_not_finite_is_no_error(tmp_path):
    """The embedding of "A" is NaN. A draft model guesses it all the time, and it never comes."""
    (tmp_path / "nan.llm").write_bytes(with_row(tiny(8, dtype=FP16), lib.LLM_EMBED, 65, 0x7E00))
    never = {65: -math.inf}

    class Always(LLM):
        def _drafter(self, prompt: list[int]) -> Any:
            guesses = type("A", (), {"draft": lambda _, ids, most: [66, 65, 65][:most]})
            return guesses()

    plain = LLM(tmp_path / "nan.llm", threads=1, draft=False)
    for prompts in (["hello"], ["hello", "you"]):
        params = dict(logit_bias=never, seed=3, max_tokens=30, logprobs=1)
        assert Always(tmp_path / "nan.llm", threads=1).generate(prompts, **params) == plain.generate(
            prompts, **params
        )


# ----------------------------------------------------------------------------------------------------------
# A draft model


def test_a_model_that_guesses_for_itself_is_always_right(path, steps):
    plain = LLM(path, threads=1, draft=False)
    llm = LLM(path, threads=1, draft=plain)
    for prompts in ([QUOTED], [QUOTED[:-1], QUOTED[3:]], ["x" * 3 * CHUNK]):
        if len(prompts[0]) > 600:
            llm = LLM(path, threads=1, draft=plain, context=1000)
            plain = LLM(path, threads=1, draft=False, context=1000)
        done = llm.generate(prompts, temperature=0, seed=0, max_tokens=60)
        assert [each.accepted_tokens for each in done] == [each.drafted_tokens for each in done]
        assert accepted(done) > 30 * len(prompts)
        assert done == plain.generate(prompts, temperature=0, seed=0, max_tokens=60)


def test_another_model_guesses_and_changes_nothing(folder, path):
    other = LLM(folder / "other.llm", threads=1)
    plain, drafting = LLM(path, threads=1, draft=False), LLM(path, threads=1, draft=other)
    drafted = 0
    for i, params in enumerate(PARAMS):
        prompts = [QUOTED[i:], QUOTED[2 * i :]][: 1 + i % 2]
        done = drafting.generate(prompts, seed=i, max_tokens=50, **params)
        assert done == plain.generate(prompts, seed=i, max_tokens=50, **params)
        drafted += sum(each.drafted_tokens for each in done)
    assert drafted > 0
    reply = drafting.chat([{"role": "user", "content": "Hi"}], seed=1, max_tokens=9)
    assert reply == plain.chat([{"role": "user", "content": "Hi"}], seed=1, max_tokens=9)


def test_a_draft_model_that_is_always_wrong_is_asked_rarely(folder, path, monkeypatch):
    asked = []
    monkeypatch.setattr(DraftModel, "guess", lambda self, user, ids, most: asked.append(len(ids)) or [0])
    llm = LLM(path, threads=1, draft=LLM(folder / "other.llm", threads=1))
    llm.generate("hello", temperature=0, logit_bias={0: -math.inf}, max_tokens=400)
    late = [at for at in asked if at > 100]
    assert 3 <= len(late) <= 15 and len(asked) < 30


def test_a_draft_model_may_have_more_or_fewer_rows_than_tokens(folder, path, tmp_path):
    """As Qwen2.5's small and large models do."""
    (tmp_path / "more.llm").write_bytes(tiny(9, vocab_size=VOCAB + 16, n_layers=1))
    more = LLM(tmp_path / "more.llm", threads=1, draft=False)
    small = LLM(path, threads=1, draft=False)
    for target, draft in ((small, more), (more, small)):
        drafting = LLM(target.path, threads=1, draft=draft)
        for prompt in (QUOTED, [BOS, 65, target.vocab_size - 1, 66]):
            params = dict(temperature=0.5, seed=1, max_tokens=40)
            assert drafting.generate(prompt, **params) == target.generate(prompt, **params)


def test_a_draft_model_of_other_tokens_is_refused(folder, path, story_model):
    with pytest.raises(LLMError, match=r"^draft: .*stories.llm has other tokens than .*tiny.llm$"):
        LLM(path, draft=LLM(story_model))
    (folder / "special.llm").write_bytes(tiny(5, special=[b"<s>", b"<|im_start|>", b"<|end|>"]))
    with pytest.raises(LLMError, match="other tokens"):
        LLM(path, draft=LLM(folder / "special.llm"))


@pytest.mark.parametrize("draft", [True, 0, 1, "model.llm", "", b"lookup", 0.5])
def test_draft_must_be_one_of_its_kinds(path, draft):
    with pytest.raises(TypeError, match="draft must be None"):
        LLM(path, draft=draft)


def test_lookup_is_the_default(path):
    default, named = LLM(path, threads=1), LLM(path, threads=1, draft="lookup")
    usages = [llm.generate(QUOTED, temperature=0, seed=0, max_tokens=50).usage for llm in (default, named)]
    assert usages[0] == usages[1] and usages[0].accepted_tokens > 0


def test_a_draft_model_that_is_closed_is_an_error(folder, path):
    other = LLM(folder / "other.llm", threads=1)
    llm = LLM(path, threads=1, draft=other)
    other.close()
    with pytest.raises(LLMError, match="other.llm is closed"):
        llm.generate("a")
    with pytest.raises(LLMError, match="other.llm is closed"):
        LLM(path, draft=other)


def test_a_draft_model_without_memory_is_done_without(folder, path, monkeypatch):
    llm = LLM(path, threads=1, draft=LLM(folder / "other.llm", threads=1))
    expected = LLM(path, threads=1, draft=False).generate("a", temperature=0, seed=0, max_tokens=20)

    def refuse(*_: Any) -> Any:
        raise LLMError("no memory")

    monkeypatch.setattr(drafts, "Cache", refuse)
    done = llm.generate("a", temperature=0, seed=0, max_tokens=20)
    assert done == expected and done.drafted_tokens == 0


def test_a_copy_drafts_as_its_original_does(folder, path):
    for draft in (None, False, "lookup", LLM(folder / "other.llm", threads=1)):
        llm = LLM(path, threads=1, draft=draft)
        copy = pickle.loads(pickle.dumps(llm))
        usages = [each.generate(QUOTED, temperature=0, seed=0, max_tokens=30).usage for each in (llm, copy)]
        assert usages[0] == usages[1] and (usages[0].drafted_tokens > 0) == (draft is not False)


def forked(llm: LLM, pipe: Any) -> None:
    pipe.send(llm.generate(QUOTED, temperature=0, seed=0, max_tokens=40))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_drafts_too(folder, path, threads):
    llm = LLM(path, threads=threads, draft=LLM(folder / "other.llm", threads=threads))
    expected = llm.generate(QUOTED, temperature=0, seed=0, max_tokens=40)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=forked, args=(llm, there))
    child.start()
    try:
        assert here.poll(30), "the child hangs"
        found = here.recv()
    finally:
        child.kill()
        child.join()
    assert found == expected and found.drafted_tokens > 0 and expected.drafted_tokens > 0


def test_two_requests_of_a_draft_model_do_not_take_each_others_sequences(folder, path, steps):
    """Each of its tokens is run once: but for the guesses that were wrong."""
    other = Model(str(folder / "other.llm"))
    model = DraftModel(other, other, 600, 1)
    users = [ModelDrafts(model), ModelDrafts(model), ModelDrafts(model)]
    texts = [[BOS, *b"hello"] * 20, [BOS, *b"hello", 33] * 20, [BOS, *b"you"] * 5]
    for user, ids in zip(users[:2], texts, strict=False):
        model.guess(user, ids, 2)
    steps.clear()
    for _ in range(10):
        for user, ids in zip([users[0], users[0], users[1]], [texts[0], texts[0], texts[1]], strict=True):
            ids.append(65)
            model.guess(user, ids, 2)
    assert all(step.total() <= 2 for step in steps)
    third = model.guess(users[2], texts[2], 3)
    assert third == DraftModel(other, other, 600, 1).guess(users[2], texts[2], 3)


# ----------------------------------------------------------------------------------------------------------
# The command

needs_command = pytest.mark.skipif(not COMMAND, reason="the command pyllm is not installed")


def run(*arguments: str, input: str = "", rc: int = 0) -> tuple[str, str]:
    environment = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [str(COMMAND), *arguments]
    done = subprocess.run(command, input=input.encode(), capture_output=True, env=environment, timeout=60)
    assert done.returncode == rc, done.stderr
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def counts(err: str) -> tuple[int, int]:
    """How many tokens of how many were right, by --verbose."""
    found = re.search(r"(\d+) of (\d+) drafted accepted", err)
    assert found, err
    return int(found[1]), int(found[2])


COMMANDS: list[list[str]] = [
    ["-t", "0"],
    ["-t", "0.3", "--seed", "1"],
    ["-t", "0.4", "--seed", "2", "--repeat-penalty", "1.05", "--frequency-penalty", "0.1"],
    ["-t", "0.2", "--seed", "3", "--stop", "day", "--stop", "\u00e9"],
    ["-t", "1", "--seed", "4", "--top-k", "2", "--context", "120"],
]


@needs_command
@pytest.mark.parametrize("options", COMMANDS, ids=" ".join)
def test_the_command_prints_the_same(folder, path, options):
    command = ["generate", "-m", path, "-n", "80", "--threads", "1", "-v", *options, QUOTED]
    plain, err = run(*command, "--draft", "off")
    assert counts(err) == (0, 0)
    for how in ([], ["--draft", "lookup"], ["--draft", path], ["--draft", str(folder / "other.llm")]):
        assert run(*command, *how)[0] == plain, how


@needs_command
def test_the_command_and_python_guess_alike(path):
    out, err = run("generate", "-m", path, "-n", "80", "-t", "0", "--threads", "1", "-v", "--no-echo", QUOTED)
    done = LLM(path, threads=1).generate(QUOTED, temperature=0, seed=0, max_tokens=80)
    assert counts(err) == (done.accepted_tokens, done.drafted_tokens) and done.accepted_tokens > 20
    own = run("generate", "-m", path, "-n", "80", "-t", "0", "--threads", "1", "-v", "--draft", path, QUOTED)[
        1
    ]
    itself = LLM(path, threads=1, draft=LLM(path, threads=1)).generate(
        QUOTED, temperature=0, seed=0, max_tokens=80
    )
    assert (
        counts(own) == (itself.accepted_tokens, itself.drafted_tokens)
        and counts(own)[0] == counts(own)[1] > 40
    )


@needs_command
def test_a_conversation_is_the_same(folder, path):
    messages = f"{QUOTED}\nand then?\n{QUOTED}\n/reset\n{QUOTED[5:]}\n"
    command = ["chat", "-m", path, "-n", "40", "-t", "0.2", "--seed", "1", "--threads", "1", "-v"]
    plain, _ = run(*command, "--draft", "off", input=messages)
    for how in ([], ["--draft", path], ["--draft", str(folder / "other.llm")]):
        out, err = run(*command, *how, input=messages)
        assert out == plain
        lines = [line for line in err.splitlines() if "drafted" in line]
        assert len(lines) == 4 and sum(counts(line)[1] for line in lines) > 0
        if not how:
            assert sum(counts(line)[0] for line in lines) > 0


def with_row(data: bytes, tensor: int, row: int | slice, word: int) -> bytes:
    """An fp16 model with rows of a matrix replaced; those of a slice in each tile of 16."""
    changed, t = bytearray(data), place_of(data, tensor)
    words = np.frombuffer(changed, "<u2", t.size // 2, t.offset).reshape(-1, t.stride, 16)
    if isinstance(row, slice):
        words[:, :, row] = word
    else:
        words[row // 16, :, row % 16] = word
    return bytes(changed)


@needs_command
def test_a_guess_whose_logits_are_not_finite_is_no_error_of_the_command(tmp_path):
    """Token 0 is always guessed, has an embedding of NaN, and never comes."""
    model = with_row(with_row(tiny(8, dtype=FP16), lib.LLM_EMBED, 0, 0x7E00), lib.LLM_OUTPUT, 0, 0)
    (tmp_path / "nan.llm").write_bytes(model)
    (tmp_path / "zero.llm").write_bytes(with_row(tiny(9, dtype=FP16), lib.LLM_OUTPUT, slice(16), 0))
    command = ["generate", "-m", str(tmp_path / "nan.llm"), "-n", "60", "-t", "0", "-v", QUOTED]
    plain, _ = run(*command, "--draft", "off")
    out, err = run(*command, "--draft", str(tmp_path / "zero.llm"))
    assert out == plain and counts(err)[0] == 0 < counts(err)[1]
    assert err.count("\n") == 1


@needs_command
def test_the_command_refuses_what_cannot_guess(folder, path, story_model):
    for how, message in (
        (str(story_model), f"--draft: {story_model} has other tokens than the model"),
        (str(folder / "none.llm"), f"--draft: {folder / 'none.llm'}: No such file or directory"),
        ("", "--draft: "),
    ):
        out, err = run("generate", "-m", path, "--draft", how, "hello", rc=1)
        assert out == "" and err.startswith(f"pyllm: {message}") and err.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------
# The measurement


def test_the_measurement_compares_both_and_counts(tmp_path, capsys, monkeypatch):
    (tmp_path / "chat.llm").write_bytes(tiny(5, context=1200))
    monkeypatch.setattr(bench, "CASES", dict(list(bench.CASES.items())[:2]))
    arguments = [str(tmp_path / "chat.llm"), "--threads", "1", "--repeat", "1", "--max-tokens", "60"]
    assert bench.main(arguments) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row and row[0] in bench.CASES]
    assert [row[0] for row in rows] == list(bench.CASES)
    assert all(row[1] == "60" and 0 < int(row[6]) <= int(row[5]) and row[7] == "yes" for row in rows)


def test_the_measurement_notices_a_difference(path, capsys, monkeypatch):
    def other_seed(llm: LLM, text: str, params: dict[str, Any]) -> tuple[float, Completion]:
        return 1.0, llm.generate("a", max_tokens=9, seed=int(llm._draft is False))

    monkeypatch.setattr(bench, "timed", other_seed)
    assert bench.main([path, "--threads", "1", "--repeat", "1"]) == 1
    assert "| NO |" in capsys.readouterr().out
