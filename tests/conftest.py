"""Fixtures for all tests. The package under test is the installed one."""

import os
from pathlib import Path

import pytest

from tools.prove import avoid_amx


def pytest_configure() -> None:
    """Off AMX, unless told otherwise: what the tests compare bit for bit holds without it only (csrc/llm.h).
    Tests of AMX itself ask for it by name."""
    avoid_amx()


@pytest.fixture(scope="session")
def story_model() -> Path:
    """The built-in model's file, or the one that PYLLM_TEST_MODEL names."""
    import pyllm

    path = Path(os.environ.get("PYLLM_TEST_MODEL") or Path(pyllm.__file__).parent / "models" / "stories.llm")
    assert path.is_file(), path
    return path
