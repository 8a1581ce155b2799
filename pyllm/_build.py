"""Compiles the C side: the extension module pyllm._llm through cffi's API mode, and the command `pyllm`.

The declarations come from csrc/llm.h and csrc/round.h themselves, so that they are written down once. The
environment variables CC and PYLLM_CFLAGS choose the compiler and add flags to compiling and linking.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
KERNELS = [f"isa_{name}" for name in ("plain", "avx2", "avxvnni", "avx512", "neon", "dotprod")]
FORWARD = ["llm", "products", "attend", "experts", "latent", "states", "streams"]
ENGINE = [*FORWARD, "session", "numbers", *KERNELS, "file", "verify", "threads"]
LIBRARY = [f"csrc/{name}.c" for name in [*ENGINE, "tokenizer", "sampler", "lookup"]]
CONVERTER = ["csrc/round.c"]  # of the extension alone
COMMAND = ["main", "options", "command", "generate", "draft", "chat", "look", "info", "measure", "terminal"]
CFLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", *os.environ.get("PYLLM_CFLAGS", "").split()]


def declarations(header: str) -> str:
    """A header's text without its comments and preprocessor lines, as cffi's cdef wants it."""
    text = (ROOT / "csrc" / header).read_text()
    text = re.sub(r"/\*.*?\*/|#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


# The llm_observer that calls back into Python
OBSERVER = """extern "Python" void pyllm_observer(
    void *, uint32_t, uint32_t, uint32_t, size_t, size_t, const float *, size_t);"""


def compiler() -> list[str]:
    """The C compiler's command line: CC, else what Python was built with, else cc."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    words = command.split()
    try:
        subprocess.run([words[0], "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        if "CC" not in os.environ and words[0] != "cc":
            os.environ["CC"] = "cc"
            return compiler()
        sys.exit(
            f"pyllm needs a C compiler, and {words[0]!r} does not run. Install one (Debian, Ubuntu: "
            "apt install gcc; macOS: xcode-select --install) or name one in the environment variable CC."
        )
    return words


def openmp_flags() -> list[str]:
    """["-fopenmp"] where the compiler and linker accept it; where they do not (Apple's clang) flags for
    silence and for POSIX threads."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "omp.c"
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        done = subprocess.run(
            [*compiler(), "-fopenmp", str(source), "-o", str(Path(folder) / "omp")], capture_output=True
        )
    return ["-fopenmp"] if done.returncode == 0 else ["-Wno-unknown-pragmas", "-pthread"]


def make_ffi() -> FFI:
    """The FFI object that setup.py's cffi_modules asks for."""
    from cffi import FFI  # here, so that others can read the lists of files without it

    flags = [*CFLAGS, *openmp_flags()]
    ffi = FFI()
    ffi.cdef(declarations("llm.h"))
    ffi.cdef(declarations("round.h"))
    ffi.cdef(OBSERVER)
    ffi.set_source(
        "pyllm._llm",
        '#include "llm.h"\n#include "round.h"',
        sources=[*LIBRARY, *CONVERTER],
        depends=sorted(str(path) for path in Path("csrc").glob("*.[hi]*")),
        include_dirs=["csrc"],
        extra_compile_args=[*flags, "-fvisibility=hidden"],
        extra_link_args=flags,
        libraries=["m"],
        py_limited_api=True,
    )
    return ffi


def build_command(out: Path, version: str) -> None:
    """Compiles the command `pyllm` to `out`, with the built-in model inside."""
    model = ROOT / "pyllm" / "models" / "stories.llm"
    defines = [f'-DPYLLM_VERSION="{version}"', f'-DPYLLM_BUILTIN="{model}"']
    sources = [str(ROOT / name) for name in [*LIBRARY, *(f"csrc/{name}.c" for name in COMMAND)]]
    command = [*compiler(), *CFLAGS, *openmp_flags(), *defines, *sources, "-lm", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the command pyllm does not compile:\n{' '.join(command)}\n{done.stderr}")
