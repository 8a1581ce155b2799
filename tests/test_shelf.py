"""What was computed outlives its memory and its process, for those whose it is, and changes no answer."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Client, write_model

from pyllm import LLM, Policy
from pyllm.binding import Cache, Model
from pyllm.scheduler import Scheduler
from pyllm.shelf import END, Shelf

START = "a beginning that many share, " * 12  # 349 tokens


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def model(path: str) -> Model:
    return Model(path)


@pytest.fixture
def cache(model: Model) -> Iterator[Cache]:
    yield Cache(model, 2000, 1, 2)


def shelf_in(folder: Path, model: Model, size: int = 1 << 30) -> Shelf:
    return Shelf(folder / "shelf", model, model.kv or 2, 2000, size)


def filled(cache: Cache, ids: list[int]) -> Any:
    """A copy of a sequence with these tokens."""
    cache.truncate(0, 0)
    cache.extend(ids)
    return cache.save(0)


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / "shelf").glob(f"*{END}"))


def test_what_was_put_is_found_and_is_the_same(tmp_path: Path, model: Model, cache: Cache) -> None:
    shelf, kept = shelf_in(tmp_path, model), filled(cache, list(range(200)))
    shelf.put(("me", None), kept)
    shelf.close()
    again = shelf_in(tmp_path, model)
    name, length = again.find(("me", None), [*range(150), 7, 7], 152)
    assert length == 150
    found = again.load(name)
    assert found is not None and found.tokens == kept.tokens and (found.state == kept.state).all()


def test_nobody_finds_what_is_anothers(tmp_path: Path, model: Model, cache: Cache) -> None:
    shelf = shelf_in(tmp_path, model)
    shelf.put(("me", None), filled(cache, list(range(200))))
    shelf.close()
    for other in (("you", None), ("me", "salt"), None):
        assert shelf_in(tmp_path, model).find(other, list(range(200)), 200) == ("", 0)


def test_the_folder_is_this_users_alone(tmp_path: Path, model: Model, cache: Cache) -> None:
    shelf = shelf_in(tmp_path, model)
    shelf.put(None, filled(cache, list(range(200))))
    shelf.close()
    assert stat.S_IMODE(os.stat(tmp_path / "shelf").st_mode) == 0o700
    (file,) = files_in(tmp_path)
    assert set(file.stem) <= set("0123456789abcdef-")


def test_a_file_that_is_damaged_is_removed_and_one_of_another_model_is_not(
    tmp_path: Path, model: Model, cache: Cache
) -> None:
    shelf = shelf_in(tmp_path, model)
    shelf.put(None, filled(cache, list(range(200))))
    shelf.close()
    (file,) = files_in(tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again = shelf_in(tmp_path, model)
    name, length = again.find(None, list(range(200)), 200)
    assert length == 200 and again.load(name) is None and not files_in(tmp_path)
    file.write_bytes(b"something else")
    assert shelf_in(tmp_path, model).find(None, list(range(200)), 200) == ("", 0) and files_in(tmp_path) == [
        file
    ]


def test_the_longest_unused_goes_when_there_is_no_more_room(
    tmp_path: Path, model: Model, cache: Cache
) -> None:
    one = len(filled(cache, list(range(200))).state)
    shelf = shelf_in(tmp_path, model, size=3 * one + 4000)
    for start in range(3):
        shelf.put(None, filled(cache, [start, *range(199)]))
    until_written(shelf, tmp_path, 3)
    shelf.load(shelf.find(None, [0, 0], 2)[0])
    shelf.put(None, filled(cache, [3, *range(199)]))
    shelf.close()
    again = shelf_in(tmp_path, model)
    assert [again.find(None, [start, *range(199)], 200)[1] for start in range(4)] == [200, 0, 200, 200]


def until_written(shelf: Shelf, folder: Path, count: int) -> None:
    shelf.close()
    assert len(files_in(folder)) == count
    shelf.__init__(shelf.folder, shelf._model, shelf._kv, shelf._context, shelf.size)  # type: ignore[misc]


def test_what_is_there_already_is_not_written_twice(tmp_path: Path, model: Model, cache: Cache) -> None:
    shelf = shelf_in(tmp_path, model)
    shelf.put(None, filled(cache, list(range(200))))
    until_written(shelf, tmp_path, 1)
    shelf.put(None, filled(cache, list(range(190))))
    shelf.close()
    assert len(files_in(tmp_path)) == 1


def test_what_several_began_with_survives_a_restart_and_changes_nothing(tmp_path: Path, path: str) -> None:
    policy = Policy(folder=tmp_path / "shelf", max_idle=4)
    params = dict(max_tokens=20, seed=1, logprobs=1)
    with LLM(path, threads=1) as plain:
        expected = plain.generate(START + "end", **params)
    with LLM(path, threads=1, policy=policy) as first:
        for end in ("one", "two", "three"):
            first.generate(START + end, **params)
        first._batch().shelve()
    assert files_in(tmp_path)
    with LLM(path, threads=1, policy=policy) as second:
        done = second.generate(START + "end", **params)
        assert done == expected and done.cached_tokens >= len(START)
        assert second.generate("x" + START, **params).cached_tokens == 0


def test_what_is_let_go_of_goes_to_the_folder(tmp_path: Path, path: str) -> None:
    with LLM(path, threads=1, policy=Policy(folder=tmp_path / "shelf", max_idle=1)) as llm:
        for text in (START + "a", START + "b", "something else altogether " * 10, "and again " * 30):
            llm.generate(text, max_tokens=2)
        llm._batch()._shelf.close()  # type: ignore[union-attr]
    assert len(files_in(tmp_path)) == 1, "of use to two; the others to one"


def test_a_child_process_and_a_closed_model_do_without(tmp_path: Path, path: str) -> None:
    llm = LLM(path, threads=1, policy=Policy(folder=tmp_path / "shelf"))
    scheduler: Scheduler = llm._batch()
    llm.close()
    with pytest.raises(Exception, match="closed"):
        scheduler.shelve()


def test_the_server_keeps_it_over_a_restart(tmp_path: Path, path: str) -> None:
    pytest.importorskip("starlette")
    from pyllm.testing import running_server

    policy = Policy(folder=tmp_path / "shelf", max_running=2, max_idle=4)
    body = {"prompt": START, "max_tokens": 8, "seed": 1}
    answers = []
    for _ in range(2):
        with running_server(path, threads=1, policy=policy) as running:
            client = Client(running.url)
            answers.append(client.answer("/v1/completions", body))
            client.answer("/v1/completions", {**body, "prompt": START + "more"})
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[0] == 0 and cached[1] >= len(START) - 1
    assert answers[0]["choices"] == answers[1]["choices"]
