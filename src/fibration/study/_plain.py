"""What a store writes as JSON: the one place where it is decided how values that JSON lacks are written.

**The rule.** A NaN or an infinite number is written as the text `"NaN"`, `"Infinity"` or `"-Infinity"`. A text that
would read as one of these, bare or after apostrophes, gets one apostrophe more in front: `"NaN"` the text is written
`"'NaN"`, as in a spreadsheet. Everything else is itself, so that reading inverts writing.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import StoreError

NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MOST_POINTS = 128  # of one curve of a run
DEEPEST, MOST_BITS = 64, 256
AS_THEY_ARE = frozenset({float, int, bool, type(None)})
_APOSTROPHES = re.compile(r"'*(NaN|-?Infinity)")


def encode(value: Any, where: str = "the value", depth: int = 0) -> Any:
    """Turn numbers, text, lists and dictionaries, NumPy's and JAX's included, into what JSON can hold.

    ```python
    >>> encode({"cost": float("inf"), "note": "NaN", "widths": (3, 4)})
    {'cost': 'Infinity', 'note': "'NaN", 'widths': [3, 4]}
    >>> decode(encode({"cost": float("inf"), "note": "NaN", "widths": (3, 4)}))
    {'cost': inf, 'note': 'NaN', 'widths': [3, 4]}

    ```

    **Raises:** `StoreError` for any other object; `where` names it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return f"'{value}" if _APOSTROPHES.fullmatch(value) else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _name(value)
    if isinstance(value, int) and value.bit_length() <= MOST_BITS:
        return int(value)
    if depth < DEEPEST and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): encode(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if depth < DEEPEST and isinstance(value, list | tuple):
        return [encode(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "biufU" and array.dtype.itemsize * (array.dtype.kind != "U") <= 8:
            return encode(array.tolist(), where, depth)
    raise StoreError(
        f"{where} is {str(value)[:60]!r}, of type {type(value).__name__}",
        f"a number, a text, true or false, None, or a list or dictionary of these, with text as keys, "
        f"at most {DEEPEST} deep, and integers of at most {MOST_BITS} bits",
        "convert it first",
    )


def decode(value: Any) -> Any:
    """Invert `encode`; tuples and arrays come back as lists."""
    if isinstance(value, str):
        if value in NUMBERS:
            return NUMBERS[value]
        return value[1:] if value.startswith("'") and _APOSTROPHES.fullmatch(value) else value
    if isinstance(value, list):
        return [item if item.__class__ in AS_THEY_ARE else decode(item) for item in value]
    if isinstance(value, dict):
        return {key: item if item.__class__ in AS_THEY_ARE else decode(item) for key, item in value.items()}
    return value


def dumps(value: Any) -> str:
    """Write what `encode` returned, in ASCII and on one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Read JSON; NaN and Infinity without quotes are refused.

    **Raises:** `ValueError` for anything that is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def canonical(encoded: Any) -> str:
    """Write what `encode` returned in the one form that is hashed: keys sorted, no spaces, ASCII."""
    return json.dumps(encoded, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(encoded: Any, digits: int) -> str:
    """Give the first hexadecimal digits of the SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(encoded).encode()).hexdigest()[:digits]


def encode_summary(summary: Any) -> dict[str, Any]:
    """Check and encode the summary of a run: names with one number, text or None each."""
    encoded = encode(_dictionary(summary, "the summary"), "summary")
    for name, value in encoded.items():
        if isinstance(value, list | dict):
            raise StoreError(
                f"summary[{name!r}] is a {type(value).__name__}",
                "one number, text or None for each name",
                "put it in a result with `run.write`, or make names of its parts",
            )
    return encoded


def encode_curves(curves: Any) -> dict[str, Any]:
    """Check and encode the curves of a run: names with "x" and "y", two sequences of numbers of one length.

    Of more than 128 points every so many are kept, evenly by number, with the first and the last.
    """
    encoded: dict[str, Any] = {}
    for name, curve in _dictionary(curves, "the curves").items():
        try:
            x, y = (np.asarray(curve[axis], float) for axis in ("x", "y"))
        except (TypeError, ValueError, KeyError, IndexError):
            x, y = np.zeros((0, 1)), np.zeros(0)
        if not isinstance(name, str) or x.ndim != 1 or x.shape != y.shape:
            raise StoreError(
                f"curves[{name!r}] is {str(curve)[:60]}",
                '{"x": [...], "y": [...]} with two lists of numbers of one length',
                "pass both as one-dimensional arrays",
            )
        if len(x) > MOST_POINTS:
            kept = np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)
            x, y = x[kept], y[kept]
        encoded[name] = {"x": encode(x), "y": encode(y)}
    return encoded


def _dictionary(value: Any, what: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise StoreError(f"{what} is of type {type(value).__name__}", "a dictionary", "pass {name: value}")


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant} without quotes")
