"""The files that the engines load. They are made once, beside the model's Hugging Face directory or from its
GGUF file, and reused the next time."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench.common import Unavailable, one_line, replacing
from tools.bench.engines import Engine
from tools.bench.models import Model
from tools.bench.random_files import random_gguf, random_hf


def converter_digest() -> str:
    """Tells versions of pyllm's converter apart: what an older one has made is not measured."""
    import pyllm.tools as tools
    from pyllm._llm import lib

    digest = hashlib.sha256()
    for folder in tools.__path__:
        for file in sorted(Path(folder).glob("*.py")):
            digest.update(file.read_bytes())
    return f"v{lib.LLM_VERSION}-{digest.hexdigest()[:8]}"


def model_path(engine: Engine, model: Model) -> Path:
    """An engine's file."""
    path = model.folder / engine.file
    return path.with_stem(f"{path.stem}-{converter_digest()}") if engine.make == "make_llm" else path


def ready(engine: Engine, model: Model, llama_cpp: Path | None) -> Path:
    """An engine's file, which is made if it is not there."""
    path = model_path(engine, model)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        MAKERS[engine.make](path, model, engine, llama_cpp)
    return path


def make_hf(path: Path, model: Model, engine: Engine | None = None, llama_cpp: Path | None = None) -> None:
    """A Hugging Face directory: random, or what transformers makes of the GGUF file, in float32."""
    if model.shape:
        random_hf(path, model.shape)
    elif model.source:
        dequantized_hf(path, model.source)


def dequantized_hf(path: Path, source: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    given = dict(gguf_file=source.name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **given)
    weights = {name: value.contiguous() for name, value in loaded.state_dict().items()}
    if loaded.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    config = loaded.config.to_dict() | {"architectures": [type(loaded).__name__]}
    config.pop("quantization_config", None)  # nothing is quantized any more
    with replacing(path) as folder:
        folder.mkdir()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        transformers.AutoTokenizer.from_pretrained(source.parent, **given).save_pretrained(folder)


def hf_folder(model: Model) -> Path:
    """The model's Hugging Face directory."""
    path = model.folder / "hf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_hf(path, model)
    return path


def make_llm(path: Path, model: Model, engine: Engine, llama_cpp: Path | None = None) -> None:
    """A flat file, by the project's converter. Of a random model only ids are run: it has no tokenizer, and
    nothing to calibrate for."""
    from pyllm.tools.convert import convert

    options: dict[str, Any] = {"dtype": engine.dtype}
    if model.shape:
        options["tokenizer"] = False
        if engine.dtype == "int4":
            options["calibrate"] = "none"
    with replacing(path) as part:
        convert(model.source or hf_folder(model), part, **options)


def make_gguf(path: Path, model: Model, engine: Engine, llama_cpp: Path | None = None) -> None:
    """A GGUF file of the type that it is named after. Without llama.cpp's build folder F16 and Q8_0 of random
    weights are made by the gguf library."""
    kind = path.stem.upper()
    if model.shape and (kind == "F16" or (kind == "Q8_0" and not llama_cpp)):
        hf_folder(model)
        random_gguf(path, model.shape, kind)
    elif not llama_cpp:
        raise Unavailable("llama-quantize makes its file, and --llama-cpp DIR was not given")
    elif kind == "F16" and model.source:
        quantize(model.source, path, kind, llama_cpp)
    else:
        plain = path.with_name("f16.gguf")
        if not plain.exists():
            make_gguf(plain, model, engine, llama_cpp)
        quantize(plain, path, kind, llama_cpp)


def llama_tool(folder: Path, name: str) -> Path:
    """A program of llama.cpp's build folder."""
    for path in (folder / "bin" / name, folder / name):
        if path.is_file():
            return path
    raise Unavailable(f"there is no {name} in {folder} or its folder bin")


def quantize(source: Path, path: Path, kind: str, llama_cpp: Path) -> None:
    """By llama-quantize with its defaults, no importance matrix. F16 of a file with fewer bits is what these
    stand for, rounded to 16 bits."""
    program = llama_tool(llama_cpp, "llama-quantize")
    with replacing(path) as part:
        command = [str(program), "--allow-requantize", str(source), str(part), kind]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise Unavailable(f"llama-quantize makes no {kind}: {' '.join(last)[:200]}")


def make_ctranslate2(path: Path, model: Model, engine: Engine, llama_cpp: Path | None = None) -> None:
    """CTranslate2's own format, by its converter (which needs transformers and torch)."""
    from ctranslate2.converters import TransformersConverter

    source = hf_folder(model)
    with replacing(path) as part:
        try:
            converter = TransformersConverter(str(source), low_cpu_mem_usage=True)
            converter.convert(str(part), quantization=engine.dtype)
        except Exception as error:
            shutil.rmtree(part, ignore_errors=True)
            raise Unavailable(f"CTranslate2's converter fails: {one_line(error)}") from error


MAKERS: dict[str, Callable[[Path, Model, Engine, Path | None], None]] = {
    "make_llm": make_llm,
    "make_gguf": make_gguf,
    "make_hf": make_hf,
    "make_ctranslate2": make_ctranslate2,
}
