"""The Dockerfile does what it says: its steps are run here, each stage in a fresh environment of this Python
in place of the image's, and in a folder in place of the image's root. What would change this system is only
read: packages of apt are looked up and not installed, the user is not made."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
APT = re.compile(
    r"apt-get update && apt-get install -y --no-install-recommends ([a-z0-9.+ -]+) "
    r"&& rm -rf /var/lib/apt/lists/\*"
)
USER = re.compile(r"useradd .*?(\w+)")
KNOWN = ("FROM", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT")
SECONDS = 60  # what a server may take to start, and to end


class Step(NamedTuple):
    """An instruction and what it is given."""

    name: str
    given: str


def parsed(text: str) -> list[list[Step]]:
    """The instructions of each stage, their lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"[ ]*\\\n[ ]*", " ", "\n".join(lines))
    stages: list[list[Step]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, given = line.split(None, 1)
        if name == "FROM":
            stages.append([])
        stages[-1].append(Step(name, given))
    return stages


STAGES = parsed((ROOT / "Dockerfile").read_text())
BUILD, FINAL = STAGES
STEPS = BUILD + FINAL


def given(name: str, stage: list[Step] = FINAL) -> str:
    """What the only instruction of this name is given."""
    (found,) = (step.given for step in stage if step.name == name)
    return found


# ----------------------------------------------------------------------------------------------------------
# What it says


def test_two_stages_of_known_instructions() -> None:
    assert [given("FROM", stage) for stage in STAGES] == ["python:3.12-slim AS build", "python:3.12-slim"]
    assert {step.name for step in STEPS} <= set(KNOWN)
    copied = [step.given for step in FINAL if step.name == "COPY"]
    assert copied == ["--from=build /wheels /wheels"]  # nothing else comes out of the stage with the compiler


def test_it_runs_as_a_user_that_was_made() -> None:
    names = [step.name for step in FINAL]
    made = [step.given for step in FINAL if step.name == "RUN" and "useradd" in step.given]
    assert len(made) == 1 and made[0].split()[-1] == given("USER") not in ("root", "0")
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert given("WORKDIR") == given("VOLUME") == "/models"


def test_packages_of_the_system_are_installed_as_they_should_be() -> None:
    lines = [step.given for step in STEPS if step.name == "RUN" and "apt" in step.given]
    packages = [APT.fullmatch(line)[1].split() for line in lines]
    assert packages == [["gcc", "libc6-dev"], ["libgomp1"]]
    if not shutil.which("apt-cache"):
        pytest.skip("needs apt-cache to look them up")
    for name in sum(packages, []):
        shown = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True).stdout
        if not shown:
            pytest.skip("apt knows no packages: apt-get update")
        assert re.search(r"Candidate: \d", shown), name


def test_options_are_those_of_the_server() -> None:
    server = pytest.importorskip("pyllm.server.command")
    entry = json.loads(given("ENTRYPOINT"))
    assert entry[0] == "pyllm-serve"
    options = server.parser().parse_args(entry[1:])
    assert options.host == "0.0.0.0" and str(options.port) == given("EXPOSE")
    assert not server.hosts_of(options)  # it may be called by any name
    assert f"http://127.0.0.1:{options.port}/health" in given("HEALTHCHECK")
    comment = (ROOT / "Dockerfile").read_text().split("FROM")[0]
    (line,) = re.findall(r"^#     docker run .* pyllm (.*)$", comment, re.MULTILINE)
    server.parser().parse_args([*entry[1:], *shlex.split(line)])


# ----------------------------------------------------------------------------------------------------------
# What goes in


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern decides that fits it or a folder it is in."""
    parts = path.split("/")
    places = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    left_out = False
    for pattern in patterns:
        rule = pattern.removeprefix("!")
        own = rule.removeprefix("**/")
        names = parts if rule.startswith("**/") else [p for p in places if p.count("/") == own.count("/")]
        if any(fnmatchcase(name, own) for name in names):
            left_out = not pattern.startswith("!")
    return left_out


def context() -> Iterator[str]:
    """The files that docker is sent."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    for folder, folders, files in os.walk(ROOT):
        at = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not name.startswith(".")]  # large, and left out by "*"
        yield from (str(at / name) for name in files if not ignored(str(at / name), patterns))


def test_only_what_the_package_is_made_of_goes_in() -> None:
    files = set(context())
    assert {
        "pyproject.toml",
        "setup.py",
        "csrc/llm.c",
        "pyllm/models/stories.llm",
        "pyllm/server/app.py",
    } <= files
    assert {"tools/convert/convert.py", "tools/convert/calibration.txt", "README.md", "LICENSE"} <= files
    assert not [
        name for name in files if re.search(r"^tests|^\.|\.so$|__pycache__|^tools/bench|^Dockerfile", name)
    ]


@pytest.mark.parametrize(
    "path, out",
    [
        ("a", True),
        ("b/c", False),
        ("d/e/f", False),
        ("d/g", True),
        ("b/x.so", True),
        ("b/__pycache__/c", True),
    ],
)
def test_patterns_are_read_as_docker_reads_them(path: str, out: bool) -> None:
    assert ignored(path, ["*", "!b", "!d/e", "**/*.so", "**/__pycache__"]) is out


# ----------------------------------------------------------------------------------------------------------
# What it does


class Image:
    """A stage: an environment of this Python, and a folder that stands for the root.

    others  the stages before it, by their names"""

    def __init__(self, root: Path, others: dict[str, Image], compiler: bool) -> None:
        self.root, self.others = root, others
        self.at = root
        self.venv = root / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True)
        tools = os.environ["PATH"] if compiler else str(self._few_tools())
        self.env = os.environ | {"PATH": f"{self.venv / 'bin'}{os.pathsep}{tools}"}
        self.env |= {"PYLLM_CFLAGS": "-O1"} if compiler else {"CC": "false"}  # -O1: it takes half the time

    def _few_tools(self) -> Path:
        """A folder with what the steps call, and no compiler."""
        folder = self.root / "tools"
        folder.mkdir()
        for name in ("sh", "rm", "env"):
            (folder / name).symlink_to(shutil.which(name) or name)
        return folder

    def inside(self, path: str) -> Path:
        """Where a path of the image is."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.at / path

    def take(self, step: Step) -> None:
        """Does what a step says, or at least what of it can be done here."""
        if step.name == "WORKDIR":
            self.at = self.inside(step.given)
            self.at.mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY":
            self._copy(step.given.split())
        elif step.name == "RUN" and not re.match(r"apt-get|useradd", step.given):
            self.run(step.given)

    def _copy(self, words: list[str]) -> None:
        if words[0].startswith("--from="):
            image = self.others[words[0].removeprefix("--from=")]
            shutil.copytree(image.inside(words[1]), self.inside(words[2]))
            return
        assert words == [".", "."]
        for name in context():
            (self.at / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.at / name)

    def run(self, line: str) -> None:
        """A line of shell, with the image's folders for those of this machine."""
        line = re.sub(r"(?<![\w.])/(?=wheels|src)", f"{self.root}/", line)
        done = subprocess.run(["sh", "-ec", line], cwd=self.at, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The last stage, built."""
    index = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d"]
    folder = Path(tempfile.mkdtemp(prefix="pyllm-image-"))
    try:
        folder.chmod(0o755)  # for the user that the server runs as
        if subprocess.run([*index, str(folder / "x"), "cffi"], capture_output=True).returncode:
            pytest.skip("needs a package index")
        images: dict[str, Image] = {}
        for i, stage in enumerate(STAGES):
            root = folder / f"stage{i}"
            root.mkdir()
            name = given("FROM", stage).partition(" AS ")[2] or "final"
            images[name] = Image(root, images, compiler=stage is BUILD)
            for step in stage:
                images[name].take(step)
        yield images["final"]
    finally:
        shutil.rmtree(folder)


def test_the_wheel_is_built_and_installed_without_a_compiler(image: Image) -> None:
    assert (image.venv / "bin" / "pyllm").exists() and (image.venv / "bin" / "pyllm-serve").exists()
    assert not image.inside("/wheels").exists() and not image.inside("/src").exists()
    script = "import pyllm; print(pyllm.__file__); print(pyllm.LLM().generate('Once', max_tokens=3))"
    line = [str(image.venv / "bin" / "python"), "-I", "-c", script]
    shown = subprocess.run(line, env=image.env, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(str(image.venv))


def user_for(program: str) -> int | None:
    """A user that can write nowhere, as in the image, if this one may be another and Python is not only its
    own."""
    try:
        subprocess.run([program, "--help"], user=65534, capture_output=True, check=True)
    except (PermissionError, subprocess.CalledProcessError):
        return None
    return 65534


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_the_entry_point_serves_and_the_health_check_sees_it(image: Image) -> None:
    port = free_port()
    check = json.loads(given("HEALTHCHECK").partition("CMD ")[2])
    check = [str(image.venv / "bin" / check[0]), *(word.replace(":8000/", f":{port}/") for word in check[1:])]
    assert subprocess.run(check, capture_output=True).returncode == 1  # nothing is there yet
    entry = json.loads(given("ENTRYPOINT"))
    command = [str(image.venv / "bin" / entry[0]), *entry[1:], "--port", str(port)]
    options = {"cwd": image.at, "env": image.env | {"HOME": "/nonexistent"}, "user": user_for(command[0])}
    server = subprocess.Popen(command, **options, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + SECONDS
        while subprocess.run(check, capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < end, server.communicate()
        server.send_signal(signal.SIGTERM)  # what docker stop sends
        _, shown = server.communicate(timeout=SECONDS)
    finally:
        server.kill()
    assert server.returncode == 0, shown
