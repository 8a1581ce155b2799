"""tools/bench_serve: it measures what it says it does, on times that are made up and on servers that
misbehave on purpose; and the whole command on a real one. No time is asserted."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import shlex
import socket
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from tools.bench_serve import measures, plots
from tools.bench_serve.client import Client, Events, Outcome, Request
from tools.bench_serve.command import main, options_of
from tools.bench_serve.load import arrivals, closed_loop, open_loop
from tools.bench_serve.scenarios import SCENARIOS, Point, gaps
from tools.bench_serve.servers import SLOTS, Server, servers_of
from tools.bench_serve.tables import TITLES, Results, as_markdown, ratios

T = TypeVar("T")
Capture = pytest.CaptureFixture[str]
SECONDS = 30.0  # what nothing here takes unless it hangs
ASKED = Request("/v1/completions", {"prompt": "a"})


def outcome(sent: float, *chunks: float, tokens: int | None = None, **more: Any) -> Outcome:
    usage = {} if tokens is None else {"completion_tokens": tokens, "prompt_tokens": 100}
    return Outcome(sent=sent, chunks=list(chunks), usage=usage, status=200, **more)


# ----------------------------------------------------------------------------------------------------------
# Definitions: all numbers here are exact in binary


def test_ttft_is_from_sending_to_the_first_chunk() -> None:
    assert measures.ttft(outcome(10.0, 10.5, 10.625)) == 0.5


def test_e2el_is_from_sending_to_the_last_chunk() -> None:
    assert measures.e2el(outcome(10.0, 10.5, 10.625, 11.5)) == 1.5


def test_itl_are_the_gaps_between_chunks_whatever_number_of_tokens_they_have() -> None:
    assert measures.itl(outcome(10.0, 10.5, 10.625, 10.875, tokens=9)) == [0.125, 0.25]


def test_tpot_is_the_time_after_the_first_token_over_the_others() -> None:
    assert measures.tpot(outcome(10.0, 10.5, 10.625, 11.5, tokens=9)) == 1.0 / 8
    assert measures.tpot(outcome(10.0, 10.5, 10.625, 11.5)) == 1.0 / 2  # no usage: a chunk is a token
    assert measures.tpot(outcome(10.0, 10.5, 11.5, tokens=1)) is None


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    for p in (0, 10, 50, 90, 99, 100):
        assert measures.percentile(values, p) == pytest.approx(np.percentile(values, p), rel=1e-12)


def test_a_summary_counts_what_succeeded() -> None:
    outcomes = [
        outcome(0.0, 1.0, 2.0, 3.0, tokens=3),
        outcome(1.0, 4.0, 8.0, tokens=5),
        outcome(1.0, 2.0, error="cut"),
        outcome(1.0, 2.0, left=True),
        Outcome(status=429, error="busy", refusals=1, told=1),
    ]
    found = measures.summary(outcomes, 8.0, {})
    assert found["completed"] == 2 and found["failed"] == 2
    assert found["refusals"] == 1 and found["refusals_with_retry_after"] == 1
    assert found["total_input_tokens"] == 200 and found["total_output_tokens"] == 8
    assert found["request_throughput"] == 0.25 and found["output_throughput"] == 1.0
    assert found["mean_ttft_ms"] == 2000 and found["median_ttft_ms"] == 2000 and found["max_ttft_ms"] == 3000
    assert found["p90_ttft_ms"] == pytest.approx(2800) and found["p99_ttft_ms"] == pytest.approx(2980)
    assert found["mean_tpot_ms"] == 1000 and found["mean_itl_ms"] == 2000 and found["mean_e2el_ms"] == 5000
    assert "request_goodput" not in found and "cached_share" not in found


def test_nothing_is_said_of_times_when_all_failed() -> None:
    found = measures.summary([Outcome(error="no")], 1.0, {"ttft": 1.0})
    assert found["request_throughput"] == found["request_goodput"] == 0
    assert not any(key.endswith("_ms") for key in found)


def test_goodput_counts_requests_that_keep_to_all_limits() -> None:
    good, late = outcome(0.0, 0.5, 0.75, tokens=2), outcome(0.0, 0.625, 0.75, tokens=2)
    slow, single = outcome(0.0, 0.5, 1.0, tokens=2), outcome(0.0, 0.5, tokens=1)
    limits = {"ttft": 500.0, "tpot": 250.0}
    assert [measures.is_good(o, limits) for o in (good, late, slow, single)] == [True, False, False, True]
    assert measures.summary([good, late, slow, single], 4.0, limits)["request_goodput"] == 0.5
    assert not measures.is_good(slow, {"e2el": 999.0}) and measures.is_good(slow, {"e2el": 1000.0})


def test_the_cached_share_is_of_all_prompts() -> None:
    outcomes = [outcome(0.0, 1.0, tokens=1), outcome(0.0, 1.0, tokens=1)]
    outcomes[1].usage["prompt_tokens_details"] = {"cached_tokens": 90}
    assert measures.summary(outcomes, 1.0, {})["cached_share"] == 0.45


def test_a_gap_belongs_to_the_span_that_it_shares_time_with() -> None:
    stream = outcome(0.0, 1.0, 2.0, 4.0, 5.0)
    assert gaps(stream, 0.0, 2.0) == [1.0]
    assert gaps(stream, 3.0, 3.5) == [2.0]
    assert gaps(stream, 1.5, 4.5) == [1.0, 2.0, 1.0]
    assert gaps(outcome(0.0), 0.0, 9.0) == []


# ----------------------------------------------------------------------------------------------------------
# Arrivals


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for(burstiness: float) -> None:
    times = arrivals(20000, 5.0, burstiness, random.Random(1))
    assert times[-1] == pytest.approx(20000 / 5.0, rel=1e-12) and times == sorted(times)
    gaps_ = [times[0], *(b - a for a, b in zip(times, times[1:], strict=False))]
    # of a gamma distribution variance / mean^2 is 1 / shape; 20,000 samples tell it to a few per cent
    assert statistics.variance(gaps_) / statistics.fmean(gaps_) ** 2 == pytest.approx(1 / burstiness, rel=0.1)


def test_arrivals_follow_from_the_seed() -> None:
    assert arrivals(9, 2.0, 1.0, random.Random(3)) == arrivals(9, 2.0, 1.0, random.Random(3))
    assert arrivals(9, 2.0, 1.0, random.Random(3)) != arrivals(9, 2.0, 1.0, random.Random(4))


def test_infinite_burstiness_is_even_and_an_infinite_rate_is_all_at_once() -> None:
    assert arrivals(4, 2.0, math.inf, random.Random(1)) == [0.5, 1.0, 1.5, 2.0]
    assert arrivals(3, math.inf, 1.0, random.Random(1)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_arrivals_refuse_what_is_no_rate(rate: float, burstiness: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        arrivals(3, rate, burstiness, random.Random(1))


# ----------------------------------------------------------------------------------------------------------
# The client, against a server that sends what a test wants

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def text(piece: str, **more: Any) -> bytes:
    return event(choices=[{"index": 0, "text": piece, "finish_reason": None}], **more)


DONE = b"data: [DONE]\n\n"
STREAM = b": hello\n\n" + text("Grü") + b": ping\r\n\r\n" + text("ße \N{SPARKLES}") + event(
    choices=[], usage={"completion_tokens": 2}
) + DONE  # fmt: skip


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def with_server(handle: Handler, work: Callable[[Client], Awaitable[T]], timeout: float = SECONDS) -> T:
    """What work() returns, of a client of a server that reads requests and then does handle()."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    async def both() -> T:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.wait_for(work(Client(f"http://127.0.0.1:{port}", timeout)), SECONDS)

    return asyncio.run(both())


def answered(*pieces: bytes, timeout: float = SECONDS) -> Outcome:
    """The outcome of a request whose answer comes in these pieces, before the connection is closed."""

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    return with_server(handle, lambda client: client.stream(ASKED), timeout)


def test_events_are_the_same_wherever_they_are_cut() -> None:
    whole = list(Events().feed(STREAM))
    assert len(whole) == 4 and whole[-1] == b"[DONE]"
    for at in range(len(STREAM)):
        events = Events()
        assert [*events.feed(STREAM[:at]), *events.feed(STREAM[at:])] == whole
    events = Events()
    assert [data for i in range(len(STREAM)) for data in events.feed(STREAM[i : i + 1])] == whole


def test_events_may_end_their_lines_as_windows_does_and_have_several() -> None:
    sent = b"event: x\r\nid: 7\r\ndata: a\r\ndata:b\r\n\r\n:c\r\n\r\n"
    assert list(Events().feed(sent)) == [b"a\nb"]


@pytest.mark.parametrize("size", [1, 2, 7, 10000])
def test_a_stream_is_read_whatever_chunks_it_comes_in(size: int) -> None:
    chunks = b"".join(chunk(STREAM[i : i + size]) for i in range(0, len(STREAM), size)) + b"0\r\n\r\n"
    for parts in ([CHUNKED + chunks], [CHUNKED, *(chunks[i : i + 5] for i in range(0, len(chunks), 5))]):
        found = answered(*parts)
        assert (found.status, found.error) == (200, "") and found.text == "Grüße \N{SPARKLES}"
        assert len(found.chunks) == 2 and found.sent < found.chunks[0] <= found.chunks[1]
        assert found.usage == {"completion_tokens": 2} and not found.left


def test_a_stream_may_have_a_length_or_end_with_the_connection() -> None:
    sized = HEAD + f"Content-Length: {len(STREAM)}\r\n\r\n".encode()
    for head in (sized, HEAD + b"\r\n"):
        assert answered(head, STREAM).error == "" == answered(head + STREAM).error


def test_a_chat_is_read_like_a_completion() -> None:
    deltas = ({"role": "assistant"}, {"content": "Hi"}, {})
    stream = b"".join(event(choices=[{"delta": delta, "finish_reason": None}]) for delta in deltas)
    stream += event(choices=[{"delta": {}, "finish_reason": "stop"}])
    found = answered(HEAD + b"\r\n" + stream + DONE)
    assert (found.text, found.finish, len(found.chunks), found.error) == ("Hi", "stop", 4, "")


def test_an_error_among_the_events_fails_the_request() -> None:
    found = answered(HEAD + b"\r\n" + text("a") + event(error={"message": "out of luck", "code": 500}) + DONE)
    assert found.error == "out of luck" and len(found.chunks) == 1


def test_a_connection_that_is_cut_fails_the_request() -> None:
    found = answered(CHUNKED, chunk(text("a")), chunk(text("b"))[:-9])
    assert found.error == "the connection was cut after 1 chunks"
    assert "cut after 0" in answered(HEAD + b"Content-Length: 999\r\n\r\n").error
    assert "cut after 0" in answered(b"HTTP/1.1 2").error


def test_a_stream_without_its_end_fails_the_request() -> None:
    assert answered(CHUNKED + chunk(text("a")) + b"0\r\n\r\n").error == "the stream ended without [DONE]"
    assert answered(CHUNKED + chunk(DONE) + b"0\r\n\r\n").error == "the stream was empty"


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0\r\n\r\n", CHUNKED + b"zz\r\n", HEAD + b"\r\ndata: {\n\n", HEAD + b"\r\ndata: 1\n\n"],
)
def test_what_is_no_answer_fails_the_request(answer: bytes) -> None:
    assert answered(answer).error


def test_a_refusal_says_when_to_come_back() -> None:
    body = json.dumps({"error": {"message": "busy", "code": "server_busy"}}).encode()
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n" % len(body)
    found = answered(head + b"Retry-After: 3\r\n\r\n" + body)
    assert (found.status, found.error, found.retry_after) == (429, "429: busy", 3.0)
    assert (found.refusals, found.told) == (1, 1)
    found = answered(head + b"\r\n" + body)
    assert found.retry_after is None and (found.refusals, found.told) == (1, 0)


def test_a_server_that_is_not_there_fails_the_request() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
    assert asyncio.run(Client(url).stream(ASKED)).error == "the connection was refused"


def test_a_request_that_takes_too_long_fails() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    found = with_server(handle, lambda client: client.stream(ASKED), timeout=0.05)
    assert found.error == "there was no end after 0.05 s" and not found.left


def test_a_client_that_leaves_closes_its_connection_and_keeps_what_it_had() -> None:
    gone: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(text("a")))
        gone.append(await reader.read())

    async def work(client: Client) -> Outcome:
        seen = Outcome()
        task = asyncio.create_task(client.stream(ASKED, seen))
        while not seen.chunks:
            await asyncio.sleep(0.001)
        task.cancel()
        while not gone:
            await asyncio.sleep(0.001)
        assert task.cancelled()
        return seen

    found = with_server(handle, work)
    assert found.left and found.text == "a" and not found.error and gone == [b""]


# ----------------------------------------------------------------------------------------------------------
# Loads


def counting(refused: int = 0) -> tuple[Handler, list[int]]:
    """A handler that refuses so many, and how many requests were there at once when each came."""
    now, seen = [0], []

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now[0] += 1
        seen.append(now[0])
        refuse = len(seen) <= refused
        await asyncio.sleep(0.02)
        now[0] -= 1
        busy = b"HTTP/1.1 429 Busy\r\nRetry-After: 0.01\r\nContent-Length: 0\r\n\r\n"
        writer.write(busy if refuse else HEAD + b"\r\n" + text("a") + DONE)

    return handle, seen


def test_a_closed_loop_keeps_so_many_streams_and_no_more() -> None:
    handle, seen = counting()
    load = with_server(handle, lambda client: closed_loop(client, [ASKED] * 12, 3))
    assert max(seen) == 3 and len(load.outcomes) == 12 and not any(o.error for o in load.outcomes)


def test_a_closed_loop_tries_again_what_was_refused_and_counts_from_the_first_time() -> None:
    handle, _ = counting(refused=2)
    (found,) = with_server(handle, lambda client: closed_loop(client, [ASKED], 1)).outcomes
    assert (found.refusals, found.told, found.error, found.text) == (2, 2, "", "a")
    assert measures.ttft(found) >= 3 * 0.02


def test_an_open_loop_waits_for_nobody_and_does_not_try_again() -> None:
    handle, seen = counting(refused=1)
    load = with_server(handle, lambda client: open_loop(client, [ASKED] * 5, [0.0] * 5))
    assert max(seen) == 5 and sorted(o.status for o in load.outcomes) == [200] * 4 + [429]


def test_an_open_loop_sends_at_its_times() -> None:
    handle, _ = counting()
    times = [0.0, 0.05, 0.1]
    load = with_server(handle, lambda client: open_loop(client, [ASKED] * 3, times))
    sent = [o.sent - load.outcomes[0].sent for o in load.outcomes]
    assert sent == sorted(sent) and sent[2] >= 0.099


# ----------------------------------------------------------------------------------------------------------
# The report


def test_medians_are_over_rounds_and_ratios_are_of_medians() -> None:
    ours, theirs = Server("ours"), Server("theirs")
    results = Results([ours, theirs], ["ttft"])
    for server, values in ((ours, (1.0, 2.0, 30.0)), (theirs, (4.0, 40.0, 5.0))):
        results.points["ttft", server.name] = [[Point("x", {"median_ttft_ms": value})] for value in values]
    mine, others = (results.medians("ttft", server.name, "x") for server in (ours, theirs))
    assert mine == {"median_ttft_ms": 2.0} and others == {"median_ttft_ms": 5.0}
    assert ratios(mine, others) == {"median_ttft_ms": 0.4}


def test_all_columns_have_titles() -> None:
    assert {key for scenario in SCENARIOS.values() for key in scenario.columns} <= set(TITLES)


def test_llama_server_has_room_for_all_its_slots(tmp_path: Path) -> None:
    for name in ("llama-server", "model.gguf"):
        (tmp_path / name).touch()
    options = options_of(["--llama-server", f"{tmp_path}/llama-server", "--gguf", f"{tmp_path}/model.gguf"])
    (server,) = servers_of(options)
    assert server.command is not None
    line = server.command(1234, 640)
    assert line[line.index("-c") + 1] == str(640 * SLOTS) and line[line.index("--parallel") + 1] == str(SLOTS)
    assert line[line.index("--port") + 1] == "1234"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scenarios", "nosuch"],
        ["--goodput", "speed:3"],
        ["--url", "http://127.0.0.1:1"],
        ["--url", "a=https://127.0.0.1:1"],
        ["--llama-server", __file__],
        ["--model", "nosuch.llm"],
        ["--body", "[]"],
        ["--rounds", "0"],
        ["--shared", "1.5"],
        ["--burstiness", "0"],
        ["--url", "a=http://x", "--url", "a=http://y"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


# ----------------------------------------------------------------------------------------------------------
# The command

SMALL = shlex.split(
    "--input-len 40 --output-len 8 --lengths 8,32 --repeat 1 --streams 1,2 --requests 4 --capacity-streams 2 "
    "--loads 0.5,2 --joining-len 200 --joining-streams 2 --joining-output 200 --chats 2 --turns 2 "
    "--turn-len 8 --clients 2 --prefix-len 64 --prefix-requests 3 --leaving-clients 4 "
    "--soak-streams 3 --soak-seconds 2 "
    "--goodput ttft:60000 tpot:60000"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("starlette")
    from pyllm.testing import running_server

    with running_server() as running:
        yield running.url


def test_all_scenarios_run_on_a_real_server(url: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["--url", f"pyllm={url}", "--rounds", "1", "--out", str(tmp_path), *SMALL]) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip("\n") == (tmp_path / "serve.md").read_text().rstrip("\n")
    report = json.loads((tmp_path / "serve.json").read_text())
    assert [found["scenario"] for found in report["scenarios"]] == list(SCENARIOS)
    medians = {}
    for found in report["scenarios"]:
        assert f"### {found['scenario']}\n" in shown and found["points"] and not found["failed"]
        for point in found["points"]:
            medians[found["scenario"], point["label"]] = point["medians"]["pyllm"]
            (round_,) = point["rounds"]["pyllm"]
            assert round_["note"] == "" and round_["requests"]
            assert round_["metrics"]["median_ttft_ms"] > 0
            assert all(one["chunks"] and not one["error"] for one in round_["requests"] if not one["left"])
    assert medians["streams", "2 streams"]["total_output_tokens"] == 4 * 8
    assert medians["streams", "2 streams"]["cached_share"] == 0
    assert medians["poisson", "50 %"]["request_goodput"] == medians["poisson", "50 %"]["request_throughput"]
    assert medians["turns", "turn 2"]["cached_share"] > medians["turns", "turn 1"]["cached_share"]
    assert medians["cached", "new"]["cached_share"] == 0
    assert medians["cached", "90 % cached"]["cached_share"] >= 0.85
    left = medians["leaving", "1 of 4 leave"]
    assert left["compared"] == 3 and left["different"] == left["still_running"] == 0
    assert medians["schema", "schema"].get("valid_share", 1) == 1
    quarters = [medians["soak", f"quarter {i}"] for i in (1, 2, 3, 4)]
    assert all(quarter["completed"] > 0 and quarter["failed"] == 0 for quarter in quarters)
    if not_installed("matplotlib"):
        return
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def not_installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is None


def test_servers_take_turns_and_are_compared(url: str, capsys: Capture) -> None:
    small = ["--scenarios", "ttft", "--lengths", "8", "--repeat", "1", "--rounds", "2"]
    assert main(["--url", f"a={url}", "--url", f"b={url}", *small]) == 0
    shown = capsys.readouterr()
    turns = [line for line in shown.err.splitlines() if line.startswith("round")]
    assert [line[-1] for line in turns] == ["a", "b", "a", "b"]
    assert "| 8 tokens | a / b | " in shown.out and "×" in shown.out


def test_requests_that_a_full_server_refuses_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from pyllm import Policy
    from pyllm.server import Settings
    from pyllm.testing import running_server

    small = ["--scenarios", "poisson", "--request-rate", "1000", "--requests", "6", "--rounds", "1"]
    small += ["--input-len", "40", "--output-len", "40", "--out", str(tmp_path)]
    with running_server(None, Settings(max_waiting=0), policy=Policy(max_running=1)) as full:
        assert main(["--url", f"pyllm={full.url}", *small]) == 0
    (found,) = json.loads((tmp_path / "serve.json").read_text())["scenarios"][0]["points"]
    metrics = found["medians"]["pyllm"]
    assert metrics["refusals"] == metrics["refusals_with_retry_after"] == metrics["failed"] > 0
    assert metrics["completed"] + metrics["failed"] == 6 and metrics["completed"] >= 1
    assert "429: the server is busy" in (tmp_path / "serve.md").read_text()


def test_a_prompt_that_does_not_fit_is_said_before_it_is_sent(url: str, capsys: Capture) -> None:
    small = ["--scenarios", "ttft", "--lengths", "1000000", "--rounds", "1"]
    assert main(["--url", f"pyllm={url}", *small]) == 1
    assert "has a context of" in capsys.readouterr().err


def test_pyllm_serve_is_started_measured_and_ended(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    if not (Path(sys.executable).parent / "pyllm-serve").exists():
        pytest.skip("needs pyllm-serve beside this Python")
    small = ["--scenarios", "ttft,streams", "--rounds", "1", "--threads", "1", "--lengths", "8"]
    small += ["--repeat", "1", "--streams", "2", "--input-len", "16", "--output-len", "4"]
    assert main([*small, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "serve.json").read_text())
    (server,) = report["servers"]
    assert "pyllm-serve --port PORT --threads 1" in server["started_by"]
    for scenario in report["scenarios"]:
        (used,) = scenario["used"]["pyllm"]
        assert used["bytes"] > 1e6 and used["seconds"] >= 0
    assert "| streams | pyllm | " in (tmp_path / "serve.md").read_text()


# A server that dies after so many requests, and writes down that it was there
FAKE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

asked = []
port, most, diary = sys.argv[1:]

class Handler(BaseHTTPRequestHandler):
    def say(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.say(json.dumps({"data": [{"id": "x", "meta": {"n_vocab": 100}}]}).encode())

    def do_POST(self):
        asked.append(1)
        if len(asked) > int(most):
            print("out of cheese", flush=True)
            os._exit(7)
        self.say(b'data: {"choices": [{"text": "a"}]}\\n\\ndata: [DONE]\\n\\n')

open(diary, "a").write(f"{os.getpid()}\\n")
HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def command_of(tmp_path: Path, source: str, most: int = 1) -> list[str]:
    """Arguments for a server that is this Python program."""
    script, diary = tmp_path / "server.py", tmp_path / "diary"
    script.write_text(source)
    line = f"{shlex.join([sys.executable, str(script)])} {{port}} {most} {shlex.quote(str(diary))}"
    return ["--command", f"fake={line}", "--scenarios", "ttft", "--lengths", "8", "--repeat", "1"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_has_a_process_for_each_turn_or_one_if_it_is_kept(tmp_path: Path, keep: bool) -> None:
    arguments = [*command_of(tmp_path, FAKE, 99), "--rounds", "2", "--scenarios", "ttft,cached"]
    assert main([*arguments, *(["--keep"] if keep else [])]) == 0
    pids = [int(line) for line in (tmp_path / "diary").read_text().split()]
    assert len(pids) == (1 if keep else 4)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_server_that_dies_is_told_of_with_what_it_said(tmp_path: Path, capsys: Capture) -> None:
    assert main([*command_of(tmp_path, FAKE), "--rounds", "1"]) == 1
    shown = capsys.readouterr()
    for told in (shown.err, shown.out):
        assert "fake ended with status 7; the last that it said:" in told and "out of cheese" in told


def test_a_server_that_does_not_start_is_told_of(tmp_path: Path, capsys: Capture) -> None:
    assert main([*command_of(tmp_path, "print('no such model'); exit(3)"), "--rounds", "1"]) == 1
    told = capsys.readouterr().err
    assert "fake ended with status 3" in told and "no such model" in told
    small = ["--scenarios", "ttft", "--rounds", "1"]
    assert main(["--command", f"none={tmp_path}/nosuch {{port}}", *small]) == 1
    assert "none cannot be started" in capsys.readouterr().err


def test_a_scenario_without_streams_has_no_plot(tmp_path: Path) -> None:
    assert not plots.draw_streams(Results([Server("a")], ["ttft"]), {}, tmp_path / "x.png")


def test_a_server_that_says_nothing_of_what_runs_is_not_said_to_be_idle(tmp_path: Path) -> None:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def busy(client: Client) -> Awaitable[int | None]:
        return Server("a", url=client.address.geturl()).busy()

    assert with_server(handle, busy) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['pyllm:num_requests_running{m="a}b"} 2', 'pyllm:num_requests_waiting{m="a"} 1'], 3),
        (["llamacpp:requests_processing 1", "llamacpp:requests_deferred 0", "llamacpp:n_decode_total 9"], 1),
        (['vllm:num_requests_running{engine="0",model_name="m"} 0.0'], 0),
    ],
)
def test_what_runs_is_read_from_metrics(lines: Sequence[str], expected: int) -> None:
    body = "\n".join(["# HELP x y", *lines, ""]).encode()

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def busy(client: Client) -> Awaitable[int | None]:
        return Server("a", url=client.address.geturl()).busy()

    assert with_server(handle, busy) == expected


def test_the_report_names_the_machine_and_the_command() -> None:
    about = {"processor": "P", "processors": 2, "system": "S", "date": "2026-11-25T00"}
    about |= {
        "versions": {"pyllm": "1"},
        "rounds": 1,
        "goodput": {"ttft": 5.0},
        "command": "python -m tools.bench_serve",
    }
    shown = as_markdown(Results([Server("a", url="http://x")], []), about)
    for line in ("P, 2 processors; S; 2026-11-25; pyllm 1", "ttft at most 5 ms", "a: http://x"):
        assert line in shown
