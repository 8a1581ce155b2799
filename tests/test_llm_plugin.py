"""The models in the program `llm`: prompts, streams, system prompts, conversations, schemas, embeddings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import write_model

llm = pytest.importorskip("llm")

from click.testing import CliRunner  # noqa: E402
from llm.cli import cli  # noqa: E402
from llm.parts import StreamEvent  # noqa: E402

from pyllm import LLM, SamplingParams  # noqa: E402
from pyllm import llm_plugin as plugin  # noqa: E402

THINKS = (
    b"{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.reasoning_content }}{{ m.content }}<|im_end|>"
    b"{% endfor %}<|im_start|>assistant:"
    b"{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
)
BASE = "The dragon"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: one that chats, one that thinks, one that only continues texts."""
    folder = tmp_path_factory.mktemp("models")
    templates: dict[str, dict[str, Any]] = {
        "chats": {},
        "thinks": {"template": THINKS},
        "base": {"template": None},
    }
    for name, options in templates.items():
        place = folder / name
        place.mkdir()
        Path(write_model(place, **options)).rename(folder / f"{name}.llm")
    return folder


@pytest.fixture(autouse=True)
def environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "user"))
    monkeypatch.setenv("PYLLM_MODELS", str(folder))
    llm.plugins.load_plugins()
    if not llm.plugins.pm.is_registered(plugin):  # pyllm is installed without its entry point
        llm.plugins.pm.register(plugin)


def run(*arguments: str, **options: Any) -> str:
    """What the command prints."""
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False, **options)
    assert done.exit_code == 0, done.output
    return done.stdout


def here(folder: Path, name: str) -> LLM:
    return plugin.opened(folder / f"{name}.llm")


# ----------------------------------------------------------------------------------------------------------
# Which models there are


def test_models_are_found_by_their_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(plugin.found()) == ["pyllm", "base", "chats", "thinks"]
    places = [str(tmp_path / "other.llm"), "", str(folder / "chats.llm"), str(folder)]
    monkeypatch.setenv("PYLLM_MODELS", os.pathsep.join(places))
    assert list(plugin.found()) == ["pyllm", "other", "chats", "base", "thinks"]
    monkeypatch.delenv("PYLLM_MODELS")
    assert plugin.found() == {"pyllm": None}


def test_the_command_lists_them() -> None:
    listed = run("models", "--options")
    assert "pyllm: pyllm\n" in listed and "pyllm: chats\n" in listed
    described = set(plugin.Options.model_fields)
    assert described - {"thinking"} <= set(SamplingParams.__dataclass_fields__)
    assert all(f"    {name}: " in listed for name in described)
    assert "pyllm: thinks" in run("embed-models")


def test_a_file_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_MODELS", "/nowhere/lost.llm")
    done = CliRunner().invoke(cli, ["-m", "lost", "Hi"])
    assert done.exit_code == 1 and "/nowhere/lost.llm" in done.output and "Traceback" not in done.output


def test_the_installed_entry_point_gives_the_built_in_model(tmp_path: Path) -> None:
    from importlib.metadata import entry_points

    if not [point for point in entry_points(group="llm") if point.value == plugin.__name__]:
        pytest.skip("needs the package to be installed with its entry point")
    line = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "pyllm",
        "Once upon a time",
        "-o",
        "seed",
        "1",
        "-o",
        "max_tokens",
        "20",
    ]
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run(line, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == LLM().generate("Once upon a time", seed=1, max_tokens=20).text + "\n"


# ----------------------------------------------------------------------------------------------------------
# Prompts


def test_a_prompt_gets_the_reply_of_chat(folder: Path) -> None:
    messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    expected = here(folder, "chats").chat(messages, max_tokens=12, seed=3, temperature=0.7)
    options = ["-o", "max_tokens", "12", "-o", "seed", "3", "-o", "temperature", "0.7"]
    assert run("-m", "chats", "-s", "Be", "Hi", *options) == expected.text + "\n"
    assert run("-m", "chats", "-s", "Be", "Hi", "--no-stream", *options) == expected.text + "\n"
    logged = json.loads(run("logs", "--json", "-n", "1"))[0]
    assert (logged["input_tokens"], logged["output_tokens"]) == (expected.prompt_tokens, 12)
    assert json.loads(json.dumps(logged["response_json"])) == {
        "finish_reason": "length",
        "stop": None,
        "seed": 3,
    }


def test_the_answer_comes_piece_by_piece(folder: Path) -> None:
    response = llm.get_model("chats").prompt("Hi", max_tokens=12, seed=3)
    pieces = list(response)
    assert len(pieces) > 3 and "".join(pieces) == response.text()
    assert response.usage().output == 12 and response.usage().input > 2


def test_conversations_go_on(folder: Path) -> None:
    talk = llm.get_model("chats").conversation()
    first = talk.prompt("Hi", system="Be", max_tokens=8, seed=1).text()
    second = talk.prompt("And?", max_tokens=8, seed=1)
    messages = [
        {"role": "system", "content": "Be"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And?"},
    ]
    assert second.text() == here(folder, "chats").chat(messages, max_tokens=8, seed=1).text
    assert second.usage().details["cached_tokens"] > 8  # the first turn is not computed again


def test_the_command_continues_a_conversation(folder: Path) -> None:
    options = ["-o", "max_tokens", "8", "-o", "seed", "1"]
    first = run("-m", "chats", "Hi", *options).removesuffix("\n")
    second = run("-c", "And?", *options).removesuffix("\n")
    turns = [("user", "Hi"), ("assistant", first), ("user", "And?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert second == here(folder, "chats").chat(messages, max_tokens=8, seed=1).text


def test_a_model_without_template_continues_texts(folder: Path) -> None:
    base = here(folder, "base")
    talk = llm.get_model("base").conversation()
    first = talk.prompt(BASE, max_tokens=8, seed=1).text()
    assert first == base.generate(BASE, max_tokens=8, seed=1).text
    second = talk.prompt("Then", max_tokens=8, seed=1).text()
    assert second == base.generate(f"{BASE}{first}\nThen", max_tokens=8, seed=1).text
    told = llm.get_model("base").prompt(BASE, system="A story.", max_tokens=8, seed=1)
    assert told.text() == base.generate(f"A story.\n{BASE}", max_tokens=8, seed=1).text


def test_options_reach_the_sampler(folder: Path) -> None:
    model, twin = llm.get_model("base"), here(folder, "base")
    given = dict(max_tokens=20, min_tokens=3, temperature=0.9, top_k=30, top_p=0.8, min_p=0.01, seed=4)
    given |= dict(repeat_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.2, stop=["e", "ü"])
    assert model.prompt(BASE, **given).text() == twin.generate(BASE, **given).text
    with pytest.raises(ValueError, match="temperature must be a number at least 0"):
        model.prompt(BASE, temperature=-1).text()
    done = CliRunner().invoke(cli, ["-m", "base", BASE, "-o", "temperature", "-1"])
    assert done.exit_code == 1 and "temperature must be a number at least 0" in done.output


# ----------------------------------------------------------------------------------------------------------
# Schemas, reasoning, embeddings


def test_schemas_are_kept(folder: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 10, "maximum": 99}}}
    schema |= {"required": ["age"], "additionalProperties": False}
    text = run("-m", "chats", "Hi", "--schema", json.dumps(schema), "-o", "seed", "1")
    assert 10 <= json.loads(text)["age"] <= 99
    assert llm.get_model("chats").prompt("Hi", regex="(ab){3}").text() == "ababab"
    assert llm.get_model("base").prompt("Hi", grammar='root ::= "x" "y"').text() == "xy"


def test_reasoning_is_apart(folder: Path) -> None:
    pytest.importorskip("llguidance")
    model = llm.get_model("thinks")
    options = {"regex": "ja|nein", "seed": 2, "stop": None}
    twin = here(folder, "thinks").chat(
        [{"role": "user", "content": "Hi"}], regex="ja|nein", seed=2, reasoning="apart", max_tokens=300
    )
    events = list(model.prompt("Hi", **options, max_tokens=300).stream_events())
    assert all(isinstance(event, StreamEvent) for event in events)
    thought = "".join(event.chunk for event in events if event.type == "reasoning")
    assert thought == (twin.reasoning_content or "") != ""
    assert "".join(event.chunk for event in events if event.type == "text") == twin.text
    hidden = model.prompt("Hi", **options, max_tokens=300, hide_reasoning=True)
    assert not [event for event in hidden.stream_events() if event.type == "reasoning"]
    assert model.prompt("Hi", **options, max_tokens=300, thinking=False).text() in ("ja", "nein")


def test_messages_keep_their_reasoning() -> None:
    parts = [llm.parts.ReasoningPart(text="Hm"), llm.parts.TextPart(text="Yes"), llm.parts.TextPart(text="!")]
    turn = plugin.turn_of(llm.parts.Message(role="assistant", parts=parts))
    assert turn == {"role": "assistant", "content": "Yes!", "reasoning_content": "Hm"}


def test_embeddings_are_those_of_embed(folder: Path) -> None:
    texts = ["Hello", "there", "Hello"]
    expected = here(folder, "base").embed(texts).tolist()
    model = llm.get_embedding_model("base")
    assert list(model.embed_multi(texts)) == expected and expected[0] == expected[2] != expected[1]
    assert model.embed("there") == expected[1]
    assert json.loads(run("embed", "-m", "base", "-c", "there")) == pytest.approx(expected[1])


def test_an_abandoned_answer_leaves_the_batch(folder: Path) -> None:
    pieces = iter(llm.get_model("base").prompt(BASE, seed=1))
    next(pieces)
    pieces.close()
    assert llm.get_model("base").prompt(BASE, max_tokens=3, seed=1).text()
