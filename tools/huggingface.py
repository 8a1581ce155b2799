"""Reads a Hugging Face model directory: config.json, one or many safetensors files, the chat template and the
special tokens.

Pickle files (pytorch_model.bin) are never opened. Hub names are downloaded by huggingface_hub into its own
cache."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from . import sources, vocabulary
from .sources import ConvertError, File, FileTensor, Source

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What conversion needs
FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja", "README.md")
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library itself


def read_json(path: Path, required: bool = True) -> dict:
    """The object in a JSON file; {} when it is missing and not required."""
    if not path.exists() and not required:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(f"{path.parent}: there is no {path.name} in it") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConvertError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: not a JSON object")
    return value


def read_safetensors(path: Path, files: list[File]) -> dict[str, sources.Tensor]:
    """The tensors of a safetensors file: eight bytes with the header's length, the header in JSON, the data.
    Every tensor is checked to lie inside the file and to have the size of its shape; what else the library
    asks of a file (no gaps, no overlaps), it is asked itself. Its own reading knows neither bf16 nor a bound
    on memory."""
    file = File(path)
    files.append(file)
    if file.size < 8:
        raise ConvertError(f"{path}: truncated, {file.size} bytes are no safetensors file")
    length = int(file.read(0, 8).view("<u8")[0])
    if length > min(MAX_HEADER, file.size - 8):
        raise ConvertError(
            f"{path}: truncated or not a safetensors file (its header would be {length} bytes)"
        )
    try:
        header = json.loads(file.read(8, length).tobytes())
        header.pop("__metadata__", None)
        entries = {
            name: (
                str(entry["dtype"]),
                tuple(int(n) for n in entry["shape"]),
                *map(int, entry["data_offsets"]),
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(f"{path}: the safetensors header cannot be read ({error!r})") from None
    tensors: dict[str, sources.Tensor] = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if dtype not in sources.PLAIN:
            raise ConvertError(f"{path.name}: {name} is {dtype}; {', '.join(sources.PLAIN)} can be converted")
        width, decode = sources.PLAIN[dtype]
        count = 1
        for n in shape:
            count *= n
        if begin < 0 or min(shape, default=1) < 0 or end - begin != count * width:
            raise ConvertError(
                f"{path}: {name} has {end - begin} bytes, its shape {shape} needs {count * width}"
            )
        if 8 + length + end > file.size:
            raise ConvertError(f"{path}: truncated, {name} ends at byte {8 + length + end} of {file.size}")
        cols = shape[-1] if len(shape) > 1 else 1
        tensors[name] = FileTensor(name, shape or (1,), file, 8 + length + begin, cols * width, decode)
    try:
        with safe_open(path, framework="numpy"):
            return tensors
    except SafetensorError as error:
        raise ConvertError(f"{path}: {error}") from None


def read_shards(folder: Path, files: list[File]) -> dict[str, sources.Tensor]:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
            hint = f" ({sources.listing(pickles, 3)}: pickle files are not read)" if pickles else ""
            raise ConvertError(f"{folder}: there is no model.safetensors in it{hint}")
        if len(paths) > 1:
            single = folder / "model.safetensors"
            if single not in paths:
                raise ConvertError(f"{folder}: several safetensors files and no model.safetensors.index.json")
            paths = [single]
        return read_safetensors(paths[0], files)
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise ConvertError(f"{index}: it has no weight_map from tensors to files")
    tensors: dict[str, sources.Tensor] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard:
            raise ConvertError(f"{index}: {shard!r} is not a plain file name")
        if not (folder / shard).exists():
            raise ConvertError(f"{folder}: the shard {shard} is missing")
        found = read_safetensors(folder / shard, files)
        lost = sorted(name for name, place in where.items() if place == shard and name not in found)
        if lost:
            raise ConvertError(
                f"{folder / shard}: it does not have {sources.listing(lost)}, which the index expects there"
            )
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ConvertError(f"{folder / shard}: {sources.listing(twice)} also occurs in another shard")
        tensors.update(found)
    return tensors


def text_of(token: object) -> str | None:
    """A special token in tokenizer_config.json is its text, or an object that has it under "content"."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def license_of(folder: Path, config: dict) -> str | None:
    """The licence that the model card's front matter (README.md) or config.json states."""
    card = folder / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8", errors="replace")
        front = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
        line = front and re.search(r"^license(?:_name)?:[ \t]*(\S.*?)[ \t\r]*$", front[1], re.MULTILINE)
        if line:
            return line[1].strip("\"'")
    value = config.get("license")
    return value if isinstance(value, str) else None


def open_directory(folder: Path, name: str | None = None) -> Source:
    """The model in a directory."""
    config = read_json(folder / "config.json")
    source = Source(path=folder, name=name or folder.resolve().name, config=config, tensors={})
    try:
        source.tensors = read_shards(folder, source.files)
    except BaseException:
        source.close()
        raise
    tokenizer_config = read_json(folder / "tokenizer_config.json", required=False)
    try:
        source.templates = vocabulary.chat_templates(folder)
    except ValueError as error:
        raise ConvertError(f"{folder}: the chat template cannot be read ({error})") from None
    tokens = read_json(folder / "special_tokens_map.json", required=False) | tokenizer_config
    source.special_tokens = {
        key: text for key in SPECIAL_TOKENS if (text := text_of(tokens.get(key))) is not None
    }
    for key, value in (("license", license_of(folder, config)), ("description", config.get("description"))):
        if isinstance(value, str) and value.strip():
            source.about[key] = value
    if any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model", "tekken.json")):
        source.tokenizer = lambda template: vocabulary.from_directory(folder, template)
    return source


def is_name(text: str) -> bool:
    """Whether this may be the name of a model on the hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def download(repository: str, patterns: Sequence[str] = FILES) -> Path:
    """Downloads the files of a model on the hub that match; the folder that they are in."""
    try:
        import huggingface_hub
    except ImportError:
        raise sources.need("huggingface_hub", f"downloading {repository}") from None
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # the library has a dozen kinds, and requests' own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConvertError(f"{repository}: cannot be downloaded ({reason[0]})") from None
