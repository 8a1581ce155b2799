"""The chat template of each family, in tests/data/templates: rendered and encoded as transformers does it,
and the form that the command `pyllm chat` uses. What comes of the reasoning of thinking models.

The templates are those of the models, but for some long texts of system messages, which are cut."""

from __future__ import annotations

import dataclasses
import datetime as dates
import enum
import itertools
import json
import os
import re
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from common import COMMAND, on_terminal
from pyllm._llm import ffi, lib

pytest.importorskip("jinja2")
tokenizers = pytest.importorskip("tokenizers")

import reference  # noqa: E402
from pyllm.tools import convert, huggingface_tokenizer  # noqa: E402
from pyllm.tools.chat_parts import answer_of, assemble, derive  # noqa: E402
from reference import make_model  # noqa: E402

import pyllm.chat_template  # noqa: E402
from pyllm import LLM, ChatOptions, LLMError, Reasoning, SamplingParams, TemplateError  # noqa: E402
from pyllm.chat import MARKS, Parting, marks_of  # noqa: E402
from pyllm.grammar import Marks, State  # noqa: E402
from pyllm.grammar import Reasoning as Marked  # noqa: E402
from pyllm.thinking import Budget, Thought  # noqa: E402

TEMPLATES = Path(__file__).parent / "data" / "templates"
EMULATED = bool(os.environ.get("PYLLM_EMULATED"))  # its float32 sums have another order than the bindings'
needs_command = pytest.mark.skipif(not COMMAND or EMULATED, reason="the command pyllm is not installed")

CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]
LFM2 = [*CHATML, *(f"<|tool_{kind}_{end}|>" for kind in ("list", "response") for end in ("start", "end"))]
PHI = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
MISTRAL = [f"[{end}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for end in ("", "/")]
GEMMA = ["<start_of_turn>", "<end_of_turn>"]
GEMMA4 = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", '<|"|>']
GEMMA4 += [f"<|{name}>" for name in ("tool_call", "tool_response")]
GEMMA4 += [f"<{name}|>" for name in ("tool_call", "tool_response")]
COMMAND_R = ["<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"]
COMMAND_R7B = [
    *COMMAND_R,
    *(f"<|{end}_{name}|>" for name in ("THINKING", "ACTION", "RESPONSE") for end in ("START", "END")),
]
GRANITE = ["<|start_of_role|>", "<|end_of_role|>"]

GLM = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
HARMONY = [f"<|{name}|>" for name in ("start", "message", "end", "channel", "constrain", "call")]
LLAMA4 = [f"<|{name}|>" for name in ("header_start", "header_end", "eot", "python_start", "python_end")]
APERTUS = [
    f"<|{name}_{end}|>" for name in ("system", "developer", "user", "assistant") for end in ("start", "end")
]
APERTUS += [f"<|{name}_{end}|>" for name in ("inner", "tools") for end in ("prefix", "suffix")]
KIMI = ["<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"]
SOLAR = [f"<|{name}|>" for name in ("begin", "end", "content", "think", "tool_calls", "calls")]
HY3 = [f"<{name}:opensource>" for name in ("｜hy_User", "｜hy_Assistant", "think", "/think")]
HY3 = [text.replace("opensource>", "opensource｜>") if "｜" in text else text for text in HY3]
GEMMA_BEGIN, GEMMA_END = "<|channel>thought", "<channel|>"
HARMONY_BEGIN, HARMONY_PLAIN = (f"<|channel|>{name}<|message|>" for name in ("analysis", "final"))
HARMONY_END = f"<|end|><|start|>assistant{HARMONY_PLAIN}"
SOLAR_END = "<|end|><|begin|>assistant<|content|>"

# Template: kind of tokenizer, BOS or None, EOS, special tokens, whether the tokenizer adds BOS
FAMILIES = {
    "llama2": ("spm", "<s>", "</s>", [], True),
    "llama3": ("bytes", "<|begin_of_text|>", "<|eot_id|>", LLAMA3, True),
    "llama31": ("bytes", "<|begin_of_text|>", "<|eot_id|>", LLAMA3, True),
    "llama32": ("bytes", "<|begin_of_text|>", "<|eot_id|>", LLAMA3, True),
    "mistral_v1": ("spm", "<s>", "</s>", [], True),
    "mistral_v3": ("spm", "<s>", "</s>", [*MISTRAL, "[TOOL_CALLS]"], True),
    "mistral_nemo": ("bytes", "<s>", "</s>", [*MISTRAL, "[TOOL_CALLS]"], True),
    "magistral": ("bytes", "<s>", "</s>", [*MISTRAL, "[THINK]", "[/THINK]", "[SYSTEM_PROMPT]"], True),
    "qwen2": ("bytes", None, "<|im_end|>", CHATML, False),
    "qwen25": ("bytes", None, "<|im_end|>", CHATML, False),
    "qwen3": ("bytes", None, "<|im_end|>", CHATML, False),
    "qwq": ("bytes", None, "<|im_end|>", CHATML, False),
    "qwen35": ("bytes", None, "<|im_end|>", CHATML, False),
    "lfm2": ("bytes", "<|startoftext|>", "<|im_end|>", LFM2, True),
    "smollm2": ("bytes", "<|im_start|>", "<|im_end|>", CHATML, False),
    "smollm3": ("bytes", "<|im_start|>", "<|im_end|>", CHATML, False),
    "zephyr": ("spm", "<s>", "</s>", [], True),
    "yi": ("spm", "<|startoftext|>", "<|im_end|>", CHATML, False),
    "deepseek_r1": (
        "bytes",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ["<｜User｜>", "<｜Assistant｜>"],
        True,
    ),
    "deepseek_v2": ("bytes", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", [], True),
    "phi3": ("spm", "<s>", "<|endoftext|>", PHI, True),
    "phi35": ("spm", "<s>", "<|endoftext|>", PHI, False),
    "phi4_mini": ("bytes", "<|endoftext|>", "<|endoftext|>", PHI, False),
    "gemma2": ("spm", "<bos>", "<eos>", GEMMA, True),
    "gemma3": ("spm", "<bos>", "<eos>", GEMMA, True),
    "gemma4": ("spm", "<bos>", "<eos>", GEMMA4, True),
    "olmo2": ("bytes", "<|endoftext|>", "<|endoftext|>", [], False),
    "granite3": ("bytes", "<|end_of_text|>", "<|end_of_text|>", GRANITE, False),
    "internlm2": ("spm", "<s>", "</s>", CHATML, True),
    "minicpm": ("spm", "<s>", "</s>", ["<用户>", "<AI>"], True),
    "glm46": ("bytes", None, "<|endoftext|>", GLM, False),
    "gpt_oss": ("bytes", "<|startoftext|>", "<|return|>", HARMONY, False),
    "granite4": ("bytes", "<|end_of_text|>", "<|end_of_text|>", GRANITE, False),
    "laguna": ("bytes", "〈|EOS|〉", "〈|EOS|〉", [], False),
    "ministral3": ("bytes", "<s>", "</s>", [*MISTRAL, "[TOOL_CALLS]", "[THINK]", "[/THINK]", "[ARGS]"], True),
    "command_r": ("bytes", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", COMMAND_R, True),
    "stablelm2": ("bytes", "<|endoftext|>", "<|im_end|>", CHATML, False),
    "llama4": ("bytes", "<|begin_of_text|>", "<|eot|>", LLAMA4, True),
    "apertus": ("bytes", "<s>", "<|assistant_end|>", APERTUS, True),
    "glm47_flash": ("bytes", None, "<|endoftext|>", [*GLM, "<think>", "</think>"], False),
    "kimi_k2": ("bytes", None, "<|im_end|>", KIMI, False),
    "solar_open": ("bytes", None, "<|flush|>", SOLAR, False),
    "command_r7b": ("bytes", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", COMMAND_R7B, True),
    "minimax_m2": ("bytes", None, "[e~[", ["]~!b[", "]~b]", "<think>", "</think>"], False),
    "hy3": ("bytes", "<｜hy_begin_of_sentence:opensource｜>", "<｜hy_eos:opensource｜>", HY3, False),
    "seed_oss": ("bytes", "<seed:bos>", "<seed:eos>", ["<seed:think>", "</seed:think>"], False),
}
WRITE_BOS = [name for name in FAMILIES if "bos_token" in (TEMPLATES / f"{name}.jinja").read_text()]
NOW = dates.datetime(2025, 3, 9, 21, 5, 7)


def template_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def special_of(name: str) -> dict[str, str]:
    """The special tokens that a family's template is given."""
    _, bos, eos, _, _ = FAMILIES[name]
    return {"eos_token": eos} | ({"bos_token": bos} if bos else {})


def tokenizer(
    kind: str, bos: str | None, eos: str, specials: list[str], adds_bos: bool, plain: tuple[str, ...] = ()
):
    """A tokenizers.Tokenizer with few merges, over bytes as GPT-2 has them or, "spm", as sentencepiece."""
    models, pre, processors = tokenizers.models, tokenizers.pre_tokenizers, tokenizers.processors
    merges = [("t", "h"), ("th", "e"), ("e", "r"), ("i", "n"), ("o", "u")]
    names = list(dict.fromkeys([bos or eos, eos, *specials]))
    if kind == "bytes":
        pieces, space = sorted(pre.ByteLevel.alphabet()), "Ġ"
        core = tokenizers.Tokenizer(models.BPE({}, []))
    else:
        pieces, space = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))], "▁"
    merges += [(space, "t"), (space, "a"), (space, space)]
    vocab = {piece: i for i, piece in enumerate([*names, *pieces, *("".join(pair) for pair in merges)])}
    if kind == "bytes":
        core = tokenizers.Tokenizer(models.BPE(vocab, merges))
        core.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        core.decoder = tokenizers.decoders.ByteLevel()
    else:
        core = tokenizers.Tokenizer(
            models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        steps = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        core.normalizer = tokenizers.normalizers.Sequence(steps[bos == "<bos>" :])  # Gemma prepends nothing
        decode = tokenizers.decoders
        core.decoder = decode.Sequence(
            [decode.Replace("▁", " "), decode.ByteFallback(), decode.Fuse()]
            + ([] if bos == "<bos>" else [decode.Strip(" ", 1, 0)])
        )
    core.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in names])
    core.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in plain])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
        )
    return core


def save(folder: Path, core, template: str, special: dict[str, str], **arguments) -> Path:
    """A model of random weights with this tokenizer and template, as the converter writes them."""
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "chat_template": template}))
    sections = huggingface_tokenizer.from_directory(folder)
    sections |= convert.make_chat({"default": template}, special, [])
    path = folder / "model.llm"
    path.write_bytes(make_model(7, vocab_size=core.get_vocab_size(), sections=sections, **arguments))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """model(family) -> (an LLM, its tokenizers.Tokenizer)."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def made(name: str) -> tuple[LLM, object]:
        core = tokenizer(*FAMILIES[name])
        path = save(folder / name, core, template_of(name), special_of(name), context=8192)
        return LLM(path, threads=1, exact=True), core

    return made


# ----------------------------------------------------------------------------------------------------------
# As transformers


def user(text: object) -> dict:
    return {"role": "user", "content": text}


def reply(text: object, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


SCHEMA = {
    "type": "object",
    "properties": {"città": {"type": "string", "enum": ["<Roma>", "São Paulo"]}, "n": {"type": "integer"}},
    "required": ["città"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": 'Says "é" & more', "parameters": SCHEMA}}
    for name in ("weather", "time")
]
ARGUMENTS = {"città": "<Roma>", "n": 1}
CALL = {"type": "function", "id": "abcdefgh1", "function": {"name": "weather", "arguments": ARGUMENTS}}
TEXT_CALL = {**CALL, "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": '{"sun": "<yes> é"}'}
DOCUMENTS = [{"doc_id": i, "title": f"T{i}", "text": f"Text <{i}>\n é"} for i in range(2)]
THOUGHT = "<think>\nHm, \n\n</think>\n\n\nYes"
TALK = [user(" Hi <b>there</b> "), reply("Hello & welcome\n"), user("Bye é中😀")]

CASES = {
    "one turn": ([user("Hi")], {}),
    "three turns": ([*TALK, reply("Yes"), user("No")], {}),
    "without the beginning of a reply": (TALK, {"add_generation_prompt": False}),
    "a reply is last": ([*TALK, reply("  Done ")], {"add_generation_prompt": False}),
    "a system message": ([system("Be brief."), *TALK], {}),
    "a system message with white space": ([system("\n Be\tbrief. \n"), *TALK], {}),
    "an empty system message": ([system(""), *TALK], {}),
    "only a system message": ([system("Be brief.")], {}),
    "two system messages": ([system("One"), *TALK, system("Two"), user("Hm")], {}),
    "empty messages": ([user(""), reply(""), user("")], {}),
    "only white space": ([user(" \n\t "), reply("\n"), user("\u00a0 ")], {}),
    "markup": (
        [user("{{ 7 * 7 }} {% raw %} <|im_end|> [INST] </s>"), reply("```\n<x>\n```"), user("a\r\nb")],
        {},
    ),
    "two users in turn": ([user("a"), user("b")], {}),
    "a reply is first": ([reply("a"), user("b")], {}),
    "an unknown role": ([{"role": "critic", "content": "Hm"}, user("b")], {}),
    "no content": ([{"role": "user"}], {}),
    "content None": ([user(None)], {}),
    "content in blocks": ([user([{"type": "text", "text": " one "}, {"type": "text", "text": "two"}])], {}),
    "tools": (TALK, {"tools": TOOLS}),
    "tools after a system message": ([system("Be brief."), *TALK], {"tools": TOOLS}),
    "tools in the system message": (
        [system("Be brief."), *TALK],
        {"tools": TOOLS, "tools_in_user_message": False},
    ),
    "no tools": (TALK, {"tools": []}),
    "built-in tools": (TALK, {"builtin_tools": ["code_interpreter", "search"]}),
    "a call": ([user("Sun?"), reply("", tool_calls=[CALL]), RESULT], {"tools": TOOLS}),
    "a call without content": ([user("Sun?"), reply(None, tool_calls=[CALL]), RESULT, reply("It is.")], {}),
    "a call with a text": (
        [user("Sun?"), reply("Let me see", tool_calls=[TEXT_CALL]), RESULT],
        {"tools": TOOLS},
    ),
    "two calls": ([user("Sun?"), reply("", tool_calls=[CALL, CALL]), RESULT, RESULT], {"tools": TOOLS}),
    "a call with a bad id": ([user("Sun?"), reply("", tool_calls=[{**CALL, "id": "x"}]), RESULT], {}),
    "tool_calls None": ([user("Hi"), reply("Ho", tool_calls=None), user("Hm")], {}),
    "documents": (TALK, {"documents": DOCUMENTS}),
    "tools and documents": (TALK, {"documents": DOCUMENTS, "tools": TOOLS, "controls": {"citations": True}}),
    "reasoning apart": ([user("a"), reply("Yes", reasoning_content="Hm"), user("b")], {}),
    "reasoning under another name": (
        [user("a"), reply("Yes", reasoning="Hm")],
        {"add_generation_prompt": False},
    ),
    "reasoning in the text": (
        [user("a"), reply(THOUGHT), user("b"), reply(THOUGHT)],
        {"add_generation_prompt": False},
    ),
    "reasoning before a call": (
        [user("a"), reply("", reasoning_content="Hm", tool_calls=[CALL]), RESULT],
        {},
    ),
    "thinking blocks": (
        [
            user("a"),
            reply([{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yes"}]),
            user("b"),
        ],
        {},
    ),
    "enable_thinking": (TALK, {"enable_thinking": True}),
    "enable_thinking off": (TALK, {"enable_thinking": False}),
    "/no_think": ([system("Be brief. /no_think"), *TALK], {}),
    "/system_override": ([system("/system_override Be brief."), *TALK], {}),
    "thinking": (TALK, {"thinking": True}),
    "a given date": (TALK, {"date_string": "1 Jan 2000"}),
    "another BOS": (TALK, {"bos_token": "!"}),
    "a reply to continue": ([*TALK, reply("The answer ")], {"continue_final_message": True}),
    "reasoning to continue": (
        [*TALK, reply("", reasoning_content="I see, ")],
        {"continue_final_message": "reasoning_content"},
    ),
    "nothing to continue": ([*TALK, {"role": "assistant"}], {"continue_final_message": True}),
}


@pytest.fixture(scope="session")
def references(model):
    """references(family) -> transformers' tokenizer, which has the same template."""
    transformers = pytest.importorskip("transformers")

    @cache
    def made(name: str):
        core = tokenizers.Tokenizer.from_str(model(name)[1].to_str())
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, chat_template=template_of(name), **special_of(name)
        )

    return made


@pytest.fixture
def fixed_date(monkeypatch):
    """The clock of both libraries stands still."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")

    class Fixed(dates.datetime):
        @classmethod
        def now(cls, *_):
            return NOW

    monkeypatch.setattr(utils, "datetime", Fixed)
    monkeypatch.setattr(pyllm.chat_template, "datetime", Fixed)


def split_options(options: dict) -> dict:
    """apply_chat_template's arguments as pyllm's."""
    options = {"add_generation_prompt": "continue_final_message" not in options, **options}
    named = {key: options.pop(key) for key in list(options) if key in NAMED}
    return {**named, "template_kwargs": options}


NAMED = ("tools", "documents", "add_generation_prompt", "continue_final_message")


@pytest.mark.parametrize("name", FAMILIES)
def test_chats_are_those_of_transformers(name, model, references, fixed_date):
    llm, reference, refused = model(name)[0], references(name), []
    for case, (messages, options) in CASES.items():
        theirs = {"add_generation_prompt": "continue_final_message" not in options, **options}
        try:
            text = reference.apply_chat_template(messages, tokenize=False, **theirs)
        except Exception as error:
            with pytest.raises((ValueError, TypeError)) as ours:
                print(case, llm.render_chat(messages, **split_options(options)))
            if type(error).__name__ == "TemplateError":  # from raise_exception
                assert str(error) in str(ours.value)
            refused.append(case)
            continue
        ours = llm.render_chat(messages, **split_options(options))
        assert ours == text, case
        ids = llm.encode(ours, bos=False)
        expected = reference.apply_chat_template(messages, tokenize=True, return_dict=False, **theirs)
        assert ids == expected, case
        if case in ("one turn", "three turns", "tools", "documents"):
            assert llm.chat(messages, max_tokens=1, **split_options(options)).prompt_tokens == len(ids)
    assert len(CASES) - len(refused) >= 20, refused


def test_bos_is_in_a_prompt_once_where_the_template_writes_it_and_never_added(model):
    for name in FAMILIES:
        llm, core = model(name)
        ids = llm.encode(llm.render_chat([user("Hi")]), bos=False)
        bos = FAMILIES[name][1]
        if bos and bos not in (*CHATML, FAMILIES[name][2]):
            turns = 2 if name == "seed_oss" else 1  # each begins with it
            assert ids.count(core.token_to_id(bos)) == turns * (name in WRITE_BOS), name
            assert (llm.encode("Hi")[0] == core.token_to_id(bos)) == FAMILIES[name][4], name


NAMED_TEMPLATES = {
    "default": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
    "tool_use": "{{ tools | tojson }}{% for m in messages %}{{ m.content }}<|eom_id|>{% endfor %}",
    "rag": "{{ documents | tojson }}",
}


def write_templates(folder: Path, place: str, templates: dict[str, str]) -> None:
    """A tokenizer's directory with these chat templates, in tokenizer_config.json or in files."""
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    tokenizer("bytes", *special.values(), LLAMA3, True).save(str(folder / "tokenizer.json"))
    if place == "configuration":
        special["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    else:
        special["chat_template"] = "superseded"
        (folder / "additional_chat_templates").mkdir()
        for name, text in templates.items():
            own = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
            (folder / f"{own}.jinja").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


@pytest.mark.parametrize("place", ["configuration", "files"])
@pytest.mark.parametrize("names", [("default", "tool_use", "rag"), ("default", "rag"), ("tool_use",)])
def test_named_templates_are_chosen_as_transformers_chooses_them(tmp_path, place, names):
    transformers = pytest.importorskip("transformers")
    templates = {name: NAMED_TEMPLATES[name] for name in names}
    write_templates(tmp_path, place, templates)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    sections, notes = huggingface_tokenizer.from_directory(tmp_path), []
    eom = reference.convert_tokens_to_ids("<|eom_id|>").to_bytes(4, "little")
    assert (eom in sections[lib.LLM_STOP]) == ("tool_use" in names)
    assert huggingface_tokenizer.chat_templates(tmp_path) == reference.chat_template == templates
    sections |= convert.make_chat(templates, {}, notes)
    assert ("chat templates that are left out: rag" in notes) == ("rag" in names)
    path = tmp_path / "model.llm"
    path.write_bytes(make_model(7, vocab_size=len(reference), sections=sections, context=4096))
    llm, rendered = LLM(path, threads=1), 0
    cases = itertools.product((None, [], TOOLS), (None, "default", "tool_use", "!{{ messages[0].content }}"))
    for tools, chosen in cases:
        if chosen in NAMED_TEMPLATES and chosen not in names:  # transformers renders the name
            continue
        options = {"tools": tools, "chat_template": chosen}
        try:
            text = reference.apply_chat_template(TALK, tokenize=False, **options)
        except ValueError as error:
            assert "no default" in str(error)
            with pytest.raises(LLMError, match="no chat template"):
                llm.render_chat(TALK, **options)
            continue
        assert llm.render_chat(TALK, add_generation_prompt=False, **options) == text
        done = llm.chat(TALK, max_tokens=1, add_generation_prompt=False, **options)
        assert done.prompt_tokens == len(llm.encode(text, bos=False))
        rendered += 1
    assert rendered >= 8
    with pytest.raises(TypeError, match="chat_template must be str, not dict"):
        llm.render_chat(TALK, chat_template=templates)


def test_a_models_one_template_has_both_names(model):
    llm = model("qwen25")[0]
    for name in ("default", "tool_use", template_of("qwen25")):
        assert llm.render_chat(TALK, tools=TOOLS, chat_template=name) == llm.render_chat(TALK, tools=TOOLS)
    for stream in (llm.chat, llm.stream_chat):
        with pytest.raises(TypeError, match="chat_template"):
            stream(TALK, template_kwargs={"chat_template": "default"})


SPECIAL_SNIPPETS = (
    "{{ pad_token }}{{ messages[0].content }}{{ unk_token }}{{ mask_token }}",
    "\n {% macro m(x) %}{{ x }}{{ pad_token }}{% endmacro %}{{ m(1) }}{{ pad_token is defined }}",
    "{{ sep_token is defined }}{% set pad_token = 'x' %}{% for m in messages %}{{ pad_token }}{% endfor %}",
    "{% if unk_token %}{{ unk_token }}{{ bos_token }}{% endif %}{{ cls_token }}",
)


@pytest.mark.parametrize("template", SPECIAL_SNIPPETS)
def test_templates_have_all_special_tokens_as_in_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": '<"\\p{{ad %}>', "unk_token": "<unké>"}
    core = tokenizer("bytes", "<s>", "</s>", list(special.values()), True)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
    llm = LLM(save(tmp_path, core, template, special=special), threads=1)
    for more in ({}, {"pad_token": "mine", "unk_token": ""}):
        text = reference.apply_chat_template([user("Hi")], chat_template=template, tokenize=False, **more)
        assert llm.render_chat([user("Hi")], add_generation_prompt=False, template_kwargs=more) == text


SNIPPETS = (
    "{{ x | tojson }}{{ x | tojson(indent=2) }}{{ x | tojson(ensure_ascii=True, sort_keys=True) }}",
    "{{ x | tojson(separators=(',', ':')) }}{{ x | tojson(indent='--') }}{{ nothing | tojson }}",
    "{{ strftime_now('%d %b %Y, %H:%M:%S') }}{{ strftime_now(5) }}",
    "{{ strftime_now('%A %B %j %U') }}",
    "{{ raise_exception('No ' + messages[0].role) }}",
    "{{ raise_exception() }}",
    "{% generation %}{% set a = 1 %}{{ messages[0].content }}{% endgeneration %}{{ a is defined }}",
    "{% for m in x.list %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% break %}{% endfor %}",
    "{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + n.self %}{{ n.a }}{{ n.b }}",
    "{% set n = namespace({'a': 1}) %}{{ n.a }}{% set n._a = 1 %}",
    "{{ namespace(__class__=1) }}",
    "{{ dict(a=1) }}{{ dict([('b', 2)], c=3).c }}{{ dict.fromkeys('ab', 0) }}",
    "{{ dict.__class__ }}{{ dict.mro }}",
    "{{ ''.__class__ }}{{ messages.__init__ }}",
    "{{ messages.append(1) }}",
    "  {% if true %}\n  kept\n  {% endif %}\n{# gone #}\n  {{- ' cut ' -}}  \nend\n",
    "{{ '<b>' }}{{ '<b>' | e }}{{ x.text | upper | trim('É!') }}{{ x | items | list }}",
    "{{ x.list[5] }}{{ x.nothing.deeper }}",
    "{{ x.nothing }}{{ x.nothing + 'a' }}",
    "{{ 1 / 0 }}",
    "{{ '%s %s' | format(1) }}",
    "{{ '{0}{9}'.format(1) }}",
    "{{ x | dictsort }}{{ x.list | dictsort }}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }}{{ m(a=x.int, b=x.float) }}",
    "{{ x.rich }}{{ x.enum }}{{ x.number }}{{ x.flag }}{{ x.model }}{{ x.object }}{{ x.tuple }}",
    "{% include 'x' %}",
    "{{ range(10**9) | list }}",
)


@dataclasses.dataclass
class Rich:
    name: str
    inner: object


class Level(enum.IntEnum):
    HIGH = 3


class Modelled:
    def model_dump(self) -> dict:
        return {"dumped": (1, Level.HIGH)}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_what_templates_are_given_is_that_of_transformers(snippet, references, fixed_date):
    reference = references("qwen2")
    x = {"text": " é! ", "list": [1, 2, 3], "int": 1, "float": 0.1, "none": None, "<é>": "\u2028</b>"}
    rich = {"rich": Rich("r", [np.float32(0.5), {1: b"x"}]), "enum": Level.HIGH, "number": np.int64(4)}
    rich |= {"flag": np.bool_(False), "model": Modelled(), "object": object(), "tuple": (1, None)}
    x |= rich if "x.rich" in snippet else {}
    try:
        text = reference.apply_chat_template([user("Hi")], chat_template=snippet, tokenize=False, x=x)
    except Exception as error:
        with pytest.raises(TemplateError) as ours:
            pyllm.chat_template.render(snippet, [user("Hi")], add_generation_prompt=False, x=x)
        assert type(error).__name__ != "TemplateError" or str(error) in str(ours.value)
    else:
        assert text == pyllm.chat_template.render(snippet, [user("Hi")], add_generation_prompt=False, x=x)


def test_what_is_no_dict_is_refused(model):
    llm = model("qwen25")[0]

    def weather(city: str) -> str:
        """The weather."""

    for options, words in (
        ({"tools": [weather]}, "a tool is a dict with a JSON schema .*get_json_schema"),
        ({"documents": ["text"]}, "a document is a dict with title and text"),
    ):
        with pytest.raises(TypeError, match=words):
            llm.render_chat([user("Hi")], **options)
    with pytest.raises(ValueError, match="add_generation_prompt=False"):
        llm.render_chat([user("Hi")], continue_final_message=True)


# ----------------------------------------------------------------------------------------------------------
# The form for the command

# The white space before earlier replies that the model writes itself; what the converter remarks
LEAD = {"llama2": " ", "mistral_v3": " ", "laguna": "\n", "deepseek_v2": " "}
REMARKS = dict.fromkeys(("mistral_v1", "gemma2"), "the chat template has no place for a system message") | {
    "smollm3": "the chat template treats messages with /no_think or /system_override or /think in "
    "its own way",
    **dict.fromkeys(("laguna", "glm46"), "the chat template changes earlier replies that have reasoning"),
}
NO_SYSTEM = ("mistral_v1", "gemma2")
TALKS = [
    (None, ["Hi"], []),
    (None, ["  Hi", "And\n\nthen? ", "é中😀"], ["Ho\n", " <b>x</b> "]),
    ("Be brief.", ["Hi"], []),
    (" Be\nbrief.\n", ["a", "b ", "\tc"], ["d", "e"]),
    ("Be brief.", ["a", "b"], ["<think>\nHm\n</think>\n\nYes"]),
    (None, ["a", "b", "c"], ["Hm\n</think>\n\nYes", "<think>\nHm, c"]),
]


def marks_in(name: str) -> Marks:
    """The marks of a family's reasoning, as its template writes them."""
    return marks_of(template_of(name), lambda mark: []) or MARKS[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_a_family_make_the_templates_own_text(name):
    special = special_of(name)
    parts, remark = derive(template_of(name), special)
    marks = marks_in(name)
    begin, end, plain = marks
    own = [(None, ["a", "b", "c", "d"], [f"{begin}\nHm{end}\nYes", f"{plain}No", f"{begin}Hm"])]
    assert parts and remark == REMARKS.get(name, "")
    for told, users, replies in [*TALKS, *(own if "answer" in parts[5] else [])]:
        if told is not None and name in NO_SYSTEM:
            continue
        if "reasoning" in remark and "think>" in str(replies):
            continue
        made = assembled(parts, told, users, replies, name)
        if len(parts) == 8:  # the template is given what is behind the reasoning
            begun = (parts[3] + parts[6]).rstrip().endswith(begin)
            replies = [answer_of(text, marks, begun) for text in replies]
        if "trim" in parts[5]:
            told = told and told.strip()
            users, replies = [text.strip() for text in users], [text.strip() for text in replies]
        messages = [system(told)] if told is not None else []
        for i, text in enumerate(users):
            messages += [user(text), *(reply(text) for text in replies[i : i + 1])]
        assert made == pyllm.chat_template.render(
            template_of(name), messages, strftime_now=NOW.strftime, **special
        )


def assembled(parts: list[str], told: str | None, users: list[str], replies: list[str], name: str) -> str:
    return assemble(parts, told, users, replies, LEAD.get(name, ""), NOW, marks_in(name))


def run_chat(path: str, *arguments: str, input: str, rc: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [os.path.abspath(COMMAND), "chat", "-m", path, *arguments],
        input=input.encode(),
        capture_output=True,
        timeout=60,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == rc, done
    return done.stdout.decode(), done.stderr.decode()


@needs_command
def test_the_command_says_why_it_cannot_chat_with_a_model(tmp_path):
    core = tokenizer(*FAMILIES["qwen2"])
    template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    path = save(tmp_path, core, template, special_of("qwen2"))
    out, err = run_chat(str(path), input="Hi", rc=1)
    assert out == "" and "the chat template leaves out or repeats a message" in err


@needs_command
@pytest.mark.parametrize("name", FAMILIES)
def test_the_command_replies_to_the_prompt_that_the_parts_make(name, model):
    llm, path = model(name)[0], model(name)[0].path
    parts, _ = derive(template_of(name), special_of(name))
    for told in (None,) if name in NO_SYSTEM else (None, "Be brief."):
        users, replies, out = ["Hi <b>there</b>", "And then?", "é中"], [], ""
        flags = [] if told is None else ["--system", told]
        for i in range(len(users)):
            now, marks = dates.datetime.now(), marks_in(name)
            prompt = assemble(parts, told, users[: i + 1], replies, now=now, marks=marks)
            as_it_is = f"{{{{ messages[0].content }}}}{{# {marks.sign} #}}"
            done = llm.chat([user(prompt)], chat_template=as_it_is, temperature=0, max_tokens=6)
            replies.append(done.text)
            out += done.text + "\n"
        given = "\n".join(users)
        flags += ["-t", "0", "-n", "6", "--threads", "1", "--exact"]
        assert run_chat(path, *flags, input=given)[0] == out


def talker(folder: Path, name: str, said: dict[int, int], monkeypatch) -> Path:
    """A model with a family's tokens and template that says these, by their position."""
    core = tokenizer(*FAMILIES[name])
    size, dim, context = core.get_vocab_size(), 512, 4096
    words, positions = np.zeros((size, dim)), np.zeros((context, dim))
    words[np.arange(size), np.arange(size)] = 16
    positions[list(said), list(said.values())] = 1
    once, encode = {(size, dim): [words, 0 * words], positions.shape: [positions]}, reference.encode
    with monkeypatch.context() as patch:
        made = lambda w: once[w.shape].pop() if once.get(w.shape) else w  # noqa: E731
        patch.setattr(reference, "encode", lambda w, kind: encode(made(w), kind))
        shape = dict(flags=reference.POSITION_TABLE, dim=dim, ffn_dim=64, residual_scale=1e-6)
        return save(folder, core, template_of(name), special_of(name), context=context, **shape)


HARMONY_TALK = (f"{HARMONY_BEGIN}Hm{HARMONY_END} Yes", f"{HARMONY_PLAIN}No", f"{HARMONY_BEGIN}Hm")
LONG = "Hi" + " and more" * 12  # than a reply, so that no position is of two
# What a model says in three turns, what is shown of it, its answers
SPOKEN = {
    "qwen3": (("<think>\nHm\n</think>\n\nYes", "No", "So"), None, ("Yes", "No", "So")),
    "gemma4": ((f"{GEMMA_BEGIN}\nHm{GEMMA_END}Yes", "No", "So"), None, ("Yes", "No", "So")),
    "gpt_oss": (HARMONY_TALK, (HARMONY_TALK[0], "No", HARMONY_TALK[2]), ("Yes", "No", "")),
    "solar_open": (
        (f"<|think|>Hm{SOLAR_END}Yes", "<|content|>No", "So"),
        (None, "No", None),
        ("Yes", "No", "So"),
    ),
    "glm46": (("\n<think>Hm</think>\nYes", "\n<think></think>\nNo", "So"), None, ("Yes", "No", "So")),
    "glm47_flash": (("Hm</think>Yes", "</think>No", "Hm"), None, ("Yes", "No", "")),
    "command_r7b": (("<|START_RESPONSE|>Yes", "No", "So"), ("Yes", None, None), ("Yes", "No", "So")),
}


@needs_command
@pytest.mark.parametrize("name", SPOKEN)
def test_the_command_tells_reasoning_apart_and_forgets_it(name, model, tmp_path, monkeypatch):
    said, shown, answers = SPOKEN[name]
    shown = [one or whole for one, whole in zip(shown or said, said, strict=True)]
    llm, tokens, messages = model(name)[0], {}, []
    for text, answer in zip(said, answers, strict=True):
        messages.append(user(LONG))
        at = len(llm.encode(llm.render_chat(messages), bos=False)) - 1
        tokens |= dict(enumerate([*llm.encode(text, bos=False), llm.stop_tokens[0]], at))
        messages.append(reply(answer))
    given = "\n".join([LONG] * len(said))
    path = str(talker(tmp_path, name, tokens, monkeypatch))
    flags = ("-t", "0", "-n", "99", "--threads", "1")
    assert run_chat(path, *flags, input=given)[0] == "".join(f"{text}\n" for text in shown)
    hidden, err = run_chat(path, *flags, "--hide-thinking", input=given)
    assert hidden == "".join(f"{text}\n" for text in answers)
    assert ("ended inside its reasoning" in err) == ("" in answers)


@needs_command
@pytest.mark.parametrize("name", ["qwen3", "smollm3"])
def test_the_command_switches_thinking_off_as_the_template_does(name, model):
    llm, options = model(name)[0], {"template_kwargs": {"enable_thinking": False}}
    assert llm.render_chat([user("Hi")]) != llm.render_chat([user("Hi")], **options)
    for told in (None, "Be brief."):
        messages, out = [] if told is None else [system(told)], ""
        flags = [] if told is None else ["--system", told]
        for text in ("Hi <b>there</b>", "And then?", "é中"):
            messages.append(user(text))
            done = llm.chat(messages, temperature=0, max_tokens=6, **options)
            messages.append(reply(done.text))
            out += done.text + "\n"
        given = "\n".join(m["content"] for m in messages if m["role"] == "user")
        flags += ["-t", "0", "-n", "6", "--threads", "1", "--exact"]
        assert run_chat(llm.path, *flags, "--no-thinking", input=given)[0] == out
        assert run_chat(llm.path, *flags, input=given)[0] != out


def test_a_switch_that_has_no_parts_is_noted():
    said = "{{ m.content if enable_thinking is not false }}"
    turn = "{% if m.role == 'user' %}[" + said + "]{% else %}" + said + "!{% endif %}"
    template = "{% for m in messages %}" + turn + "{% endfor %}"
    notes = []
    sections = convert.make_chat({"default": template}, {}, notes)
    assert lib.LLM_CHAT_PARTS in sections and lib.LLM_CHAT_NO_THINKING not in sections
    assert "cannot switch off this model's thinking: the chat template leaves out" in notes[-1]


@needs_command
@pytest.mark.parametrize("name", ["qwen25", "deepseek_r1"])
def test_the_command_says_when_thinking_cannot_be_switched_off(name, model):
    out, err = run_chat(model(name)[0].path, "--no-thinking", input="Hi", rc=1)
    assert (out, err) == ("", "pyllm: --no-thinking: this model's chat template cannot switch thinking off\n")


# ----------------------------------------------------------------------------------------------------------
# Reasoning

# Tokens of a model that writes marks at random: whole, in pieces, with something beside them
PIECES = (
    *("<think>", "</think>", "<thi", "nk>", "</th", "ink>", "</", "\n\n", "   "),
    *(f"<think>{i}" for i in range(30)),
    *(f"\n<think> {i}" for i in range(30)),
    *(f"{i}</think>" for i in range(40)),
    *(f" </think>\n{i}" for i in range(30)),
)


def random_thinker(folder: Path, begun: bool, marks: tuple[str, ...] = (), **arguments) -> Path:
    """A model over bytes and PIECES, or with these marks as control tokens."""
    begin = marks[0] if marks else "<think>"
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}<|assistant|>"
    template += f"{begin}\n" if begun else f"{{# {begin} #}}"
    core = tokenizer("bytes", None, "<|end|>", [*PHI, *marks], False, () if marks else PIECES)
    return save(folder, core, template, {"eos_token": "<|end|>"}, context=512, **arguments)


def parted(text: str, begun: bool, begin: str = "<think>", end: str = "</think>") -> tuple[str | None, str]:
    """The reasoning and the reply, by a regular expression."""
    begin, end = re.escape(begin), re.escape(end)
    found = re.fullmatch(("" if begun else rf"\s*{begin}") + rf"(.*?)(?:{end}\s*(.*)|\Z)", text, re.DOTALL)
    return (found[1].strip() or None, found[2] or "") if found else (None, text)


@pytest.mark.parametrize("begun", [False, True])
def test_reasoning_is_shown_hidden_or_apart(tmp_path, begun):
    llm, thoughts = LLM(random_thinker(tmp_path, begun), threads=1), 0
    params = dict(max_tokens=25, temperature=1000, top_p=1)
    for seed in range(60):
        shown = llm.chat([user("a")], seed=seed, **params)
        assert shown == llm.generate(llm.render_chat([user("a")]), seed=seed, **params)
        thought, text = parted(shown.text, begun)
        hidden = llm.chat([user("a")], seed=seed, reasoning="hide", **params)
        apart = llm.chat([user("a")], seed=seed, reasoning="apart", **params)
        assert (hidden.text, hidden.reasoning_content) == (text, None)
        assert (apart.text, apart.reasoning_content) == (text, thought)
        assert apart.tokens == hidden.tokens == shown.tokens
        stream = llm.stream_chat([user("a")], seed=seed, reasoning="apart", **params)
        pieces = list(stream)
        assert "".join(p for p in pieces if not isinstance(p, Reasoning)) == text
        assert "".join(p for p in pieces if isinstance(p, Reasoning)) == (thought or "")
        assert "".join(llm.stream_chat([user("a")], seed=seed, reasoning="hide", **params)) == text
        thoughts += thought is not None and text != ""
    assert thoughts >= 10
    batch = llm.chat([[user("a")], [user("b")]], seed=3, reasoning="apart", **params)
    assert batch[0] == llm.chat([user("a")], seed=3, reasoning="apart", **params)
    assert batch[1] == llm.chat([user("b")], seed=4, reasoning="apart", **params)
    with pytest.raises(ValueError, match="show, hide, apart"):
        llm.chat([user("a")], reasoning="no")


def test_the_end_of_a_stream_is_its_completion_apart(tmp_path):
    llm = LLM(random_thinker(tmp_path, True), threads=1)

    def run():
        return (yield from llm.stream_chat([user("a")], seed=1, max_tokens=9, reasoning="apart"))

    stream = run()
    with pytest.raises(StopIteration) as end:
        while True:
            next(stream)
    assert end.value.value == llm.chat([user("a")], seed=1, max_tokens=9, reasoning="apart")


def test_marks_can_be_control_tokens(tmp_path):
    marks = ("[THINK]", "[/THINK]")
    llm = LLM(random_thinker(tmp_path, False, marks), threads=1)
    begin, end = (llm.encode(mark)[0] for mark in marks)
    params = dict(seed=1, max_tokens=9, temperature=0)
    assert llm.generate([1, 2, 3], logit_bias={begin: 1e9}, **params).text == ""
    apart = llm.chat([user("a")], logit_bias={begin: 1e9}, reasoning="apart", **params)
    assert (apart.text, apart.reasoning_content) == ("", "[THINK]" * 8)
    shown = llm.chat([user("a")], logit_bias={begin: 1e9}, **params)
    assert shown.text == "[THINK]" * 9 and shown.tokens == [begin] * 9
    reasoned = [user("a"), reply("[THINK]I see")]
    options = dict(add_generation_prompt=False, continue_final_message=True, reasoning="apart")
    done = llm.chat(reasoned, logit_bias={end: 1e9}, **options, **params)
    assert (done.text, done.reasoning_content) == ("[/THINK]" * 8, None)


def test_a_continued_message_says_whether_its_reasoning_goes_on(model):
    options = dict(add_generation_prompt=False, seed=1, max_tokens=5, temperature=0, reasoning="apart")

    def chat(name, message, field=True):
        done = model(name)[0].chat([user("<think>"), message], continue_final_message=field, **options)
        return done.text != "", done.reasoning_content is not None

    assert chat("qwen3", reply("", reasoning_content="I see"), "reasoning_content") == (False, True)
    assert chat("qwen3", reply("I see")) == (True, False)
    assert chat("qwen2", reply("<think>I see")) == (False, True)
    assert chat("qwen2", reply("<think>Hm</think>I see")) == (True, False)


class Script(State):
    """Lets nothing come but these tokens."""

    def __init__(self, tokens: list[int], vocab_size: int) -> None:
        self.tokens = list(tokens)
        self.words = np.zeros(-(-vocab_size // 32), np.uint32)

    def mask(self):
        self.words[:] = 0
        self.words[self.tokens[0] // 32] = 1 << self.tokens[0] % 32
        return ffi.from_buffer("uint32_t[]", self.words)

    def accept(self, token):
        assert self.tokens.pop(0) == token

    @property
    def complete(self):
        return not self.tokens

    def forced(self, most):
        return self.tokens[:most]


@pytest.fixture
def says(monkeypatch):
    """says(text): what every model says from now on, in tokens."""
    prepare = LLM._prepare

    def scripted(text: str) -> None:
        def prepared(self, prompts, *more):
            script = [Script(self.encode(text, bos=False), self.vocab_size) for _ in prompts]
            return prepare(self, prompts, *more[:4], script)

        monkeypatch.setattr(LLM, "_prepare", prepared)

    return scripted


TWICE = f"Hm,<|end|><|start|>assistant{HARMONY_BEGIN}no <|"
# What a model of a family says, its reasoning, its answer, and what is shown if that is not all it says
SAID = [
    ("qwen3", "<think>\nHm\n</think>\n\nYes", "Hm", "Yes", None),
    ("magistral", "[THINK]Hm[/THINK]Yes", "Hm", "Yes", None),
    ("gemma4", f"{GEMMA_BEGIN}\nHm,\n  <|channel\n{GEMMA_END}Yes\n", "Hm,\n  <|channel", "Yes\n", None),
    ("gemma4", f"{GEMMA_BEGIN}\n{GEMMA_END}Yes", None, "Yes", None),
    ("gemma4", f"{GEMMA_BEGIN}\nHm", "Hm", "", None),
    ("gemma4", f"A {GEMMA_BEGIN}", None, f"A {GEMMA_BEGIN}", None),
    ("gpt_oss", f"{HARMONY_BEGIN} Hm {HARMONY_END}\nYes ", "Hm", "Yes ", None),
    ("gpt_oss", f"{HARMONY_BEGIN}{TWICE}{HARMONY_END}Y", TWICE, "Y", None),
    ("gpt_oss", f"{HARMONY_BEGIN}Hm<|end|><|start|>a", "Hm<|end|><|start|>a", "", None),
    ("gpt_oss", f"{HARMONY_PLAIN}Yes <b>", None, "Yes <b>", "Yes <b>"),
    ("gpt_oss", f" {HARMONY_PLAIN}\n<|channel|>final", None, "<|channel|>final", "<|channel|>final"),
    ("gpt_oss", "<|channel|>", None, "<|channel|>", None),
    ("gpt_oss", f"  Yes{HARMONY_PLAIN}", None, f"  Yes{HARMONY_PLAIN}", None),
    ("solar_open", f"<|think|>Hm{SOLAR_END}Yes", "Hm", "Yes", None),
    ("solar_open", "<|content|>Yes", None, "Yes", "Yes"),
    ("seed_oss", "<seed:think>Hm</seed:think>Yes", "Hm", "Yes", None),
    ("hy3", "<think:opensource>Hm</think:opensource>Yes", "Hm", "Yes", None),
    ("apertus", "<|inner_prefix|>Hm<|inner_suffix|>Yes", "Hm", "Yes", None),
    ("command_r7b", "<|START_THINKING|>Hm<|END_THINKING|>Yes", "Hm", "Yes", None),
]
THINKING_ON = {"template_kwargs": {"enable_thinking": True}}


def both(pieces) -> tuple[str, str]:
    """The reasoning and the answer in pieces of a reply."""
    pieces = list(pieces)
    thought = "".join(piece for piece in pieces if isinstance(piece, Reasoning))
    return thought, "".join(piece for piece in pieces if not isinstance(piece, Reasoning))


@pytest.mark.parametrize("name, text, thought, answer, shown", SAID)
def test_reasoning_between_a_familys_own_marks_is_told_apart(name, text, thought, answer, shown, model, says):
    llm, talk = model(name)[0], [user("a")]
    says(text)
    for how, expected, reasoned in (
        ("show", text if shown is None else shown, None),
        ("hide", answer, None),
        ("apart", answer, thought),
    ):
        done = llm.chat(talk, reasoning=how, **THINKING_ON)
        assert (done.reasoning_content, done.text) == (reasoned, expected)
        assert done.tokens == llm.encode(text, bos=False)
        events = list(llm.stream_chat(talk, events=True, reasoning=how, **THINKING_ON))
        assert "".join(event.text for event in events) == expected
        assert "".join(event.reasoning_content for event in events) == (reasoned or "")
        streamed = both(llm.stream_chat(talk, reasoning=how, **THINKING_ON))
        assert streamed == (reasoned or "", expected)


@pytest.mark.parametrize("name, text, thought, answer, shown", SAID)
def test_reasoning_is_told_apart_wherever_pieces_end(name, text, thought, answer, shown, model):
    marks = model(name)[0]._marks(ChatOptions())
    cuts = [[i] for i in range(1, len(text))] + [list(range(size, len(text), size)) for size in (1, 2, 3)]
    for cut in cuts:
        pieces = [text[at:end] for at, end in itertools.pairwise([0, *cut, len(text)])]
        apart, plain, thinks = (
            Parting(marks, False),
            Parting(marks, False, True),
            Thought(Marked(marks, False)),
        )
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            apart.feed(piece, last)
            plain.feed(piece, last)
        assert both(apart.given) == (thought or "", answer)
        assert both(plain.given) == ("", text if shown is None else shown)
        behind = b"".join(thinks.feed(piece.encode()) for piece in pieces).decode().lstrip()
        assert behind == answer.lstrip() or (behind == "" and answer == text)  # which may become a mark


BUDGETS = [
    ("gemma4", f"{GEMMA_BEGIN}\nHm, well", 3, f"{GEMMA_BEGIN}\nHm", f"\n{GEMMA_END}"),
    ("gpt_oss", f"{HARMONY_BEGIN}Hm, well", 2, f"{HARMONY_BEGIN}Hm", HARMONY_END),
    ("gpt_oss", f"{HARMONY_BEGIN}Hm", 0, HARMONY_BEGIN, HARMONY_END),
    ("gpt_oss", f"{HARMONY_BEGIN}H<", 2, f"{HARMONY_BEGIN}H<", HARMONY_END),
    (
        "gpt_oss",
        f"{HARMONY_BEGIN}H<|end|>",
        2,
        f"{HARMONY_BEGIN}H<|end|>",
        HARMONY_END.removeprefix("<|end|>"),
    ),
    (
        "gpt_oss",
        f"{HARMONY_BEGIN}H<|end|><|start|>assi",
        5,
        f"{HARMONY_BEGIN}H<|end|><|start|>as",
        f"sistant{HARMONY_PLAIN}",
    ),
]


@pytest.mark.parametrize("name, text, budget, kept, closing", BUDGETS)
def test_a_budget_ends_reasoning_with_a_familys_own_mark(name, text, budget, kept, closing, model):
    llm = model(name)[0]
    options = ChatOptions(reasoning_budget=budget, reasoning="apart", **THINKING_ON)
    _, parting = llm.chat_prompt([user("a")], options)
    state = Budget(llm._open(), llm._reasoning(options, parting), None)
    said, left = [], llm.encode(text, bos=False)
    while not state.forced(99):
        said.append(left.pop(0))
        state.accept(said[-1])
    assert llm.decode(said, special=True) == kept
    assert llm.decode(state.forced(99), special=True) == closing
    control = {token for mark in (GEMMA_END, HARMONY_END) for token in llm.encode(mark, bos=False)}
    assert {token for token in state.forced(99) if not llm.decode([token])} <= control


@pytest.mark.parametrize("name", ["gemma4", "gpt_oss"])
def test_a_grammar_binds_what_is_behind_a_familys_own_marks(name, model):
    pytest.importorskip("llguidance")
    llm = model(name)[0]
    options = ChatOptions(**THINKING_ON)
    reasoning = llm._reasoning(options, llm.chat_prompt([user("a")], options)[1])

    def accepts(text: str) -> bool:
        state = llm._grammar(SamplingParams(choice=["yes", "no"]), reasoning)
        for token in llm.encode(text, bos=False):
            if state.complete or not state.mask()[token // 32] >> token % 32 & 1:
                return False
            state.accept(token)
        return state.complete

    begin, end, plain = reasoning.marks
    assert accepts(f"{begin}\nyes or no?{end}yes") and accepts(f"{begin}{end}\nno") and accepts("yes")
    assert not accepts(f"{begin}yes{end}maybe") and not accepts("maybe") and not accepts(f"{end}yes")
    assert accepts(f"{plain}no") and not accepts(f"{plain}{begin}")


@pytest.mark.parametrize("name, text, thought, answer, shown", SAID)
def test_the_server_tells_a_familys_reasoning_apart(name, text, thought, answer, shown, model, says):
    pytest.importorskip("starlette")
    from served import Client

    from pyllm.testing import running_server

    says(text)
    llm = model(name)[0]
    body = {"chat_template_kwargs": {"enable_thinking": True}}
    chat = {**body, "messages": [user("a")]}
    with running_server(llm) as running:
        client = Client(running.url)
        (choice,) = client.answer("/v1/chat/completions", chat)["choices"]
        message = choice["message"]
        assert (message.get("reasoning_content"), message["content"]) == (thought, answer)
        events = client.events("/v1/chat/completions", chat)
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == answer
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == (thought or "")
        told = client.answer("/v1/responses", {**body, "input": "a"})
        output = {item["type"]: item["content"][0]["text"] for item in told["output"]}
        assert output.get("reasoning") == thought and output.get("message", "") == answer
        if text.lstrip().startswith(HARMONY_PLAIN):
            assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == 0


def test_the_command_knows_the_same_marks():
    source = (Path(__file__).parents[1] / "csrc" / "chat.c").read_text()
    table = source[source.index("MARKS[] = {") : source.index("};", source.index("MARKS[] = {"))]
    assert re.findall(r'"([^"]*)"', table) == [text for marks in MARKS for text in marks]


@needs_command
@pytest.mark.parametrize("begun", [False, True])
def test_the_command_hides_reasoning(tmp_path, begun):
    path, hidden = str(random_thinker(tmp_path, begun)), 0
    for seed in range(40):
        flags = ("-t", "1000", "--top-p", "1", "-n", "25", "--threads", "1", "--seed", str(seed))
        shown, err = run_chat(path, *flags, input="a")
        assert err == "" and shown.endswith("\n")
        thought, text = parted(shown[:-1], begun)
        out, err = run_chat(path, *flags, "--hide-thinking", input="a")
        assert out == text + "\n"
        if err:
            assert text == "" and err == "pyllm: the reply ended inside its reasoning, which is hidden\n"
        hidden += thought is not None and text != ""
        if seed < 5:  # a second turn does not depend on what was shown
            both = [run_chat(path, *flags, *more, input="a\nb")[0] for more in ((), ("--hide-thinking",))]
            first = shown, text + "\n"
            second = [whole.removeprefix(start) for whole, start in zip(both, first, strict=True)]
            assert second[1] == parted(second[0][:-1], begun)[1] + "\n"
    assert hidden >= 5


@needs_command
def test_the_command_knows_marks_that_are_control_tokens(tmp_path):
    path, hidden = str(random_thinker(tmp_path, True, ("[THINK]", "[/THINK]"))), 0
    for seed in range(6):
        flags = ("-t", "1000", "--top-p", "1", "-n", "400", "--threads", "1", "--seed", str(seed))
        shown, _ = run_chat(path, *flags, input="a")
        thought, text = parted(shown[:-1], True, "[THINK]", "[/THINK]")
        assert run_chat(path, *flags, "--hide-thinking", input="a")[0] == text + "\n"
        hidden += text != ""
    assert hidden >= 2


@needs_command
def test_the_command_dims_reasoning_on_a_terminal_only(tmp_path):
    path = str(random_thinker(tmp_path, True))
    main, terminal = os.openpty()
    flags = ("-t", "1000", "--top-p", "1", "-n", "25", "--threads", "1", "--seed", "1")
    subprocess.run(
        [os.path.abspath(COMMAND), "chat", "-m", path, *flags],
        input=b"a",
        stdout=terminal,
        check=True,
        timeout=60,
    )
    os.close(terminal)
    out = b""
    with suppress(OSError):  # the end: nobody has the terminal open any more
        while more := os.read(main, 65536):
            out += more
    os.close(main)
    assert out.startswith(b"\x1b[2m")
    plain = run_chat(path, *flags, input="a")[0]
    assert re.sub(b"\x1b\\[2?2m", b"", out) == on_terminal(plain.encode())
