"""pyllm.c, the C library in one file (tools/amalgamate.py): complete, the same every time, silent under
warnings, and what it computes is what the library computes."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyllm

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "amalgamate.py"
MODEL = ROOT / "pyllm" / "models" / "stories.llm"
LIBRARY = [Path(name).name for name in runpy.run_path(str(ROOT / "pyllm" / "_build.py"))["LIBRARY"]]
README = (ROOT / "README.md").read_text()
STRICT = ["-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
C_ONLY = ["-Wstrict-prototypes"]

PROMPT, N, SEED = "Once upon a time", 24, 7
DEFINES = [f'-DPROMPT="{PROMPT}"', f"-DN={N}", f"-DSEED={SEED}"]

# C and C++ alike. Prints the ids of a prompt and of its continuation, then the logits after the last one.
EXAMPLE = """\
#include "llm.h"
#include <stdio.h>
#include <string.h>

static float logits[1 << 16];

int main(int argc, char **argv) {
    char err[256] = "";
    uint32_t tokens[64];
    llm_sampling how = llm_sampling_default();
    how.seed = SEED;
    llm_model *m = llm_open(argv[argc - 1], err, sizeof err);
    llm_session *s = m ? llm_session_open(m, NULL, err, sizeof err) : NULL;
    llm_tokenizer *t = m ? llm_tokenizer_open(m, err, sizeof err) : NULL;
    if (!s || !t)
        return puts(err), 1;
    const uint32_t vocab = llm_model_header(m)->vocab_size;
    llm_sampler *sampler = llm_sampler_open(&how, vocab, err, sizeof err);
    if (!sampler)
        return puts(err), 1;
    const char *prompt = PROMPT;
    int64_t n = llm_encode(t, prompt, strlen(prompt), 0, tokens, 64, err, sizeof err);
    int64_t end = n + N;
    if (n < 1 || end > 64 || llm_forward(s, (size_t)n, tokens, NULL, NULL, logits, err, sizeof err))
        return puts(err), 1;
    for (; n < end; n++) {
        tokens[n] = llm_sample(sampler, logits, NULL);
        if (llm_forward(s, 1, tokens + n, NULL, NULL, logits, err, sizeof err))
            return puts(err), 1;
    }
    for (int64_t i = 0; i < end; i++)
        printf("%u ", tokens[i]);
    printf("\\n");
    for (uint32_t i = 0; i < vocab; i++)
        printf("%a ", (double)logits[i]);
    printf("\\n");
    llm_sampler_close(sampler);
    llm_tokenizer_close(t);
    llm_session_close(s);
    llm_close(m);
    return 0;
}
"""


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command prints, which must succeed and have nothing to say on stderr."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, (command, done.stdout, done.stderr)
    return done.stdout


def need(command: str) -> None:
    if not shutil.which(command):
        pytest.skip(f"needs {command}")


def write(folder: Path) -> Path:
    """Runs the script in this folder."""
    run(sys.executable, SCRIPT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with pyllm.c, llm.h and the example for both languages."""
    folder = write(tmp_path_factory.mktemp("amalgamation"))
    for ending in ("c", "cpp"):
        (folder / f"app.{ending}").write_text(EXAMPLE)
    return folder


@pytest.fixture(scope="module")
def objects(folder):
    """objects(cc, *flags): pyllm.c compiled so, without a warning; each once. Without optimisation unless
    asked for: it takes long, and the tests of the library have it."""
    made: dict[tuple[str, ...], Path] = {}

    def compiled(*command: str) -> Path:
        need(command[0])
        if command not in made:
            out = folder / f"pyllm{len(made)}.o"
            run(command[0], "-O0", *command[1:], *STRICT, *C_ONLY, "-c", "pyllm.c", "-o", out, folder=folder)
            made[command] = out
        return made[command]

    return compiled


def printed_numbers(output: str) -> tuple[list[int], np.ndarray]:
    """What the example prints."""
    ids, logits = output.splitlines()
    return [int(word) for word in ids.split()], np.array([float.fromhex(word) for word in logits.split()])


def check_output(output: str) -> None:
    """It must be what the package makes, with the instruction set that PYLLM_ISA says now."""
    ids, logits = printed_numbers(output)
    llm = pyllm.LLM(MODEL)
    prompt = llm.encode(PROMPT)
    made = llm.generate(PROMPT, max_tokens=N, seed=SEED, temperature=0.8, top_p=0.95).tokens
    assert len(made) == N  # the model's own end would stop it earlier
    assert ids == [*prompt, *made]
    # Not the same bits: without optimisation no product and sum are contracted to one rounding, and a key or
    # value may then round to the next number of fp16. The tolerance is that between instruction sets.
    want = llm.session().eval(ids)
    error = np.abs(logits - want) / want.std()
    assert error.max() < 5e-3 and error.mean() < 3e-4


def test_has_every_source_once_and_includes_no_file_but_the_header(folder):
    text = (folder / "pyllm.c").read_text()
    banners = re.findall(r"^/\* =+ csrc/(\S+) =+ \*/$", text, re.MULTILINE)
    assert [name for name in banners if name.endswith(".c")] == LIBRARY and len(set(banners)) == len(banners)
    assert re.findall(r'^#include "(.*)"', text, re.MULTILINE) == ["llm.h"]
    assert (folder / "llm.h").read_text() == (ROOT / "csrc" / "llm.h").read_text()
    assert "Permission is hereby granted" in text.split("*/")[0]


def test_is_the_same_every_time_wherever_it_goes(folder, tmp_path):
    run(sys.executable, SCRIPT, "--output", tmp_path / "new" / "place", folder=tmp_path, PYTHONHASHSEED="5")
    assert (tmp_path / "new" / "place" / "pyllm.c").read_bytes() == (folder / "pyllm.c").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_needs_no_package_of_python(folder, tmp_path):
    run(sys.executable, "-I", "-S", SCRIPT, folder=tmp_path)
    assert (tmp_path / "pyllm.c").read_bytes() == (folder / "pyllm.c").read_bytes()


@pytest.mark.parametrize("isa", ["", "scalar"])
@pytest.mark.parametrize(
    ("library", "flags", "caller"),
    [
        ("gcc", ["-fopenmp"], ["gcc", *C_ONLY, "app.c"]),
        ("gcc", ["-fopenmp"], ["g++", "app.cpp"]),
        ("clang", ["-Wno-unknown-pragmas", "-pthread"], ["clang", *C_ONLY, "app.c"]),
        ("clang", ["-Wno-unknown-pragmas", "-pthread"], ["clang++", "app.cpp"]),
    ],
)
def test_computes_what_the_library_does(library, flags, caller, isa, folder, objects, monkeypatch):
    need(caller[0])
    program = folder / f"app-{caller[0]}"
    command = [*caller, *STRICT, *DEFINES, *flags, objects(library, *flags), "-lm", "-o", program]
    if not program.exists():
        run(*command, folder=folder)
    if isa:
        monkeypatch.setenv("PYLLM_ISA", isa)
    else:
        monkeypatch.delenv("PYLLM_ISA", raising=False)
    check_output(run(program, MODEL, folder=folder))


@pytest.mark.parametrize("library", [("gcc", "-fopenmp"), ("clang", "-Wno-unknown-pragmas", "-pthread")])
def test_a_linker_sees_the_names_of_the_header_and_no_others(library, folder, objects):
    need("nm")
    listed = run("nm", "-g", "--defined-only", objects(*library), folder=folder)
    names = {line.split()[-1] for line in listed.splitlines()}
    header = re.sub(r"/\*.*?\*/", "", (folder / "llm.h").read_text(), flags=re.DOTALL)
    assert names == set(re.findall(r"\b(llm_\w+)\(", header))


def test_aarch64_computes_it_too(folder, objects, monkeypatch):
    need("qemu-aarch64")
    cc = "aarch64-linux-gnu-gcc"
    flags = ["-O1", "-fopenmp"]  # for the emulator's sake
    program = folder / "app-aarch64"
    command = [cc, *STRICT, *C_ONLY, *DEFINES, *flags, "app.c", objects(cc, *flags)]
    run(*command, "-lm", "-o", program, folder=folder)
    monkeypatch.setenv("PYLLM_ISA", "scalar")  # here; NEON's sums have another order, but not another text
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    check_output(run(*emulator, program, MODEL, folder=folder, PYLLM_ISA="neon", OMP_NUM_THREADS="1"))


def test_the_lines_in_the_readme_work(tmp_path):
    need("cc")
    lines = re.findall(r"`((?:python tools/amalgamate\.py|cc [^`]*pyllm\.c)[^`]*)`", README)
    assert len(lines) == 2
    script, cc = (shlex.split(line) for line in lines)
    assert script[2] == "--output"
    run(sys.executable, *script[1:3], tmp_path, folder=ROOT)
    (example,) = re.findall(r"^```c\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (tmp_path / "app.c").write_text(example)
    (tmp_path / "pyllm").symlink_to(ROOT / "pyllm")
    optimisation = cc.index("-O3")  # which takes a minute where processors are busy
    run(*cc[:optimisation], "-O0", *cc[optimisation + 1 :], folder=tmp_path)
    assert float(run("./a.out", folder=tmp_path)) != 0


def refusal(tmp_path: Path, **files: str) -> str:
    """What the program says about sources like these."""
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    module = runpy.run_path(str(SCRIPT))
    with pytest.raises(module["AmalgamationError"]) as caught:
        module["Amalgamation"](tmp_path, ["a.c"]).text()
    return str(caught.value)


def test_refuses_what_it_would_make_wrong(tmp_path):
    assert refusal(tmp_path, a_c="int shared(int x) {\n    return x;\n}\n").startswith("a.c: shared()")
    assert refusal(tmp_path, a_c='#include "a.c"\n') == "a.c includes itself"
    assert "b.def" in refusal(tmp_path, a_c='#include "b.def"\n', b_def="")


SHARED = """\
typedef struct table {
    int n;
} table;
extern const table first, others[2];
extern int count;
int twice(int x);
"""
FIRST = """\
#include "a.h"
#define N 1
const table first = {N};
const table others[2] = {{2}, {3}};
int count = 1;
int twice(int x) {
    return 2 * x;
}
"""
SECOND = """\
#include "a.h"
#define N(x) (x)
int llm_sum(void) {
    return N(twice(first.n) + others[1].n + count);
}
"""


def test_what_sources_share_becomes_static_and_macros_end(tmp_path):
    (tmp_path / "a.h").write_text(SHARED)
    (tmp_path / "a.c").write_text(FIRST)
    (tmp_path / "b.c").write_text(SECOND)
    text = runpy.run_path(str(SCRIPT))["Amalgamation"](tmp_path, ["a.c", "b.c"]).text()
    (tmp_path / "llm.h").write_text("int llm_sum(void);\n")
    (tmp_path / "one.c").write_text(text)
    (tmp_path / "app.c").write_text('#include "llm.h"\nint main(void) { return llm_sum() != 2 + 3 + 1; }\n')
    need("cc")
    run("cc", "-c", *STRICT, "one.c", folder=tmp_path)
    assert re.findall(r" [A-Z] (\w+)", run("nm", "-g", "one.o", folder=tmp_path)) == ["llm_sum"]
    run("cc", "app.c", "one.o", "-o", "app", folder=tmp_path)
    run("./app", folder=tmp_path)
