"""pyllm-convert: a model in someone else's format becomes one flat file.

The steps: open the source; read its configuration by the table of families; merge adapters; check every
tensor's name and shape; make the sections; write. Everything that can be refused without reading the weights
is refused before the first byte is written, and a conversion that fails leaves no file behind."""

from __future__ import annotations

import argparse
import errno
import functools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TextIO

import numpy as np
from pyllm._llm import lib

from pyllm import files

from . import calibrate as calibration
from . import (
    chat_parts,
    eight_bits,
    embedding,
    flatfile,
    four_bits,
    gguf_file,
    huggingface,
    llama2c,
    lora,
    sources,
    verify_tokenizer,
)
from . import plan as planning
from .families import Family
from .model import Model, describe
from .sources import ConvertError, Source
from .tensors import BIASES, absent, canonical, named, parts_of, renamed
from .vocabulary import added_ids

DTYPES = tuple(flatfile.DTYPES)
CALIBRATED = ("int8", "int4")
MAX_LINE = 2000  # characters of an error
MAX_MISSING = 1000  # tensors; a configuration may name millions


@dataclass
class Report:
    """What a conversion made.

    The error of a weight is |w - s|, where w is the source's value as float32 (for a GGUF file what the gguf
    library dequantizes it to; adapters merged) and s the value that the flat file holds. It is taken over all
    weights of all matrices, padding not counted; vectors (norms, biases) are kept in float32 and have
    none."""

    path: Path
    bytes: int  # of the file
    parameters: int  # numbers in the model, tied embeddings once, padding not counted
    max_error: float  # the largest error of a weight
    mean_error: float  # the mean error
    max_error_tensor: str  # where max_error is, as the source spells it
    max_error_share: float  # max_error / the largest magnitude in that tensor
    mean_error_share: float  # the sum of all errors / the sum of all magnitudes
    notes: list[str] = field(default_factory=list)  # what a user should know

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.1f} MB"
        where = (
            f" (in {self.max_error_tensor}, {self.max_error_share:.2%} of its largest weight)"
            if self.max_error
            else ""
        )
        return "\n".join(
            [
                *self.notes,
                f"{self.path}: {size}, {self.parameters:,} parameters",
                f"largest error {self.max_error:.3g}{where}, mean {self.mean_error:.3g} "
                f"({self.mean_error_share:.3%} of the mean weight)",
            ]
        )


# ---------------------------------------------------------------------------------------------------------
# Opening and checking


def open_source(source: str | os.PathLike[str]) -> Source:
    """The reader for a directory, a GGUF file, a llama2.c checkpoint or a name on the hub."""
    path = Path(source)
    if path.is_dir():
        return huggingface.open_directory(path)
    if not os.path.lexists(path):
        return open_name(os.fsdecode(source))
    file = sources.File(path)  # refuses what is no file, and what is not the file itself
    head = file.read(0, min(file.size, 28)).tobytes()
    file.close()
    if head[:4] == b"GGUF":
        return gguf_file.open_file(path)
    if head[:8] == flatfile.MAGIC:
        raise ConvertError(f"{path} is a flat file already")
    if path.suffix == ".safetensors":
        raise ConvertError(f"{path} is only the weights; give the directory that also has config.json")
    if llama2c.looks_like(head):
        return llama2c.open_file(path)
    raise ConvertError(f"{path}: not a GGUF file, not a llama2.c checkpoint, and not a directory")


def open_name(name: str) -> Source:
    """The model of this name on the hub, which is no file here."""
    return huggingface.open_directory(huggingface.download(name), name)


def tokenizer_sections(path: Path, vocab_size: int, template: str | None) -> dict[int, bytes]:
    """The tokenizer from --tokenizer: a directory, or a llama2.c tokenizer.bin."""
    if path.is_dir():
        return huggingface.tokenizer(path, template)
    if os.path.lexists(path):
        return llama2c.tokenizer(path, vocab_size, template)
    raise ConvertError(f"{path}: no such tokenizer, it is no file or directory")


def slices(tensor: sources.Tensor) -> list[tuple[int, int]]:
    """All its rows, some at a time."""
    step = max(1, flatfile.JOB // max(1, tensor.cols))
    return [(row, min(row + step, tensor.rows)) for row in range(0, tensor.rows, step)]


def all_zero(tensor: sources.Tensor) -> bool:
    return not any(tensor.read(*rows).any() for rows in slices(tensor))


def same(one: sources.Tensor, other: sources.Tensor) -> bool:
    """Whether two matrices have the same values."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(*rows), other.read(*rows)) for rows in slices(one))


def settle_tie(model: Model, tensors: dict[str, sources.Tensor], base: bool = False) -> None:
    """Output matrix and embedding, the way PreTrainedModel.tie_weights of transformers 5 does it: stored
    twice they are tied only if they are equal; stored once, the one serves as both. A base model (see
    Source.base) that is not tied has no output matrix, and is for embeddings only."""
    if not model.shape.tied:
        model.headless = base
        model.shape = replace(model.shape, tied=base)
        return
    embed, output = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    if embed is None and output is not None:
        tensors["model.embed_tokens.weight"] = output
    if embed is not None and output is not None and not same(embed, output):
        model.shape = replace(model.shape, tied=False)
        model.notes.append(
            "the configuration ties the output matrix to the embedding, but both are stored and differ: "
            "kept apart"
        )
    else:
        tensors.pop("lm_head.weight", None)


def collect(
    source: Source, model: Model, layout: flatfile.Layout, tensors: dict[str, sources.Tensor]
) -> list[tuple[flatfile.Place, list[sources.Tensor]]]:
    """The parts of each tensor of the flat file. Names every tensor that is missing, unused, or of the wrong
    shape."""
    plan: list[tuple[flatfile.Place, list[sources.Tensor]]] = []
    missing, wrong, used = [], [], set()
    for place in flatfile.places(layout):
        parts, rows = [], 0
        for name, shape in parts_of(model, place.tensor, place.layer, place.expert):
            used.add(name)
            tensor = tensors.get(name) or absent(model, name, shape)
            rows += shape[0]
            if tensor is None:
                missing.append(spell(source, model.family, name))
            elif tensor.shape != shape:
                wrong.append(f"{tensor.name} is {tensor.shape}, expected {shape}")
            else:
                parts.append(tensor)
        if (place.rows * place.cols if place.dtype == lib.LLM_FP32 else place.rows) != rows:
            raise ConvertError(f"{place.tensor}: the table of families has {rows} rows, file.c {place.rows}")
        plan.append((place, parts))
        if len(missing) > MAX_MISSING:
            names = sources.listing(list(dict.fromkeys(missing))[:8], 8)
            raise ConvertError(f"more than {MAX_MISSING} tensors are missing: {names}, ...")
    missing = list(dict.fromkeys(missing))  # experts may share a tensor
    if missing:
        raise ConvertError(f"{plural(len(missing), 'is', 'are')} missing: {sources.listing(missing)}")
    if wrong:
        raise ConvertError(f"{plural(len(wrong), 'has', 'have')} the wrong shape: {sources.listing(wrong)}")
    unused = [
        name for name in tensors.keys() - used if not (name.endswith(BIASES) and all_zero(tensors[name]))
    ]
    if unused:
        strange = sorted(tensors[name].name for name in unused)
        raise ConvertError(
            f"{plural(len(strange), 'is', 'are')} not part of a {model.family.name} model "
            f"as it is known here: {sources.listing(strange)}"
        )
    return plan


def plural(n: int, singular: str, several: str) -> str:
    return f"1 tensor {singular}" if n == 1 else f"{n} tensors {several}"


def spell(source: Source, family: Family, name: str) -> str:
    """How the source would spell a name of tensors.TENSORS."""
    if source.native(name) != name:
        return source.native(name)
    name = re.sub(r"\.[kv]_b_proj\.\d+\.", ".kv_b_proj.", name)
    spelt = name
    back = {ours: theirs for theirs, ours in reversed(family.rename)}  # one way for each name: the first
    for ours, theirs in () if source.canonical else back.items():
        spelt = spelt.replace(ours, theirs)
    return spelt if renamed(family, spelt) == name else name


def about(source: Source, model: Model, dtype: str, adapters: Sequence[Path]) -> str:
    """The text of LLM_ABOUT: lines of "key: value", without dates or folders, so that the same source gives
    the same bytes."""
    lines: dict[str, str] = {
        "family": model.family.name,
        "architecture": model.architecture,
        "source": source.name if source.path.is_dir() else source.path.name,
        "lora": ", ".join(adapter.resolve().name for adapter in adapters),
        "license": source.about.get("license", ""),
        "description": source.about.get("description", ""),
        "dtype": dtype,
    }
    return "".join(f"{key}: {one_line(value)}\n" for key, value in lines.items() if value)


def one_line(text: str) -> str:
    """A text for a line of UTF-8: without line breaks and NUL, and with U+FFFD for what is no character, such
    as a byte of a file name that is not UTF-8."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(text.replace("\0", " ").split())


def utf8(text: str, what: str) -> bytes:
    """A text that must be kept as it is."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConvertError(f"{what} cannot be written as UTF-8 ({error.reason})") from None


# ---------------------------------------------------------------------------------------------------------
# Converting


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "fp16",
    tokenizer: str | os.PathLike[str] | bool | None = None,
    lora: Sequence[str | os.PathLike[str]] = (),
    chat_template: str | os.PathLike[str] | None = None,
    name: str | None = None,
    context: int | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Report:
    """Converts a model to a flat file.

    source         a Hugging Face directory or hub name, a GGUF file, or a llama2.c checkpoint
    out            the file to write, replaced only when complete; None: the source's name + ".llm" in the
                   current directory
    dtype          of the matrices: "fp16", "int8", or "int4", which leaves embedding, output and the down
                   projections of the first twelfth of the layers in 8 bits
    calibrate      int8 and int4: a text, UTF-8, that shows what the model's products are to be good at; None:
                   one that comes with pyllm; "none": weights are rounded without data, which is faster and
                   less exact. What has four bits in the source is taken as it is where its grid fits.
    tokenizer      None: the source's own, which must exist; False: none; a path: a tokenizer directory, or
                   llama2.c's tokenizer.bin
    lora           PEFT adapter directories, merged in this order
    chat_template  a file with a Jinja template that replaces the source's, also in what ends a generation
    name           the model's name; None: as the source says
    context        positions, at most the model's own; None: as many, but for models with rotary factors for
                   short and for long texts (Phi-3.5) as many as the short ones are for
    quiet          no progress bar

    Raises ConvertError (a ValueError) or OSError, and then no file has been written."""
    if dtype not in flatfile.DTYPES:
        raise ConvertError(f"dtype {dtype!r} is not known; {', '.join(DTYPES)} are")
    if calibrate is not None and dtype not in CALIBRATED:
        raise ConvertError(f"calibrate is for {' and '.join(CALIBRATED)}, not for {dtype}")
    given = None if tokenizer is None or isinstance(tokenizer, bool) else Path(tokenizer)
    with documented_errors(source):
        opened = open_source(source)
        try:
            return convert_source(
                opened,
                Path(out) if out is not None else None,
                dtype,
                False if tokenizer is False else given,
                [Path(adapter) for adapter in lora],
                Path(chat_template) if chat_template else None,
                name,
                context,
                calibrate,
                quiet,
            )
        finally:
            opened.close()


@contextmanager
def documented_errors(source: str | os.PathLike[str]) -> Iterator[None]:
    """Makes ConvertErrors of what can be wrong anywhere in a source."""
    try:
        yield
    except ConvertError:
        raise
    except ValueError as error:
        raise ConvertError(f"{os.fsdecode(source)}: {error}") from error
    except RecursionError as error:
        raise ConvertError(f"{os.fsdecode(source)}: something in it is nested too deeply") from error
    except MemoryError as error:
        raise ConvertError(f"{os.fsdecode(source)}: it needs more memory than there is") from error


def convert_source(
    source: Source,
    out: Path | None,
    dtype: str,
    tokenizer: Path | Literal[False] | None,
    adapters: list[Path],
    chat_template: Path | None,
    name: str | None,
    context: int | None,
    calibrate: str | os.PathLike[str] | None,
    quiet: bool,
) -> Report:
    """convert, with the source opened."""
    model = describe(source.config, context)
    model.notes += source.notes
    if out is None:
        out = (
            Path(source.name.rsplit("/", 1)[-1] + ".llm")
            if source.path.is_dir()
            else Path(source.path.stem + ".llm")
        )
    check_destination(out, source)

    tensors = named(model, source.tensors, rename=not source.canonical)
    settle_tie(model, tensors, source.base)
    for adapter in adapters:
        count = lora.merge(adapter, model.family, tensors, model.shape.tied)
        model.notes.append(f"merged {count} matrices of the adapter {adapter.name}")
    tensors = canonical(model, tensors)

    sections = {
        lib.LLM_NAME: one_line(name or source.name).encode(),
        lib.LLM_ABOUT: about(source, model, dtype, adapters).encode(),
    }
    recipe = source.embedding
    if model.headless:
        recipe = (recipe or embedding.told("last")) | {"generates": False}
        model.notes.append(f"{embedding.HEADLESS}: it makes embeddings, and generates nothing")
    if model.logit_scale != 1:  # the norm's numbers have it, so states have it too
        recipe = (recipe or embedding.told("last")) | {"scale": 1 / model.logit_scale}
    if recipe is not None:
        model.notes += [f"embeddings: {recipe['refused']}"] if "refused" in recipe else []
        sections[lib.LLM_EMBEDDING] = json.dumps(recipe, ensure_ascii=False).encode()
    templates = source.templates
    if chat_template:
        templates = {"default": sources.read_text(chat_template)}
    check: Callable[[Path], None] = lambda path: None  # noqa: E731
    if tokenizer is not False:
        ends = "\n".join(templates.values()) or None
        sections |= make_tokenizer(source, tokenizer, model.shape.vocab_size, ends)
        folder = tokenizer or source.path
        if folder.is_dir():

            def check(path: Path) -> None:
                try:
                    model.notes.append(verify_tokenizer.verify(path, folder))
                except sources.MALFORMED as error:
                    raise ConvertError(
                        f"the tokenizer of {folder} cannot be converted exactly: {error}"
                    ) from None

    if model.headless:
        sections[lib.LLM_CHAT_WHY] = embedding.HEADLESS.encode()
    else:
        sections |= make_chat(templates, source.special_tokens, model.notes)

    layout = flatfile.finish_layout(model.shape, dtype, sections)
    plan = collect(source, model, layout, tensors)
    threads = max(1, lib.llm_default_threads())
    text = calibration_text(calibrate, tokenizer is not False, model.notes) if dtype in CALIBRATED else None
    first = flatfile.finish_layout(model.shape, "int8", sections) if text and dtype == "int4" else None
    again = [item for item in plan if in_a_layer(item[0])] if text and dtype == "int8" else []
    size = layout.header.file_size + (first.header.file_size if first else 0)
    work = size + sum(place.size for place, _ in again)
    with progress_bar(work, quiet) as progress, ExitStack() as stack:
        path = None
        if first is not None:  # the model that runs over the text
            folder = files.destination(out)[0].parent
            flatfile.check_space(out, size)
            path = Path(stack.enter_context(TemporaryDirectory(prefix=".pyllm-", dir=folder))) / "int8.llm"
            flatfile.write(
                path, first, model.angles, collect(source, model, first, tensors), threads, progress
            )

        def later(fd: int, temporary: Path) -> dict[str, Any]:
            if again:
                return eight_bits.write(fd, again, threads, progress, temporary, text or "", model.notes)
            matrices = [item for item in plan if item[0].dtype == lib.LLM_INT4]
            return four_bits.write(fd, matrices, threads, progress, path, text or "", model.notes)

        errors = flatfile.write(out, layout, model.angles, plan, threads, progress, check, later)
    return report(out, layout, plan, errors, model.notes)


def in_a_layer(place: flatfile.Place) -> bool:
    """Whether it is an int8 matrix of a layer: embedding and output are not shown to who calibrates."""
    is_int8: bool = place.dtype == lib.LLM_INT8_ROTATED
    return is_int8 and four_bits.NUMBERS[place.tensor] >= lib.LLM_ATTN_NORM


def calibration_text(
    calibrate: str | os.PathLike[str] | None, has_tokenizer: bool, notes: list[str]
) -> str | None:
    """The text to calibrate with; None: none is wanted, or there is no tokenizer that could read it."""
    if calibrate == "none":
        return None
    if not has_tokenizer:
        if calibrate is not None:
            raise ConvertError(f"{calibrate} cannot be calibrated with: there is no tokenizer to read it by")
        notes.append(
            "weights are rounded without data: without a tokenizer there is no text to calibrate with"
        )
        return None
    return sources.read_text(Path(calibrate) if calibrate is not None else calibration.TEXT)


def make_tokenizer(
    source: Source, tokenizer: Path | None, vocab_size: int, template: str | None
) -> dict[int, bytes]:
    """The tokenizer's sections; ConvertError when there is none or it does not fit."""
    read = source.tokenizer
    if tokenizer is not None:
        read = functools.partial(tokenizer_sections, tokenizer, vocab_size)
    if read is None:
        raise ConvertError(
            f"{source.path}: no tokenizer found; give one with --tokenizer, or --no-tokenizer to go without"
        )
    try:
        found = read(template)
        check_vocabulary(found, vocab_size)
        return found
    except ConvertError:
        raise
    except sources.MALFORMED as error:
        said = str(error) if isinstance(error, ValueError) else f"not understood, {error!r}"
        where = tokenizer or source.path
        raise ConvertError(f"the tokenizer of {where} cannot be converted: {said}") from None


def check_vocabulary(sections: Mapping[int, bytes], vocab_size: int) -> None:
    """Refuses a tokenizer with ordinary tokens that the model has no row for. Control tokens and added ones
    (a <pad> one past the last row) are common there, and harmless as long as nobody writes them: the engine's
    error names them, where transformers fails too."""
    beyond = np.frombuffer(sections.get(lib.LLM_TOKEN_TYPES, b""), np.uint8)[vocab_size:]
    added = added_ids(sections.get(lib.LLM_ADDED, b""))
    ordinary = np.flatnonzero((beyond & (lib.LLM_TOKEN_SPECIAL | lib.LLM_TOKEN_ABSENT)) == 0) + vocab_size
    if found := [int(i) for i in ordinary if int(i) not in added]:
        raise ConvertError(
            f"the tokenizer is of another model: it has a token {found[0]}, "
            f"and the model's vocabulary ends at {vocab_size - 1}"
        )


def make_chat(
    templates: Mapping[str, str], special_tokens: Mapping[str, str], notes: list[str]
) -> dict[int, bytes]:
    """The sections of the chat templates, of which "default" and "tool_use" are kept."""
    if others := sorted(templates.keys() - {"default", "tool_use"}):
        notes.append(f"chat templates that are left out: {', '.join(others)}")
    template, tools = (
        with_tokens(templates.get(name, ""), special_tokens) for name in ("default", "tool_use")
    )
    what = "the chat template"
    sections = {lib.LLM_CHAT_TEMPLATE_TOOLS: utf8(tools, what)} if tools not in ("", template) else {}
    if not template:
        return sections | {lib.LLM_CHAT_WHY: b"the model has no chat template"}
    sections[lib.LLM_CHAT_TEMPLATE] = utf8(template, what)
    parts, why = chat_parts.derive(template, special_tokens)
    if parts is None:
        notes.append(f"the command's chat will refuse this model: {why}")
        return sections | {lib.LLM_CHAT_WHY: one_line(why).encode()}
    if why:
        notes.append(why)
    sections[lib.LLM_CHAT_PARTS] = packed(parts)
    if "enable_thinking" in template:
        parts, why = chat_parts.derive(template, {**special_tokens, "enable_thinking": False})
        if parts is None:
            notes.append(f"the command's chat cannot switch off this model's thinking: {why}")
        else:
            sections[lib.LLM_CHAT_NO_THINKING] = packed(parts)
    return sections


def packed(parts: Sequence[str]) -> bytes:
    """The parts of a chat template as a section has them."""
    return b"".join(utf8(part, "a part of the chat template") + b"\0" for part in parts)


def with_tokens(template: str, special_tokens: Mapping[str, str]) -> str:
    """The template, with lines before it that set the special tokens which it names and the file does not
    have: all but BOS and EOS."""
    lines = [
        f"{{% set {name} = {name} | default({json.dumps(text, ensure_ascii=False)}) %}}\n"
        for name, text in special_tokens.items()
        if name not in ("bos_token", "eos_token") and re.search(rf"\b{name}\b", template)
    ]
    return "".join(lines) + template


def check_destination(out: Path, source: Source) -> None:
    """Refuses an output path that cannot be one."""
    try:
        _, found = files.destination(out)
    except FileNotFoundError as error:
        raise ConvertError(f"{error.filename}: {error.strerror}") from None
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL):
            raise ConvertError(f"{out} is {error.strerror}") from None
        raise
    if found and any(os.path.samestat(found, os.fstat(file.fd)) for file in source.files):
        raise ConvertError(f"{out} is part of the source")


def report(
    out: Path,
    layout: flatfile.Layout,
    plan: list[tuple[flatfile.Place, list[sources.Tensor]]],
    errors: dict[str, flatfile.Error],
    notes: list[str],
) -> Report:
    """Sums the errors up."""
    worst = max(errors, key=lambda tensor: errors[tensor].largest)
    total = flatfile.Error()
    for error in errors.values():
        total.add(error)
    return Report(
        path=out,
        bytes=layout.header.file_size,
        parameters=sum(place.rows * place.cols for place, _ in plan),
        max_error=total.largest,
        mean_error=total.total / max(1, total.count),
        max_error_tensor=worst,
        max_error_share=errors[worst].largest / (errors[worst].top or 1),
        mean_error_share=total.total / (total.weight or 1),
        notes=notes,
    )


@contextmanager
def progress_bar(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with bytes written, which a bar on stderr adds up; silent when quiet, when
    stderr is no terminal, and without the tqdm library."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda count: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:

        def advance(count: int) -> None:
            with suppress(OSError):  # a terminal that is gone is no reason to stop
                bar.update(count)

        yield advance


# ---------------------------------------------------------------------------------------------------------
# The command


class Parser(argparse.ArgumentParser):
    """Its own print_help does not say when stdout takes nothing."""

    def print_help(self, file: Any = None) -> None:
        if file is None:
            say(self.format_help().rstrip("\n"))
        else:
            super().print_help(file)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="pyllm-convert",
        description="Converts a model to the flat file that pyllm runs.",
        epilog="The error printed at the end is |w - stored| over all matrix weights, w being the source's "
        "value as float32.",
    )
    p.add_argument(
        "source",
        metavar="SRC",
        help="Hugging Face directory or hub name, GGUF file, or llama2.c .bin checkpoint; with --plan a "
        "config.json is enough",
    )
    p.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        help="the file to write (default: the source's name + .llm, in this directory)",
    )
    p.add_argument(
        "--dtype", choices=DTYPES, default="fp16", help="how matrices are stored (default: %(default)s)"
    )
    p.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a tokenizer directory, or llama2.c's tokenizer.bin, instead of the source's",
    )
    p.add_argument("--no-tokenizer", action="store_true", help="write a file without a tokenizer")
    p.add_argument(
        "--lora",
        metavar="DIR",
        action="append",
        default=[],
        help="merge a PEFT LoRA adapter; may be repeated",
    )
    p.add_argument("--chat-template", metavar="FILE", help="a Jinja chat template instead of the source's")
    p.add_argument("--name", help="the model's name, instead of the source's")
    p.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="positions the model is for, at most its own; without this, Phi-3.5 and its like are converted "
        "for short texts",
    )
    p.add_argument(
        "--calibrate",
        metavar="FILE",
        help="with --dtype int8 and int4, a text of the kind that the model is for, instead of the one that "
        "comes with pyllm; none: weights are rounded without looking at a text, which is faster and less "
        "exact",
    )
    p.add_argument(
        "--plan",
        action="store_true",
        help="write nothing, but print how large the file would be, the memory it needs, and how fast it can "
        "run on this machine; of a model on the hub only config.json is downloaded",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar and no report")
    return p


def ending_signals() -> list[signal.Signals]:
    """The signals that would end this program at once: those that nobody ignores or handles."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    default = (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in found if signal.getsignal(number) in default]


@contextmanager
def terminable() -> Iterator[None]:
    """Makes the signals that end a program exceptions, so that the temporary file is removed; a second one
    does not disturb that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ending_signals()}

    def end(number: int, frame: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printable(text: str, stream: TextIO) -> str:
    """A text for people as this stream can show it: lines without control characters."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    encoding = stream.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def complain(text: str) -> None:
    """One line on stderr, if there is one."""
    line = f"pyllm-convert: {' '.join(text.split())}"
    line = line if len(line) <= MAX_LINE else line[:MAX_LINE] + " ..."  # names come from the file
    try:
        if sys.stderr is not None:
            print(printable(line, sys.stderr), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        abandon(sys.stderr)


def say(text: str) -> None:
    """Text on stdout."""
    if sys.stdout is None:  # it was closed when the program began
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    print(printable(text, sys.stdout))


def abandon(stream: TextIO | None) -> None:
    """Lets Python's own flush at the end go nowhere, after one that failed."""
    if stream is None:
        return
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def main(argv: Sequence[str] | None = None) -> int:
    """The command pyllm-convert. Returns 0, or 1 when the conversion or its report failed; wrong usage exits
    with 2."""
    fill_standard_streams()
    try:
        try:
            with terminable():
                status = command(argv)
        except SystemExit as end:  # of --help, of wrong usage, of a signal
            flush()
            raise end
        flush()
    except OSError as error:
        abandon(sys.stdout)
        if error.errno != errno.EPIPE:  # nobody wanted to read it
            complain(f"cannot write to standard output: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return status


def fill_standard_streams() -> None:
    """Opens standard streams that are closed, to nothing: the next file to be opened would become one."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def flush() -> None:
    """Flushes stdout; OSError when it does not take what was printed."""
    if sys.stdout is not None:
        sys.stdout.flush()


def command(argv: Sequence[str] | None) -> int:
    """main, without what can happen to stdout."""
    p = parser()
    args = p.parse_args(argv)
    if args.no_tokenizer and args.tokenizer:
        p.error("--tokenizer and --no-tokenizer exclude each other")
    if args.context is not None and args.context < 1:
        p.error(f"--context {args.context} is not a positive number")
    if args.calibrate is not None and args.dtype not in CALIBRATED:
        p.error(f"--calibrate is for --dtype {' and '.join(CALIBRATED)}")
    if args.plan and args.out:
        p.error("--plan writes no file")
    try:
        text = run(args)
    except OSError as error:
        reason = error.strerror or str(error)
        complain(f"{error.filename}: {reason}" if error.filename is not None else reason)
        return 1
    except ValueError as error:
        complain(str(error))
        return 1
    if args.plan or not args.quiet:
        say(text)
    return 0


def run(args: argparse.Namespace) -> str:
    """What the command was asked for; the text to print."""
    if args.plan:
        with documented_errors(args.source):
            return planning.tell(planning.configuration(args.source, open_source), args.context)
    return str(
        convert(
            args.source,
            args.out,
            dtype=args.dtype,
            tokenizer=False if args.no_tokenizer else args.tokenizer,
            lora=args.lora,
            chat_template=args.chat_template,
            name=args.name,
            context=args.context,
            calibrate=args.calibrate,
            quiet=args.quiet,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
