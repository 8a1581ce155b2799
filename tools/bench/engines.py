"""The programs, each with a kind of weights: a row of the table."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Engine:
    """A program with a kind of weights.

    runner    the class in peers/ that drives it
    module    what must be importable
    packages  whose versions are reported
    dtype     the weights, as the program or its converter calls them
    file      what its model is called in the model's folder
    make      the function of files.py that makes it
    colour    in plots
    tolerance how far its logits may be from another engine's before they count as another model's
    options   what the runner sets, beyond its defaults
    timed     its speed is measured; else only how exact it is"""

    program: str
    dtype: str
    runner: str
    module: str
    packages: tuple[str, ...]
    file: str
    make: str
    colour: str
    tolerance: float
    options: tuple[tuple[str, int], ...] = ()
    timed: bool = True

    @property
    def label(self) -> str:
        return f"{self.program} {self.dtype}"

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


# In standard deviations of the logits. 16-bit rounding makes up to 0.03, 8-bit rounding up to 0.11, 4-bit
# rounding up to 0.4; rotary pairs in the wrong order 0.07 (135M) or 1.3 (tiny), other weights 1.4.
TOLERANCE = {"float32": 0.06, "fp16": 0.06, "F16": 0.06, "bf16": 0.1, "int8": 0.25, "Q8_0": 0.25}
ROUGH = 0.8  # of 4 bits, and of CTranslate2, whose products saturate on AVX2: up to 0.3


def pyllm(dtype: str, colour: str, name: str = "pyllm", **options: int) -> Engine:
    most = TOLERANCE.get(dtype, ROUGH)
    given = tuple(options.items())
    file = f"{dtype}.llm"
    return Engine(name, dtype, "Pyllm", "pyllm", ("pyllm",), file, "make_llm", colour, most, given)


def llamacpp(dtype: str, colour: str) -> Engine:
    file, most = f"{dtype.lower()}.gguf", TOLERANCE.get(dtype, ROUGH)
    packages = ("llama_cpp_python",)
    return Engine("llama.cpp", dtype, "LlamaCpp", "llama_cpp", packages, file, "make_gguf", colour, most)


def openvino(dtype: str, colour: str) -> Engine:
    """By the GGUF of the same type as llama.cpp's. What it is checked by is its most likely token."""
    file = {"int8": "q8_0.gguf", "fp16": "f16.gguf"}[dtype]
    packages = ("openvino-genai", "openvino")
    return Engine("OpenVINO", dtype, "OpenVINO", "openvino_genai", packages, file, "make_gguf", colour, ROUGH)


def ctranslate2(dtype: str, colour: str) -> Engine:
    kind, module = "CTranslate2", "ctranslate2"
    return Engine(kind, dtype, kind, module, (module,), module, "make_ctranslate2", colour, ROUGH)


def transformers(dtype: str, colour: str) -> Engine:
    packages, most = ("transformers", "torch"), TOLERANCE[dtype]
    kind, module = "Transformers", "transformers"
    return Engine(module, dtype, kind, module, packages, "hf", "make_hf", colour, most)


def simulated(dtype: str, colour: str) -> Engine:
    """A scheme in transformers' float32."""
    plain = transformers("float32", colour)
    return replace(plain, program="simulated", dtype=dtype, runner="Simulated", timed=False)


ENGINES = {
    "pyllm-fp16": pyllm("fp16", "#f2a07b"),
    "pyllm-fp16-exact": pyllm("fp16", "#f6c4ad", "pyllm exact", exact=1),
    "pyllm-int8": pyllm("int8", "#c1272d"),
    "pyllm-int4": pyllm("int4", "#7a1015"),
    "llamacpp-f16": llamacpp("F16", "#7aa6e0"),
    "llamacpp-q8_0": llamacpp("Q8_0", "#1f4e9c"),
    "llamacpp-q4_k_m": llamacpp("Q4_K_M", "#0b2a5b"),
    "llamacpp-q4_k_s": llamacpp("Q4_K_S", "#3f6fb5"),
    "llamacpp-q4_0": llamacpp("Q4_0", "#2f8fb0"),
    "llamacpp-iq4_nl": llamacpp("IQ4_NL", "#175d74"),
    "openvino-fp16": openvino("fp16", "#76c7a4"),
    "openvino-int8": openvino("int8", "#1b7f5c"),
    "ctranslate2-int8": ctranslate2("int8", "#7b4ea3"),
    "transformers-bf16": transformers("bf16", "#8a8a8a"),
    "simulated-int8": simulated("int8: a scale a row and a token, as CTranslate2", "#b9a0d0"),
}
PYLLM = tuple(name for name, engine in ENGINES.items() if engine.runner == "Pyllm")
QUICK = tuple(name for name, engine in ENGINES.items() if engine.runner in ("Pyllm", "LlamaCpp"))

# What accuracy is measured against: the first of these that works.
REFERENCES = {
    "transformers-float32": replace(transformers("float32", "#000000"), timed=False),
    "pyllm-fp16-exact": ENGINES["pyllm-fp16-exact"],
    "pyllm-fp16": ENGINES["pyllm-fp16"],
}

# Speeds that are compared: (ours, theirs).
RATIOS = (
    ("pyllm-fp16", "llamacpp-f16"),
    ("pyllm-int8", "llamacpp-q8_0"),
    ("pyllm-int4", "llamacpp-q4_k_m"),
    ("pyllm-int4", "pyllm-int8"),
)
