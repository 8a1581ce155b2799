"""Fixtures for all tests. The package under test is the installed one."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def story_model() -> Path:
    """The built-in model's file, or the one that PYLLM_TEST_MODEL names."""
    import pyllm

    path = Path(os.environ.get("PYLLM_TEST_MODEL") or Path(pyllm.__file__).parent / "models" / "stories.llm")
    assert path.is_file(), path
    return path
