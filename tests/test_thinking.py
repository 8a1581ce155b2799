"""Thoughts that have a budget: they end where it does, and the answer follows, however it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from common import IM_END
from served import Client, write_model

from pyllm import LLM, ChatOptions, chat
from pyllm.chat import closing_of
from pyllm.grammar import Reasoning
from pyllm.testing import Server, running_server
from pyllm.thinking import Budget, Thought

pytest.importorskip("starlette")

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
MARKS = chat.MARKS[0]
HI = [{"role": "user", "content": "Hi"}]
# As Qwen3 has it: a thought has lines of its own, and one that is not wanted is there, empty
TEMPLATE = rb"""
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}
{%- elif begins is defined %}{{ '<think>\n' }}{% endif %}{% endif %}"""
BEGINS = {"template_kwargs": {"begins": True}, "reasoning": "apart"}
SILENT = [ord("<"), *range(128, IM_END + 1), IM_END + 2]  # tokens of marks, and parts of characters
ENDLESS = {"logit_bias": dict.fromkeys(SILENT[:-1], -100.0), "seed": 3}  # it says no mark by itself


@pytest.fixture(scope="module", params=["text", "tokens"])
def llm(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    control = [mark.encode() for mark in MARKS[:2]] if request.param == "tokens" else []
    folder = tmp_path_factory.mktemp("thinking")
    with LLM(write_model(folder, template=TEMPLATE, control=control), threads=1) as llm:
        yield llm


@pytest.mark.parametrize("budget", [0, 1, 7, 30])
def test_a_thought_ends_where_its_budget_does_and_the_answer_follows(llm: LLM, budget: int) -> None:
    kwargs = dict(**BEGINS, **ENDLESS, max_tokens=budget + 40)
    free = llm.chat(HI, **kwargs)
    kwargs["template_kwargs"] = {"begins": True, "enable_thinking": True}  # says more than a budget of 0
    bound = llm.chat(HI, reasoning_budget=budget, **kwargs)
    assert bound.tokens[:budget] == free.tokens[:budget], "before its end it changes nothing"
    behind = llm.decode(bound.tokens[budget:], special=True)
    lines = budget > 0 and free.tokens[budget - 1] == ord("\n")
    end = "</think>\n\n" if lines else "\n</think>\n\n"
    assert behind.startswith(end)
    assert bound.reasoning_content == (llm.decode(free.tokens[:budget]).strip() or None)
    assert bound.text == behind.removeprefix(end).lstrip() and bound.text
    assert bound.finish_reason == "length" and len(bound.tokens) == budget + 40, "all tokens count"


def test_a_budget_gives_the_same_streamed_drafted_batched_and_cached(llm: LLM) -> None:
    kwargs = dict(**BEGINS, **ENDLESS, max_tokens=40, reasoning_budget=9, temperature=1.5)
    alone = llm.chat(HI, **kwargs)
    assert llm.chat(HI, **kwargs) == alone, "with what was computed before"
    events = list(llm.stream_chat(HI, events=True, **kwargs))
    assert [token for event in events for token in event.tokens] == alone.tokens
    assert "".join(event.reasoning_content for event in events) == alone.reasoning_content
    assert "".join(event.text for event in events) == alone.text
    together = llm.chat([HI] * 3, **kwargs)
    assert together[0] == alone and together[1].tokens != alone.tokens
    for draft in (False, None):
        with LLM(llm.path, threads=1, draft=draft) as other:
            assert other.chat(HI, **kwargs).tokens == alone.tokens


def test_a_thought_that_the_model_begins_has_a_budget_too(llm: LLM) -> None:
    begin = llm.encode("<think>", bos=False)
    options = ChatOptions(reasoning_budget=3, reasoning="apart")
    ids, parting = llm.chat_prompt(HI, options)
    thought = llm._reasoning(options, parting)
    assert thought is not None and not thought.begun
    (job,) = llm._prepare([ids], None, dict(max_tokens=30, **ENDLESS), reasoning=[thought])
    state = job.grammar
    assert isinstance(state, Budget)
    for token in [*begin, *b"abc"]:
        assert state.mask()[token // 32] >> token % 32 & 1 and not state.forced(1)
        state.accept(token)
    end = llm.encode("\n</think>\n\n", bos=False)
    assert state.forced(99) == end and state.forced(2) == end[:2]
    for token in end:
        words = [state.mask()[i] for i in range(-(-llm.vocab_size // 32))]
        assert sum(words) == 1 << token % 32 and words[token // 32], "nothing else may come"
        state.accept(token)
    assert not state.forced(9) and not state.complete


def test_a_mark_that_has_begun_is_completed(tmp_path: Path) -> None:
    with LLM(write_model(tmp_path, template=TEMPLATE), threads=1) as llm:
        thought = Reasoning(MARKS, True, budget=7, closing="\n</think>\n\n")
        state = Budget(llm._open(), thought, None)
        for token in b"hm</thi":
            state.accept(token)
        assert bytes(state.forced(99)) == b"nk>\n\n"


def test_a_character_is_not_torn_apart(tmp_path: Path) -> None:
    with LLM(write_model(tmp_path, template=TEMPLATE), threads=1) as llm:
        for text, budget, more in (("😀", 1, 3), ("a😀", 2, 3), ("aé", 2, 1), ("aé", 3, 0), ("\xffab", 1, 0)):
            state = Budget(llm._open(), Reasoning(MARKS, True, budget, "</think>"), None)
            data = text.encode("latin-1" if text.startswith("\xff") else "utf-8")
            for i, token in enumerate(data[: budget + more]):
                assert (i >= budget) <= (not state.forced(9))
                state.accept(token)
            assert bytes(state.forced(9)) == b"</think>"


def test_a_reply_that_begins_with_no_thought_is_left_alone(llm: LLM) -> None:
    kwargs = dict(**ENDLESS, max_tokens=30, reasoning="apart")
    assert llm.chat(HI, reasoning_budget=1, **kwargs).tokens == llm.chat(HI, **kwargs).tokens


def test_an_answer_behind_a_budget_is_bound(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    for seed in range(4):
        kwargs: dict[str, Any] = dict(**BEGINS, **{**ENDLESS, "seed": seed}, max_tokens=60)
        done = llm.chat(HI, reasoning_budget=6, choice=["yes", "no"], **kwargs)
        assert done.text in ("yes", "no") and done.finish_reason == "stop"
        thought = llm.decode(done.tokens[:6]).strip()
        assert (done.reasoning_content or "") == thought


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "begun, text, answer",
    [
        (False, " \n<think>a < b </thin</think> c<think>", " c<think>"),
        (False, "<thin", ""),
        (False, "<thing></think>", "<thing></think>"),
        (True, "<think> a</think></think>", "</think>"),
        (True, "a</think", ""),
    ],
)
def test_the_answer_begins_behind_the_thought(size: int, begun: bool, text: str, answer: str) -> None:
    thought = Thought(Reasoning(MARKS, begun))
    data = text.encode()
    given = b"".join(thought.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert given.decode() == answer


def test_line_ends_around_the_mark_are_the_templates() -> None:
    assert closing_of(TEMPLATE.decode(), "</think>") == "\n</think>\n\n"
    assert closing_of("{{ c.split('</think>')[1] }}", "</think>") == "</think>"
    assert closing_of("nothing", "[/THINK]") == "[/THINK]"


def test_a_budget_of_nothing_is_told_to_the_template(llm: LLM) -> None:
    empty = "<think>\n\n</think>\n\n"
    assert llm.render_chat(HI, reasoning_budget=0).endswith(empty)
    assert not llm.render_chat(HI, reasoning_budget=1).endswith(empty)
    assert not llm.render_chat(HI, reasoning_budget=0, template_kwargs={"enable_thinking": True}).endswith(
        empty
    )


def test_what_a_budget_cannot_be_is_refused(tmp_path: Path) -> None:
    for wrong in (-1, 1.5, "x", True):
        with pytest.raises((TypeError, ValueError), match="reasoning_budget"):
            ChatOptions(reasoning_budget=wrong)  # type: ignore[arg-type]
    with LLM(write_model(tmp_path), threads=1) as llm:
        free = llm.chat(HI, max_tokens=9, seed=1)
        assert all(llm.chat(HI, reasoning_budget=n, max_tokens=9, seed=1) == free for n in (0, 5)), (
            "no thought"
        )


# ----------------------------------------------------------------------------------------------------------
# Over the server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    control = [mark.encode() for mark in MARKS[:2]]
    path = write_model(tmp_path_factory.mktemp("thinking"), template=TEMPLATE, control=control)
    with running_server(path, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(write_model(tmp_path_factory.mktemp("plain")), threads=1) as running:
        yield running


BODY = {
    "messages": HI,
    "max_tokens": 40,
    "seed": 3,
    "logit_bias": {str(token): -100 for token in SILENT},
    "chat_template_kwargs": {"begins": True},
}


@pytest.mark.parametrize("name", ["reasoning_budget", "thinking_token_budget", "thinking_budget_tokens"])
def test_budgets_over_http(served: Server, name: str) -> None:
    client = Client(served.url)
    answer = client.answer(CHAT, {**BODY, name: 8, "n": 2, "return_token_ids": True})
    for one in answer["choices"]:
        ids = one["token_ids"]
        assert IM_END + 2 in ids[8:10] and IM_END + 2 not in ids[:8]
        assert one["message"]["reasoning"] and one["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 80
    events = client.events(CHAT, {**BODY, name: 8, "n": 2})
    for i, one in enumerate(answer["choices"]):
        deltas = [c["delta"] for event in events for c in event["choices"] if c["index"] == i]
        assert "".join(d.get("reasoning") or "" for d in deltas) == one["message"]["reasoning"]
        assert "".join(d.get("content") or "" for d in deltas) == one["message"]["content"]
    (free,) = client.answer(CHAT, {**BODY, name: -1})["choices"]
    assert free["message"]["content"] == ""


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_call_may_follow_where_a_budget_ends(served: Server, choice: str) -> None:
    pytest.importorskip("llguidance")
    tool = {"type": "function", "function": {"name": "now", "parameters": {"additionalProperties": False}}}
    body = {**BODY, "tools": [tool], "tool_choice": choice, "reasoning_budget": 5}
    body |= {"max_tokens": 90, "parallel_tool_calls": False}
    (one,) = Client(served.url).answer(CHAT, body)["choices"]
    assert one["message"]["reasoning"]
    if choice == "required":
        (call,) = one["message"]["tool_calls"]
        assert call["function"]["name"] == "now" and json.loads(call["function"]["arguments"]) == {}
        assert one["finish_reason"] == "tool_calls"
    else:
        assert one["message"]["content"]


def test_budgets_of_messages(served: Server) -> None:
    client = Client(served.url)
    body = {**BODY, "thinking": {"type": "enabled", "budget_tokens": 8}}
    told = client.answer(MESSAGES, body)
    thought, text = told["content"]
    chat = client.answer(CHAT, {**BODY, "reasoning_budget": 8})["choices"][0]["message"]
    assert (thought["thinking"], text["text"]) == (chat["reasoning"], chat["content"])
    (text,) = client.answer(MESSAGES, {**BODY, "thinking": {"type": "disabled"}})["content"]
    assert text["type"] == "text"


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_no_effort_is_no_thought(served: Server, effort: str) -> None:
    client = Client(served.url)
    for path, body in (
        (CHAT, {"messages": HI, "reasoning_effort": effort}),
        (RESPONSES, {"input": "Hi", "reasoning": {"effort": effort}}),
    ):
        size = "max_tokens" if path == CHAT else "max_output_tokens"
        told = json.dumps(client.answer(path, {**body, size: 20, "logit_bias": {str(IM_END + 1): 50}}))
        assert '"reasoning_content"' not in told and '"reasoning_text"' not in told


@pytest.mark.parametrize(
    "path, more, param",
    [
        (CHAT, {"reasoning_budget": 5, "thinking_token_budget": 6}, "thinking_token_budget"),
        (CHAT, {"reasoning_budget": -2}, "reasoning_budget"),
        (CHAT, {"reasoning_effort": "much"}, "reasoning_effort"),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(
    plain: Server, path: str, more: dict[str, Any], param: str
) -> None:
    status, answer = Client(plain.url).post(path, {"messages": HI, "max_tokens": 5, **more})
    assert status == 400 and answer["error"]["message"].startswith(param)
    assert path == MESSAGES or answer["error"]["param"] == param


@pytest.mark.parametrize(
    "path, more",
    [
        (CHAT, {"thinking_token_budget": 0}),
        (CHAT, {"reasoning_budget": 5}),
        (CHAT, {"thinking_budget_tokens": -1}),
        (CHAT, {"reasoning_effort": "none"}),
        (CHAT, {"reasoning_effort": "high"}),
        (MESSAGES, {"thinking": {"type": "disabled"}}),
        (MESSAGES, {"thinking": {"type": "enabled"}}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ],
)
def test_what_says_nothing_to_a_model_that_does_not_reason_passes(
    plain: Server, path: str, more: dict[str, Any]
) -> None:
    body = {"messages": HI, "max_tokens": 5, "seed": 1}
    told = [Client(plain.url).answer(path, {**body, **given}) for given in ({}, more)]
    of = "choices" if path == CHAT else "content"
    assert told[0][of] == told[1][of]


def test_effort_is_told_to_a_template_that_knows_it_and_else_not_promised(tmp_path: Path) -> None:
    known = b"{{ reasoning_effort }}</think>{% for m in messages %}{{ m.content }}{% endfor %}"
    for template, high, medium in (
        (known, 200, 200),
        (known.replace(b"{{ reasoning_effort }}", b""), 400, 200),
    ):
        with running_server(write_model(tmp_path, template=template), threads=1) as running:
            for effort, expected in (("high", high), ("medium", medium), ("none", 200)):
                body = {"messages": HI, "max_tokens": 1, "reasoning_effort": effort}
                status, answer = Client(running.url).post(CHAT, body)
                assert status == expected, answer
                if template == known:
                    empty = answer["usage"]["prompt_tokens"] - len(effort)
                    assert empty == len("</think>Hi")
