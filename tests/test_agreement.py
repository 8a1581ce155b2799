"""The command and the package say the same: one engine, one tokenizer, one sampler behind both."""

from __future__ import annotations

import subprocess

import pytest
from common import COMMAND

import pyllm

needs_command = pytest.mark.skipif(not COMMAND, reason="the command pyllm is not installed")


def command(*arguments: str, **options: str) -> str:
    """What the command prints."""
    flags = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
    done = subprocess.run([COMMAND, *arguments, *flags], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@needs_command
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    "sampling", [dict(temperature=0), dict(seed=7), dict(seed=8, temperature=1.2, top_k=50)]
)
def test_generate_is_the_same_on_any_number_of_threads(story_model, sampling, threads):
    with pyllm.LLM(story_model, threads=threads) as llm:
        done = llm.generate("Once upon a time", max_tokens=120, **sampling)
    options = {key: str(value) for key, value in {**sampling, "threads": threads, "max_tokens": 120}.items()}
    printed = command("generate", "Once upon a time", model=str(story_model), **options)
    assert printed == "Once upon a time" + done.text + "\n"
    with pyllm.LLM(story_model, threads=1) as llm:
        assert llm.generate("Once upon a time", max_tokens=120, **sampling).tokens == done.tokens


@needs_command
def test_tokenize_prints_the_ids_of_encode(story_model):
    text = "Tom's dog — 3 bones,\n  and a naïve cat. <|end|> 日本"
    with pyllm.LLM(story_model) as llm:
        ids = llm.encode(text)
        assert command("tokenize", text, "--ids", model=str(story_model)).split() == [str(i) for i in ids]
        assert llm.decode(ids) == text.replace(" <|end|>", " ").replace("<|end|>", "")


@needs_command
def test_built_in_model_of_command_and_package_are_one():
    with pyllm.LLM() as llm:
        text = llm.generate("One day", max_tokens=30, temperature=0).text
    assert command("generate", "One day", max_tokens="30", temperature="0") == "One day" + text + "\n"
