"""The installed package is the one that is imported, also in the folder that it was installed from; and
`python -m pyllm` is the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from common import COMMAND

import pyllm.__main__

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(pyllm.__file__).resolve().parent
needs_command = pytest.mark.skipif(not COMMAND, reason="the command pyllm is not installed")


def python(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=clean | env, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module", params=["checkout", "elsewhere"])
def folder(request, tmp_path_factory) -> Path:
    """A folder to run Python in: a copy of the checkout, whose package has nothing compiled, or an empty
    one."""
    path = tmp_path_factory.mktemp(request.param)
    if python(path, "-c", "import pyllm").returncode:
        pytest.skip("needs the package to be installed")
    if request.param == "checkout":
        copy_sources(path)
    return path


def copy_sources(path: Path) -> None:
    for name in ("pyllm", "tools"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.llm")
        shutil.copytree(ROOT / name, path / name, ignore=ignored)


WHERE = """if True:
    import importlib.metadata, importlib.resources, pathlib, sys
    import pyllm, pyllm.engine, pyllm.tools.convert, pyllm._llm
    from pyllm import LLM, Completion
    assert LLM is pyllm.engine.LLM and LLM().generate("Once", max_tokens=1).prompt_tokens
    assert pyllm.__version__ == importlib.metadata.version("pyllm")
    assert (importlib.resources.files("pyllm") / "py.typed").is_file()
    assert sys.modules["pyllm"] is pyllm and set(pyllm.__all__) <= set(dir(pyllm))
    for path in (pyllm.__file__, pyllm.__spec__.origin, pyllm.engine.__file__, pyllm.__path__[0] + "/x"):
        print(pathlib.Path(path).resolve().parent)
"""


def test_the_installed_package_is_imported(folder):
    done = python(folder, "-c", WHERE)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split("\n")) == {str(PACKAGE), ""}


def test_the_converter_is_installed_and_what_developers_run_is_not(folder):
    script = "import pkgutil, pyllm.tools as t; print(*(m.name for m in pkgutil.iter_modules(t.__path__)))"
    found = set(python(folder, "-c", script).stdout.split())
    assert {"convert", "families"} <= found
    assert not found & {"amalgamate", "bench", "checkpoints", "prove", "stories"}


def test_reloading_and_star_imports_work(folder):
    script = "import importlib, pyllm; importlib.reload(pyllm); from pyllm import *; print(LLM(), Session)"
    done = python(folder, "-c", script)
    assert (done.returncode, done.stderr) == (0, "") and "stories" in done.stdout


def test_spawned_processes_import_it_too(folder):
    (folder / "spawning.py").write_text(
        "import multiprocessing, pyllm\n"
        "def work(llm): return llm.generate('Once', max_tokens=5, seed=1).text\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        llm = pyllm.LLM(threads=1)\n"
        "        assert pool.apply(work, [llm]) == work(llm)\n"
    )
    for arguments in (["spawning.py"], ["-m", "spawning"]):
        done = python(folder, *arguments)
        assert (done.returncode, done.stderr) == (0, "")


@needs_command
def test_python_m_runs_the_command(folder):
    for arguments in (["--version"], ["generate", "Once", "-n", "5", "--seed", "1"], ["convert", "--help"]):
        done = python(folder, "-m", "pyllm", *arguments)
        same = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd=folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, same.stdout, "")
    done = python(folder, "-m", "pyllm", "absent")
    assert done.returncode == 2 and done.stderr == "pyllm: 'absent' is not a command; see pyllm --help\n"


def test_a_checkout_may_be_of_another_version_than_what_is_installed(tmp_path):
    copy_sources(tmp_path)
    for file in tmp_path.glob("pyllm/*.py"):
        if file.name not in ("__init__.py", "_checkout.py"):
            file.write_text("raise SystemExit('a file of the checkout was run')\n")
    init = tmp_path / "pyllm" / "__init__.py"
    init.write_text(init.read_text().replace("import Completion, ", "import Completion, Novelty, "))
    assert "Novelty" in init.read_text()
    done = python(tmp_path, "-c", WHERE, PYTHONPATH=str(tmp_path))  # it is there twice
    if "pyllm is not installed" in done.stderr:
        pytest.skip("needs the package to be installed")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_checkout_without_an_installation_says_what_to_do(tmp_path):
    copy_sources(tmp_path)
    for arguments in (["-c", "from pyllm import LLM"], ["-m", "pyllm"], ["-c", "import pyllm.tools.convert"]):
        done = python(tmp_path, "-S", *arguments)  # without site-packages
        message = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and "ImportError: pyllm is not installed" in message
        assert f"run pip install . in {tmp_path}" in message


def test_python_m_says_where_it_looked_for_a_command_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(pyllm.__main__.metadata, "distributions", lambda **_: [])
    monkeypatch.setattr(pyllm.__main__.sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    monkeypatch.setattr(pyllm.__main__, "__file__", str(tmp_path / "target" / "pyllm" / "__main__.py"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    places = [str(tmp_path / name / "pyllm") for name in ("target/bin", "scripts", ".")]
    with pytest.raises(SystemExit, match=" nor ".join(places)):
        pyllm.__main__.main()
    (tmp_path / "pyllm").write_text("not a program")
    with pytest.raises(SystemExit, match=f"{tmp_path}/pyllm: Permission denied"):
        pyllm.__main__.main()
