"""Interfaces: the tensors that are balanced together, whatever the file or the architecture they come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._safetensors import Entry

Entries = Mapping[str, Entry]
FLOATS = ("F16", "BF16", "F32", "F64")  # the types that are balanced; others hold quantised numbers


@dataclass(frozen=True)
class Interface:
    """Tensors between which a network is linear, so that a group acts on them and leaves its function alone.

    `name` and `module` (the last part of the name, by which summaries group) are for people; `kind`: "LoRA",
    "query and key", "gains", "value and output" or "gated"; `tensors`: names in the file, in the order in which
    `balance(arrays, strength, gauge)` -> (new arrays, report) takes and returns their arrays; `left`, `right`: which of
    the tensors are the two sides that the report speaks of.
    """

    name: str
    module: str
    kind: str
    tensors: tuple[str, ...]
    balance: Callable[[list[Any], float, str], tuple[list[Any], Any]]
    left: int = 0
    right: int = 1


@dataclass(frozen=True)
class Skipped:
    """What was left as it was, and why.

    ```python
    >>> import fibration as fb
    >>> fb.weights.Skipped("layers.0.q_proj", "B = 0").reason
    'B = 0'

    ```
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a recogniser found: interfaces, what it left alone, and what a user should know beside."""

    interfaces: tuple[Interface, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def type_reason(entries: Entries, names: tuple[str, ...]) -> str:
    """Say why tensors cannot be balanced by their types, if so."""
    kinds = sorted({entries[name].dtype for name in names})
    strange = [kind for kind in kinds if kind not in FLOATS]
    if strange:
        return f"its numbers are of type {', '.join(strange)}: only {', '.join(FLOATS)} are balanced"
    return f"its tensors are of different types: {', '.join(kinds)}" if len(kinds) > 1 else ""
