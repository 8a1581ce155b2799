"""Reads a Hugging Face model directory: config.json, one or many safetensors files, the chat template and the
special tokens.

Pickle files (pytorch_model.bin) are never opened. Hub names are downloaded by huggingface_hub into its own
cache."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from . import embedding, huggingface_tokenizer, quantized, sources
from .sources import ConvertError, File, FileTensor, Source, shown

TENSORS = ".safetensors"
SINGLE, ADAPTER = "model" + TENSORS, "adapter_model" + TENSORS

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# How the names of a model begin that was saved without its output matrix: embeddings are made so
BASE = ("embed_tokens.", "tok_embeddings.", "layers.", "norm.", "rotary_emb.")
# What conversion needs
FILES = ("*.json", "*.safetensors", "tokenizer.model", "tiktoken.model", "merges.txt", "*.jinja", "README.md")
INDEX = ".index.json"  # the end of the name of a file that says which shard has which tensor
# What the tokenizer is read from by other code and libraries
READ_WITH_TOKENIZER = (
    *huggingface_tokenizer.TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "generation_config.json",
)


def read_safetensors(
    path: Path, files: list[File], dtypes: Mapping[str, sources.Dtype] = sources.PLAIN
) -> dict[str, FileTensor]:
    """The tensors of a safetensors file: eight bytes with the header's length, the header in JSON, the data.
    Every tensor is checked to lie inside the file and to have the size of its shape; what else the library
    asks of a file (no gaps, no overlaps), it is asked itself. Its own reading knows neither bf16 nor a bound
    on memory."""
    file = File(path)
    files.append(file)
    if file.size < 8:
        raise ConvertError(f"{path}: truncated, {file.size} bytes are no safetensors file")
    length = int(file.read(0, 8).view("<u8")[0])
    if length > min(sources.MAX_JSON, file.size - 8):
        raise ConvertError(
            f"{path}: truncated or not a safetensors file (its header would be {length} bytes)"
        )
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    try:
        header = json.loads(file.read(8, length).tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = map(int, entry["data_offsets"])
            entries[name] = str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), begin, end
    except sources.MALFORMED as error:
        raise ConvertError(f"{path}: the safetensors header cannot be read ({error!r})") from None
    tensors: dict[str, FileTensor] = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if dtype not in dtypes:
            known = ", ".join(dtypes)
            raise ConvertError(f"{path.name}: {name} is {dtype[:40]}; {known} can be converted")
        width, decode = dtypes[dtype]
        needed = math.prod(shape) * width
        if begin < 0 or min(shape, default=1) < 0 or end - begin != needed:
            raise ConvertError(
                f"{path}: {name} has {shown(end - begin)} bytes, "
                f"its shape {shown(shape)} needs {shown(needed)}"
            )
        if 8 + length + end > file.size:
            raise ConvertError(
                f"{path}: truncated, {name} ends at byte {shown(8 + length + end)} of {file.size}"
            )
        cols = shape[-1] if len(shape) > 1 else 1
        at = 8 + length + begin
        tensors[name] = FileTensor(name, shape or (1,), file, at, cols * width, decode, dtype)
    try:
        with safe_open(path, framework="numpy"):
            return tensors
    except (SafetensorError, UnicodeError) as error:
        raise ConvertError(f"{path}: {error}") from None


def weights_file(folder: Path, config: Mapping[str, Any]) -> Path:
    """The safetensors file of a model, or the index of its shards, in the order in which transformers takes
    them: the one that config.json names, model.safetensors, model.safetensors.index.json. Without these, the
    only safetensors file of another name."""
    given = config.get("transformers_weights")
    if given is not None:
        plain = isinstance(given, str) and Path(given).name == given and "\0" not in given
        if not isinstance(given, str) or not plain or not given.endswith((TENSORS, TENSORS + INDEX)):
            raise ConvertError(
                f"{folder / 'config.json'}: transformers_weights is {shown(given)}, "
                "not the name of a safetensors file beside it"
            )
        if not os.path.lexists(folder / given):
            raise ConvertError(f"{folder}: there is no {given} in it, which config.json names")
        return folder / given
    for name in (SINGLE, SINGLE + INDEX):
        if (folder / name).is_file():
            return folder / name
    for name in (SINGLE, SINGLE + INDEX):
        sources.check_file(folder / name)  # says what it is instead of a file
    paths = sorted(path for path in folder.glob("*" + TENSORS) if path.name != ADAPTER)
    shards = [path.name for path in paths if re.search(r"-\d+-of-\d+\.", path.name)]
    if len(paths) == 1 and not shards:
        return paths[0]
    if shards:
        raise ConvertError(f"{folder}: it has {sources.listing(shards, 3)}, but no {SINGLE}{INDEX}")
    if paths:
        raise ConvertError(f"{folder}: several safetensors files and no {SINGLE}{INDEX}")
    pickles = sorted(path.name for end in ("*.bin", "*.pt", "*.pth") for path in folder.glob(end))
    hint = f" ({sources.listing(pickles, 3)}: pickle files are not read)" if pickles else ""
    if (folder / ADAPTER).exists():
        hint = f" ({ADAPTER} is a LoRA adapter: convert the model that it is for, with this as --lora)"
    raise ConvertError(f"{folder}: there is no {SINGLE} in it{hint}")


def read_weights(source: Source) -> dict[str, sources.Tensor]:
    """The tensors of the model in a directory."""
    dtypes = sources.PLAIN
    if quantized.section_of(source.config) is not None:
        dtypes = sources.PLAIN | sources.STORED
    path = weights_file(source.path, source.config)
    if path.name.endswith(INDEX):
        tensors = read_shards(path, source.files, dtypes)
    else:
        index = path.with_name(path.name + INDEX)
        if index.exists():
            source.notes.append(f"{path.name} was read; {index.name} beside it was not, as in transformers")
        tensors = read_safetensors(path, source.files, dtypes)
    return quantized.dequantized(source.config, tensors)


def read_shards(
    index: Path, files: list[File], dtypes: Mapping[str, sources.Dtype] = sources.PLAIN
) -> dict[str, FileTensor]:
    """The tensors of the shards that an index names."""
    folder, where = index.parent, sources.read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise ConvertError(f"{index}: it has no weight_map from tensors to files")
    tensors: dict[str, FileTensor] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or "\0" in shard:
            raise ConvertError(f"{index}: {shown(shard)} is not a plain file name")
        if not os.path.lexists(folder / shard):
            raise ConvertError(f"{folder}: the shard {shard} is missing")
        found = read_safetensors(folder / shard, files, dtypes)
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


def is_base(names: Iterable[str]) -> bool:
    """Whether a checkpoint is of a model without its output matrix, saved alone, whose names lack
    "model."."""
    names = list(names)
    return bool(names) and all(name.startswith(BASE) for name in names)


def text_of(token: object) -> str | None:
    """A special token in tokenizer_config.json is its text, or an object that has it under "content"."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def license_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The licence that the model card's front matter (README.md) or config.json states."""
    card = folder / "README.md"
    if card.is_file():
        with card.open("rb") as file:
            text = file.read(1 << 16).decode("utf-8", "replace")
        front = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
        for line in re.finditer(r"^license(?:_name)?:(.*)$", front[1] if front else "", re.MULTILINE):
            if line[1].strip():
                return line[1].strip().strip("\"'")
    value = config.get("license")
    return value if isinstance(value, str) else None


def open_directory(folder: Path, name: str | None = None) -> Source:
    """The model in a directory."""
    if not os.path.lexists(folder / "config.json") and (folder / "adapter_config.json").exists():
        raise ConvertError(
            f"{folder}: it is a LoRA adapter, without a config.json: convert the model that it is for, with "
            "this as --lora"
        )
    config = quantized.with_own_file(sources.read_json(folder / "config.json"), folder)
    source = Source(path=folder, name=name or folder.resolve().name or "model", config=config, tensors={})
    try:
        source.tensors = read_weights(source)
        source.base = is_base(source.tensors)
        if source.base:
            source.tensors = {f"model.{name}": tensor for name, tensor in source.tensors.items()}
            source.native = lambda name: name.removeprefix("model.")
        read_texts(source)
    except BaseException:
        source.close()
        raise
    return source


def read_texts(source: Source) -> None:
    """What a directory has beside the weights: templates, special tokens, the tokenizer, licence and
    description."""
    folder, config = source.path, source.config
    for name in ("chat_template.jinja", "chat_template.json"):
        sources.check_file(folder / name)
    tokenizer_config = sources.read_json(folder / "tokenizer_config.json", required=False)
    try:
        source.templates = huggingface_tokenizer.chat_templates(folder)
    except sources.MALFORMED as error:
        raise ConvertError(f"{folder}: the chat template cannot be read ({error})") from None
    tokens = sources.read_json(folder / "special_tokens_map.json", required=False) | tokenizer_config
    source.special_tokens = {
        key: text for key in SPECIAL_TOKENS if (text := text_of(tokens.get(key))) is not None
    }
    for key, value in (("license", license_of(folder, config)), ("description", config.get("description"))):
        if isinstance(value, str) and value.strip():
            source.about[key] = value
    source.embedding = embedding.recipe(folder)
    if any(os.path.lexists(folder / file) for file in huggingface_tokenizer.TOKENIZER_FILES):
        source.tokenizer = lambda template: tokenizer(folder, template)


def tokenizer(folder: Path, template: str | None) -> dict[int, bytes]:
    """huggingface_tokenizer.from_directory, with pointers, pipes and the like refused."""
    for name in READ_WITH_TOKENIZER:
        sources.check_file(folder / name)
    return huggingface_tokenizer.from_directory(folder, template)


def download(name: str, patterns: Sequence[str] = FILES) -> Path:
    """What there is no file of here is looked for on the hub, if it may be a name there: downloads the files
    that match; the folder that they are in."""
    if name.startswith(".") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConvertError(f"{name}: no such file or directory")
    try:
        import huggingface_hub
    except ImportError:
        reason = str(sources.need("huggingface_hub", f"downloading {name}"))
        raise ConvertError(f"{name}: no such file or directory; as a name on the hub: {reason}") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the library has a dozen kinds, and requests' own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConvertError(
            f"no such file or directory here; on the hub {name}: cannot be downloaded ({lines[0]})"
        ) from None
