"""Paths and fixtures for all tests.

The package under test is the installed one; in a checkout whose extension module is built in place it is the
checkout, where the folder tools/ is made importable as pyllm.tools as the installed package has it.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))
if not list((ROOT / "pyllm").glob("_llm*.so")):  # `python -m pytest` puts the checkout first
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
if importlib.util.find_spec("pyllm.tools") is None:
    spec = importlib.util.spec_from_file_location(
        "pyllm.tools", ROOT / "tools" / "__init__.py", submodule_search_locations=[str(ROOT / "tools")]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["pyllm.tools"] = module
    spec.loader.exec_module(module)
    import pyllm

    pyllm.tools = module


def pytest_configure() -> None:
    """Off AMX, unless told otherwise: what the tests compare bit for bit holds without it only (csrc/llm.h).
    Tests of AMX itself ask for it by name."""
    from pyllm.tools.prove import avoid_amx

    avoid_amx()


@pytest.fixture(scope="session")
def story_model() -> Path:
    """The built-in model's file, or the one that PYLLM_TEST_MODEL names."""
    import pyllm

    path = Path(os.environ.get("PYLLM_TEST_MODEL") or Path(pyllm.__file__).parent / "models" / "stories.llm")
    assert path.is_file(), path
    return path
