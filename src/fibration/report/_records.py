"""What a stored run says, read so that a page can show it whatever is missing: runs by kind, numbers, curves, words."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..plots._numbers import number
from ..study import RunRecord

MISSING = "–"
FAMILIES = ("gradient", "adapted", "steps", "other")
FAMILY_TITLES = {
    "gradient": "gradient flow and gradient descent",
    "adapted": "adapted flow and adapted descent",
    "steps": "optimisers",
    "other": "other runs",
}
FAMILY_LABELS = {
    "gradient": "time (step size × steps)",
    "adapted": "time (step size × steps)",
    "steps": "steps",
    "other": "time",
}
_ENDED = {
    "completed": "completed",
    "cost_below": "cost below its limit",
    "nonfinite": "diverged: parameters or cost not finite",
    "max_steps": "at the limit on steps",
    "rank_loss": "the differential lost rank",
    "blow_up": "parameters ran off in finite time",
    "step_underflow": "no step met the tolerance",
    "wall_seconds": "at its limit of time",
}
_LONGEST = 160  # characters of a text in a cell


def runs_of(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """List the flows and descents of a run, by name: gradient flows first, then by family.

    A run that says nothing of flows has what its curves and numbers of costs are named after.
    """
    found = record.point.get("runs")
    named = (
        {str(name): run for name, run in found.items() if isinstance(run, Mapping)} if isinstance(found, dict) else {}
    )
    costs = [name.removesuffix(".cost") for name in (*record.curves, *record.summary) if name.endswith(".cost")]
    named |= {name: {} for name in costs if name not in named and name != "minimizer"}
    return dict(
        sorted(named.items(), key=lambda item: (FAMILIES.index(family(item[1])), item[1].get("kind") != "flow"))
    )


def family(run: Mapping[str, Any]) -> str:
    """Tell with which other runs a run shares its time: a flow with the descents that follow it."""
    match run.get("kind"):
        case "flow":
            return "adapted" if run.get("field") == "adapted" else "gradient"
        case "descent":
            method = run.get("method", "gradient")
            return method if method in ("gradient", "adapted") else "steps"
        case "least_squares":
            return "steps"
        case _:
            return "other"


def kind(run: Mapping[str, Any]) -> str:
    """Name the kind of a run as a sentence does."""
    match run.get("kind"):
        case "flow":
            return f"{run.get('field', 'gradient')} flow"
        case "descent":
            method = str(run.get("method", "gradient"))
            return f"{method} descent" if method in ("gradient", "adapted") else method
        case "least_squares":
            return "least squares"
        case _:
            return MISSING


def legend(record: RunRecord, name: str) -> str:
    """Name a run in a legend: its name, its kind, and its step size."""
    run = runs_of(record).get(name, {})
    step = value(record, f"{name}.step_size")
    parts = [*([kind(run)] if run else []), *([f"step size {number(step)}"] if step is not None else [])]
    return f"{name} ({', '.join(parts)})" if parts else name


def value(record: RunRecord, name: str) -> float | None:
    """Look up a number of the summary; `None` if there is none."""
    found = record.summary.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def curve(record: RunRecord, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Look up a curve; `None` if there is none with points."""
    found = record.curves.get(name)
    if not found or not found["x"]:
        return None
    return np.asarray(found["x"], float), np.asarray(found["y"], float)


def cell(found: Any, digits: int = 4) -> str:
    """Write a value of a summary or of a point for a table."""
    if found is None or found == "":
        return MISSING
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, int):
        return f"{found:,}".replace("-", "−")
    if isinstance(found, float):
        return number(found, digits)
    return cut(words(found))


def words(found: Any) -> str:
    """Write a value of a study file: 4, 8 for a list, and keys with their values for a table.

    ```python
    >>> words([4, 8]), words({"kind": "mlp", "hidden": [4]}), words([]), words(1e-3)
    ('4, 8', 'kind mlp, hidden 4', 'none', '0.001')

    ```
    """
    if isinstance(found, Mapping):
        return ", ".join(f"{key} {words(inner)}" for key, inner in found.items()) or "none"
    if isinstance(found, list | tuple):
        return ", ".join(map(words, found)) or "none"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return number(found, 6)
    return MISSING if found is None else str(found)


def brief(table: Any) -> str:
    """Tell what a table of a study file says, without what is off.

    ```python
    >>> brief({"kind": "mlp", "hidden": [4], "bias": True, "path": None})
    'mlp, hidden 4, bias'

    ```
    """
    if not isinstance(table, Mapping):
        return words(table)
    first = next((str(table[key]) for key in ("source", "kind") if key in table), "")
    rest = {key: inner for key, inner in table.items() if key not in ("source", "kind", "sha256")}
    told = [
        key if inner is True else f"{key} {words(inner)}" for key, inner in rest.items() if inner not in (None, False)
    ]
    return cut(", ".join([*([first] if first else []), *told]))


def cut(text: str, most: int = _LONGEST) -> str:
    """Shorten a text that is too long for its place, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def ended(code: Any) -> str:
    """Say how a flow or descent ended."""
    return MISSING if code is None else cut(_ENDED.get(str(code), str(code)))


def last_line(error: str | None) -> str:
    """Find the line of a traceback that says what went wrong."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return cut(lines[-1]) if lines else ""


def flattened(point: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """List what a point says, by dotted key; lists stay whole."""
    if isinstance(point, Mapping) and point:
        for key, inner in point.items():
            yield from flattened(inner, f"{above}.{key}" if above else str(key))
    elif above:
        yield above, point


def looked_up(point: Mapping[str, Any], key: str) -> Any:
    """Follow a dotted key; `None` if it leads nowhere."""
    here: Any = point
    for part in key.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def sentence(record: RunRecord) -> str:
    """Say what was run and how far it is."""
    state = {"running": "is running", "interrupted": "was interrupted", "damaged": "has a damaged manifest"}
    parts = [f"{name}: {brief(record.point.get(name))}" for name in ("network", "data") if record.point.get(name)]
    counts = [(value(record, name), name) for name in ("parameters", "residuals")]
    parts += [f"{count:,.0f} {name}" for count, name in counts if count is not None and math.isfinite(count)]
    what = f" ({'; '.join(parts)})" if parts else ""
    took = f" after {number(record.seconds)} s" if record.seconds else ""
    gradients = f" and {record.gradients:,} gradients" if record.gradients and took else ""
    if record.status == "failed":
        return f"Run {record.id}{what} failed{took}: {last_line(record.error) or 'nothing more is known'}."
    return f"Run {record.id}{what} {state.get(record.status, f'is {record.status}')}{took}{gradients}."


def finite(values: Sequence[float | None]) -> list[float]:
    """Keep what is a finite number."""
    return [one for one in values if one is not None and math.isfinite(one)]
