"""Reads the tokenizer of a model's directory: tokenizer.json, else tokenizer.model or vocab.json, else
Mistral's tekken.json or Kimi's tiktoken.model, and the files beside them that have a say. Runs nothing
that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pyllm._llm import lib

from . import auto_tokenizer
from .auto_tokenizer import Found
from .sentencepiece_model import from_sentencepiece
from .sources import read_json
from .tekken import from_tekken
from .tiktoken_model import from_tiktoken_model
from .tokenizer_json import from_tokenizer_json, read_added, read_post_processor
from .vocabulary import METASPACE, Vocabulary, add_stops, as_ids, new_program

# The files that a directory may have its tokenizer in: those that AutoTokenizer reads, and those that count
# where there is no other
AUTO_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TOKENIZER_FILES = (*AUTO_FILES, "tekken.json", "tiktoken.model")


def chat_templates(path: Path) -> dict[str, str]:
    """The chat templates of a model's directory by name, in the order in which transformers looks:
    chat_template.jinja and additional_chat_templates, else those of tokenizer_config.json, else that of
    chat_template.json."""
    files = {"default": path / "chat_template.jinja"} if (path / "chat_template.jinja").is_file() else {}
    files |= {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if files:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    for file in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(path / file, required=False).get("chat_template")
        items = found if isinstance(found, list) else [{"name": "default", "template": found}]
        named = {item.get("name"): item.get("template") for item in items if isinstance(item, dict)}
        if templates := {str(name): text for name, text in named.items() if text and isinstance(text, str)}:
            return templates
    return {}


def from_directory(path: Path, template: str | None = None) -> dict[int, bytes]:
    """The tokenizer sections from a model's directory, from all of its files that have a say.
    template: the one whose ends of turns are stop tokens; None: the directory's own."""
    path = Path(path)
    named: Mapping[str, str] = {}
    if any((path / name).is_file() for name in AUTO_FILES):
        found = auto_tokenizer.read(path)
        out = from_found(found)
        named = found.named
    elif (path / "tekken.json").is_file():
        out = from_tekken(read_json(path / "tekken.json", required=False))
        out.flags |= lib.LLM_ADD_BOS * (out.bos is not None)
    elif (path / "tiktoken.model").is_file():
        out, named = from_tiktoken_model(path)
    else:
        raise ValueError(f"{path} has none of {', '.join(TOKENIZER_FILES)}")
    stops = [] if out.eos is None else [out.eos]
    for name, side in zip(("bos", "eos"), out.around, strict=True):
        number = out.find(named.get(f"{name}_token"))
        if number is not None and len(side) != 1:
            setattr(out, name, number)
        if number is not None and name == "eos":
            stops.append(number)
    main = read_json(path / "config.json", required=False)
    inner = main.get("text_config")  # of models that also see
    for source in (read_json(path / "generation_config.json", required=False), main, inner):
        stops += as_ids(source.get("eos_token_id")) if isinstance(source, dict) else []
    add_stops(out, stops, "\n".join(chat_templates(path).values()) if template is None else template)
    return out.sections()


def from_found(found: Found) -> Vocabulary:
    """A Vocabulary from what auto_tokenizer found."""
    if found.pieces is None:
        return from_tokenizer_json(found.spec)
    out = from_sentencepiece(found.pieces, "tokenizer.model", found.legacy)
    users = [item for item in out.added if not item.special]
    out.added = []
    read_added(out, found.spec["added_tokens"], "the tokenizer's files: an added token")
    out.added += users  # also one that is an added token: what is cut out first
    out.program = new_program(True, any(item.single_word for item in out.added))
    for item in out.added:
        item.match = item.text.replace(METASPACE, " ") if item.normalized else ""
    out.special = {item.id for item in out.added if item.special}
    read_post_processor(out, [found.spec["post_processor"]])
    return out
