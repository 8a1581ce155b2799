"""The table of model families: what a config.json of each means in the terms of the flat file's header, and
how the names of its tensors differ from those of tensors.py.

Adding a family is adding a row to the file of what is special in it (plain.py where nothing is). What can be
computed before the first token is folded into the tensors (1 + w of norms, scales of the logits, the order of
a head's elements); a quirk that is not in a row is refused by name, never passed on to the engine."""

from .common import value_of
from .family import ACTIVATIONS, Family
from .registry import (
    DEFAULTS,
    FAMILIES,
    MODEL_TYPES,
    ONLY,
    PICTURES,
    REASONS,
    UNTIED,
    WRAPPED,
    WRAPPED_NAMES,
)

__all__ = [
    "ACTIVATIONS",
    "DEFAULTS",
    "FAMILIES",
    "MODEL_TYPES",
    "ONLY",
    "PICTURES",
    "REASONS",
    "UNTIED",
    "WRAPPED",
    "WRAPPED_NAMES",
    "Family",
    "value_of",
]
