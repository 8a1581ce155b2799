"""Streams that go on where they were cut, receipts that give an answer once more, and why a token was
drawn."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Client, write_model

pytest.importorskip("starlette")

from pyllm import LLM  # noqa: E402
from pyllm.server import replay  # noqa: E402
from pyllm.testing import Server, running_server  # noqa: E402

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "Once", "max_tokens": 40, "ignore_eos": True, "n": 2, "logprobs": 1},
    CHAT: {"messages": HI, "max_tokens": 40, "ignore_eos": True, "temperature": 1.3},
    RESPONSES: {"input": "Hi", "max_output_tokens": 40, "ignore_eos": True, "metadata": {"a": "b"}},
    MESSAGES: {"messages": HI, "max_tokens": 40, "ignore_eos": True, "stop_sequences": ["<never>"]},
}
everywhere = pytest.mark.parametrize("endpoint", list(BODIES))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("stamps"))


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Server]:
    with running_server(path, threads=1) as running:
        yield running


def raw_events(client: Client, path: str, body: Any, **headers: str) -> list[bytes]:
    """The events of a stream as they are sent, [DONE] included."""
    response = client.send("POST", path, {**body, "stream": True}, **headers)
    assert response.status == 200, response.read()
    return [event for event in response.read().split(b"\n\n") if event]


def told(events: list[bytes]) -> list[bytes]:
    """Events without what differs each time: when the answer was ready, and how much of its prompt was
    known."""
    return [re.sub(rb'"(completed_at|\w*(input|cached)_tokens)":\d+', b"", event) for event in events]


def id_of(event: bytes) -> str:
    line = next(line for line in event.split(b"\n") if line.startswith(b"id: "))
    return line.removeprefix(b"id: ").decode()


# ----------------------------------------------------------------------------------------------------------
# Streams


@everywhere
def test_a_stream_goes_on_behind_the_last_event_byte_for_byte(served: Server, endpoint: str) -> None:
    """Without a seed, too: the id has it."""
    client, body = Client(served.url), {**BODIES[endpoint], "resumable": True}
    whole = raw_events(client, endpoint, body)
    last = len(whole) - (2 if whole[-1] == b"data: [DONE]" else 1)
    assert last > 17
    for at in (0, 1, 17, last):
        rest = raw_events(client, endpoint, body, **{"Last-Event-ID": id_of(whole[at])})
        assert told(rest) == told(whole[at + 1 :])
        assert told(raw_events(client, endpoint, {**body, "resume_from": id_of(whole[at])})) == told(rest)


@everywhere
def test_a_stream_goes_on_after_the_server_was_started_anew(served: Server, path: str, endpoint: str) -> None:
    client, body = Client(served.url), {**BODIES[endpoint], "resumable": True}
    data, left = b"", client.open_stream(endpoint, {**body, "stream": True})
    while data.count(b"id: ") < 10:
        assert (part := left.recv(1 << 12))
        data += part
    left.close()
    last = re.findall(rb"id: (\S+)\n", data)[8].decode()
    with running_server(path, threads=2) as another:
        rest = raw_events(Client(another.url), endpoint, body, **{"Last-Event-ID": last})
    stream, _, number = last.rpartition(":")
    seen = raw_events(client, endpoint, {**body, "resume_from": f"{stream}:0"})
    assert told(rest) == told(seen[int(number) :])


def test_what_a_client_that_left_had_got_is_guessed(served: Server) -> None:
    client = Client(served.url)
    body = {**BODIES[CHAT], "seed": 77, "max_tokens": 60}
    first = client.answer(CHAT, body)
    again = client.answer(CHAT, body)
    assert again["choices"] == first["choices"]
    accepted = [
        answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
        for answer in (first, again)
    ]
    assert accepted[1] >= 50 > accepted[0]


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "x",
        "chatcmpl-00:1",
        "cmpl-" + "0" * 32 + ":1",
        "chatcmpl-" + "0" * 32 + ":x",
        "chatcmpl-" + "0" * 32 + ":1",
    ],
)
def test_an_id_of_another_request_is_refused(served: Server, mark: str) -> None:
    status, answer = Client(served.url).post(CHAT, {**BODIES[CHAT], "stream": True, "resume_from": mark})
    assert status == 400 and answer["error"]["param"] == "resume_from"


def test_events_have_no_ids_unless_asked_for(served: Server) -> None:
    assert not any(b"id: " in event for event in raw_events(Client(served.url), CHAT, BODIES[CHAT]))


# ----------------------------------------------------------------------------------------------------------
# Receipts


@everywhere
@pytest.mark.parametrize("stream", [True, False])
def test_a_receipt_gives_the_answer_once_more(
    served: Server, path: str, tmp_path: Path, capsys: Any, endpoint: str, stream: bool
) -> None:
    client, body = Client(served.url), {**BODIES[endpoint], "receipt": True}
    if stream:
        last = [event for event in raw_events(client, endpoint, body) if b'"receipt"' in event][-1]
        answer = json.loads(last[last.index(b"data: ") + 6 :])
        answer = answer.get("response", answer)
    else:
        answer = client.answer(endpoint, body)
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(answer))
    assert replay.main([str(file), "-m", path]) == 0
    assert capsys.readouterr().out.startswith("the same: ")
    receipt = answer["receipt"]
    assert receipt["request"]["seed"] is not None and "stream" not in receipt["request"]
    receipt["request"]["seed"] += 1
    file.write_text(json.dumps(receipt))
    assert replay.main([str(file), "-m", path]) == 1
    assert "answer 0 differs" in capsys.readouterr().out


def test_a_receipt_of_another_model_is_refused(served: Server, tmp_path: Path, capsys: Any) -> None:
    answer = Client(served.url).answer(CHAT, {**BODIES[CHAT], "receipt": True})
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(answer))
    assert replay.main([str(file)]) == 1
    assert "is another model than" in capsys.readouterr().err
    for content in ("{", "[]", "{}", json.dumps({**answer["receipt"], "receipt": 2})):
        file.write_text(content)
        assert replay.main([str(file)]) == 1
        assert "receipt.json" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------
# Explanations


def test_an_explanation_says_what_each_step_did(path: str) -> None:
    params = dict(max_tokens=20, seed=3, ignore_eos=True, explain=True)
    filters = dict(
        temperature=0.8, top_k=30, top_p=0.9, min_p=0.05, presence_penalty=1.5, logit_bias={97: 2.0}
    )
    with LLM(path, threads=1) as llm:
        done = llm.generate("Once", **params, **filters)
        assert done.explained is not None and len(done.explained) == len(done.tokens)
        ids = llm.encode("Once")
        for i, (token, why) in enumerate(zip(done.tokens, done.explained, strict=True)):
            row = llm.logits(ids + done.tokens[:i])[-1]
            change = (2.0 if token == 97 else 0.0) - (1.5 if token in done.tokens[:i] else 0.0)
            assert why.token == token and why.logit == row[token]
            assert why.adjusted == pytest.approx(row[token] + change, abs=1e-5)
            assert 30 >= why.top_k >= why.top_p >= why.min_p >= 1
            x = row.astype(np.float64)
            x[97] += 2
            x[list(set(done.tokens[:i]))] -= 1.5
            best = np.sort(x)[::-1][: why.min_p]
            assert why.drawn == pytest.approx(
                math.exp((x[token] - best[0]) / 0.8) / np.exp((best - best[0]) / 0.8).sum(), rel=1e-4
            )
        greedy = llm.generate("Once", **params, temperature=0)
        assert {(why.top_k, why.top_p, why.min_p, why.drawn) for why in greedy.explained or ()} == {
            (1, 1, 1, 1.0)
        }
        plain = llm.generate("Once", **{**params, "explain": False}, **filters)
        assert plain.tokens == done.tokens and plain.explained is None


def test_the_server_explains_too(served: Server) -> None:
    for endpoint in (COMPLETIONS, CHAT):
        choice = Client(served.url).answer(endpoint, {**BODIES[endpoint], "explain": True})["choices"][0]
        assert len(choice["explained"]) == 40
        assert set(choice["explained"][0]) == {
            "token",
            "logit",
            "adjusted",
            "top_k",
            "top_p",
            "min_p",
            "drawn",
        }
