"""Ray: a data set gets the same answers whatever its batches and workers are, and the server runs in Ray
Serve."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import Client, text_of, write_model

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("ray.data")

from pyllm import LLM  # noqa: E402
from pyllm.ray import Generate, as_table, seed_of  # noqa: E402

SECONDS = 60
ROWS = [{"id": f"row {i}", "prompt": f"Once {i} upon a time"} for i in range(14)]
OPTIONS = {"max_tokens": 12, "temperature": 0.9, "seed": 5}
COLUMNS = ["text", "finish_reason", "tokens", "prompt_tokens", "seed"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    with LLM(path, threads=1, exact=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray in processes of this machine."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[dict[str, Any]]:
    """What the rows come to, each alone."""
    return [row | result(llm, row) for row in ROWS]


def result(llm: LLM, row: dict[str, Any]) -> dict[str, Any]:
    done = llm.generate(row["prompt"], max_tokens=12, temperature=0.9, seed=seed_of(5, row["id"]))
    return {name: getattr(done, name) for name in COLUMNS}


def answers(
    path: str, rows: list[dict[str, Any]], batch_size: int = 4, **options: Any
) -> list[dict[str, Any]]:
    """What Ray Data makes of the rows, in their order."""
    ray_options = {
        name: options.pop(name) for name in ("concurrency", "compute", "batch_format") if name in options
    }
    made = ray.data.from_items(rows).map_batches(
        Generate,
        fn_constructor_kwargs={"model": path, **options},
        batch_size=batch_size,
        **(ray_options or {"concurrency": 1}),
    )
    order = {row["id"]: i for i, row in enumerate(rows)}
    return sorted(made.take_all(), key=lambda row: order[row["id"]])


# ----------------------------------------------------------------------------------------------------------
# Ray Data


@pytest.mark.parametrize("batch_size, concurrency", [(1, 2), (3, 1), (7, 2)])
def test_answers_depend_neither_on_batches_nor_on_workers(
    cluster: None, path: str, expected: list[dict[str, Any]], batch_size: int, concurrency: int
) -> None:
    found = answers(path, ROWS, batch_size, concurrency=concurrency, **OPTIONS)
    assert found == expected
    assert len({row["text"] for row in found}) == len({row["seed"] for row in found}) == len(ROWS)


def test_a_pool_that_grows_gives_the_same(cluster: None, path: str, expected: list[dict[str, Any]]) -> None:
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
    assert answers(path, ROWS, compute=pool, batch_format="pyarrow", **OPTIONS) == expected


def test_conversations_are_answered(cluster: None, path: str, llm: LLM) -> None:
    pytest.importorskip("jinja2")
    chats = [[{"role": "user", "content": f"Hi {i}"}] for i in range(4)]
    chats[1].insert(0, {"role": "system", "content": "Be", "name": "x"})  # a field that the others have not
    rows = [{"id": i, "messages": chat} for i, chat in enumerate(chats)]
    found = answers(path, rows, batch_size=3, max_tokens=8, reasoning="apart", logprobs=0, seed=1)
    for row, chat in zip(found, chats, strict=True):
        done = llm.chat(chat, max_tokens=8, reasoning="apart", logprobs=0, seed=seed_of(1, row["id"]))
        assert [row[name] for name in COLUMNS] == [getattr(done, name) for name in COLUMNS]
        assert row["reasoning_content"] == done.reasoning_content
        assert row["logprobs"] == [entry.logprob for entry in done.logprobs]


def test_errors_end_the_run_and_say_why(cluster: None, path: str) -> None:
    with pytest.raises(ray.exceptions.RayError, match="rows have no 'id' to make their seeds of"):
        ray.data.from_items([{"prompt": "Once"}]).map_batches(
            Generate, fn_constructor_kwargs={"model": path}, concurrency=1
        ).take_all()


# ----------------------------------------------------------------------------------------------------------
# The class, without a cluster


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllm.ray.assigned_threads", lambda: 1)


def test_the_rule_of_seeds_stays() -> None:
    """python -c 'from hashlib import sha256; print(int(sha256(b"5:row 1").hexdigest()[:16], 16))'"""
    assert seed_of(5, "row 1") == 17761781402346674329
    assert seed_of(5, 1) == seed_of(5, "1") != seed_of(6, 1)


@pytest.mark.parametrize("kind", ["numpy", "pandas", "pyarrow"])
def test_batches_may_have_any_format(
    alone: None, path: str, expected: list[dict[str, Any]], kind: str
) -> None:
    table = pa.Table.from_pylist(ROWS)
    numpy = {name: table[name].to_numpy() for name in table.column_names}
    batch = {"numpy": numpy, "pyarrow": table}.get(kind) if kind != "pandas" else table.to_pandas()
    assert Generate(path, **OPTIONS)(batch).to_pylist() == expected


def test_token_ids_are_prompts_too(alone: None, path: str, llm: LLM) -> None:
    rows = [{"text_ids": llm.encode(row["prompt"])} for row in ROWS[:3]]
    made = Generate(path, prompt="text_ids", max_tokens=6, temperature=0)(pa.Table.from_pylist(rows))
    assert made["text"].to_pylist() == [
        llm.generate(row["prompt"], max_tokens=6, temperature=0).text for row in ROWS[:3]
    ]


def test_types_do_not_depend_on_what_is_in_a_batch(alone: None, path: str) -> None:
    generate = Generate(path, reasoning="apart", logprobs=0, **OPTIONS)
    table = pa.Table.from_pylist(ROWS)
    types = [generate(part).schema for part in (table.slice(0, 0), table.slice(0, 1), table)]
    assert types[0] == types[1] == types[2]
    assert generate(table.slice(0, 0)).num_rows == 0


def test_what_rows_lack_or_have_already_is_an_error(alone: None, path: str) -> None:
    with pytest.raises(TypeError, match="Generate has no temprature"):
        Generate(path, temprature=1)
    with pytest.raises(ValueError, match="neither 'messages' nor 'question', but id, prompt"):
        Generate(path, prompt="question")(pa.Table.from_pylist(ROWS))
    with pytest.raises(ValueError, match="rows have text already"):
        Generate(path, **OPTIONS)(pa.Table.from_pylist([{"id": 1, "prompt": "a", "text": "b"}]))
    with pytest.raises(ValueError, match="temperature must be"):
        Generate(path, temperature=-1)
    without = pa.Table.from_pylist([{"prompt": "a"}] * 2)
    assert len(set(Generate(path, seed=None, max_tokens=2)(without)["seed"].to_pylist())) == 2


def test_arrays_become_lists_however_deep() -> None:
    import numpy as np

    chats = np.empty(1, object)
    chats[0] = np.array([{"role": "user", "content": "Hi"}], object)
    table = as_table({"messages": chats, "n": np.arange(1)})
    assert table.to_pylist() == [{"messages": [{"role": "user", "content": "Hi"}], "n": 0}]


# ----------------------------------------------------------------------------------------------------------
# Ray Serve


@pytest.fixture(scope="module")
def client(cluster: None, path: str) -> Iterator[Client]:
    """The server in two replicas, as the documentation of pyllm.ray has it."""
    serve = pytest.importorskip("ray.serve")
    pytest.importorskip("starlette")
    from pyllm.server import Settings, build_app

    def app() -> Any:
        return build_app(path, Settings(names=("tiny",)), threads=1)

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    replica = serve.deployment(
        serve.ingress(app)(), num_replicas=2, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=80
    )
    serve.run(replica.bind(), route_prefix="/")
    yield Client(f"http://127.0.0.1:{port}")
    serve.shutdown()


def test_replicas_answer_as_the_model_does(client: Client, llm: LLM) -> None:
    assert client.get("/health")[1]["status"] == "ok"
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 16, "seed": 3, "temperature": 0.9}
    given = llm.generate("Once", max_tokens=16, seed=3, temperature=0.9, top_p=1).text
    for _ in range(8):  # of which each replica gets some
        assert client.answer("/v1/completions", body)["choices"][0]["text"] == given
    assert client.post("/v1/completions", {**body, "model": "other"})[0] == 404


def test_streams_come_piece_by_piece(client: Client, llm: LLM) -> None:
    body = {"prompt": "Once", "max_tokens": 16, "seed": 3}
    assert text_of(client.events("/v1/completions", body)) == (
        llm.generate("Once", max_tokens=16, seed=3, temperature=1, top_p=1).text
    )
    response = client.send(
        "POST", "/v1/completions", {**body, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    )
    began = time.monotonic()
    assert response.readline().startswith(b"data: ")
    first = time.monotonic() - began
    response.read()
    assert first < (time.monotonic() - began) / 2


def test_a_client_that_leaves_is_gone_from_the_batch(client: Client) -> None:
    body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    streams = [client.open_stream("/v1/completions", body) for _ in range(4)]
    for sock in streams:
        assert sock.recv(100)
        sock.close()
    end = time.monotonic() + SECONDS
    while total(client, "requests_cancelled_total") == 0 or total(client, "num_requests_running"):
        assert time.monotonic() < end
        time.sleep(0.05)


def total(client: Client, name: str) -> float:
    """What the replicas count that some requests to them reach."""
    shown = [client.get("/metrics")[1] for _ in range(6)]
    lines = [line for text in shown for line in text.splitlines()]
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"pyllm:{name}"))
