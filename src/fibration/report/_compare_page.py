"""The page of two runs side by side."""

import math
from typing import Any

from ..plots._numbers import listed, number
from ..study import RunRecord
from ._page import Page, Table
from ._records import MISSING, cell, cut, flattened, runs_of, sentence, value, words
from ._run_page import errors_of
from ._run_plots import View, run_plots

_SAME = 1e-12  # relative difference below which two numbers are told to agree

_TOLD = 6  # settings in a sentence


def compare_page(first: RunRecord, second: RunRecord) -> Page:
    """Make the page of two runs: what differs in what they were asked, their numbers, and their curves overlaid.

    ```python
    >>> import tempfile
    >>> import fibration as fb
    >>> store = fb.study.Store(tempfile.mkdtemp() + "/store", create=True)
    >>> for seed in (0, 1):
    ...     with store.claim({"runs": {"flow": {"kind": "flow"}}, "seed": seed}) as run:
    ...         run.finish({"flow.cost": 0.25 + seed}, {})
    >>> page = fb.report.compare_page(*store.records())
    >>> page.tables[0].rows, page.tables[1].rows
    ((('seed', '0', '1'),), (('flow.cost', '0.25', '1.25', '1', '400 %'),))

    ```
    """
    points = [dict(flattened(record.point)) for record in (first, second)]
    keys = [key for key in dict.fromkeys([*points[0], *points[1]]) if not _same(*(point.get(key) for point in points))]
    lead = [
        f"First: {sentence(first)}",
        f"Second: {sentence(second)}",
        _differences(keys, points),
        *_costs(first, second),
    ]
    settings = tuple((key, *(words(point[key]) if key in point else MISSING for point in points)) for key in keys)
    same = tuple((key, words(found)) for key, found in points[0].items() if key in points[1] and key not in keys)
    tables = (
        Table("What differs", ("setting", "first", "second"), settings),
        _numbers(first, second),
        Table("The same in both", (), same),
        _origins(first, second),
    )
    return Page(
        f"Runs {first.id} and {second.id}",
        tuple(lead),
        tuple(run_plots([View(first, "first, "), View(second, "second, ", "dashed")])),
        tuple(table for table in tables if table.rows),
        errors_of([first, second] if first.id != second.id else [first]),
        dashboard=True,
    )


def _differences(keys: list[str], points: list[dict[str, Any]]) -> str:
    if not keys:
        return "They were asked for the same."
    told = [f"{key} ({' and '.join(cut(words(point.get(key)), 40) for point in points)})" for key in keys[:_TOLD]]
    if len(keys) == 1:
        return f"They differ in {told[0]}."
    more = [f"{len(keys) - _TOLD} more"] if len(keys) > _TOLD else []
    return f"They differ in {len(keys)} settings: {listed([*told, *more])}."


def _costs(first: RunRecord, second: RunRecord) -> list[str]:
    """Tell the final costs of what both ran."""
    told: list[str] = []
    for name in runs_of(first):
        costs = [value(record, f"{name}.cost") for record in (first, second)]
        if costs[0] is not None and costs[1] is not None:
            told.append(f"{name} {number(costs[0])} and {number(costs[1])}")
    return [f"Final costs, first and second: {'; '.join(told[:8])}."] if told else []


def _numbers(first: RunRecord, second: RunRecord) -> Table:
    """Set the numbers beside each other; the last column is the difference over the first's size."""
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*first.summary, *second.summary]):
        both = [record.summary.get(name) for record in (first, second)]
        pair = [value(record, name) for record in (first, second)]
        rows.append((name, *(cell(one, 6) for one in both), *_difference(pair, same=_same(*both))))
    columns = ("number", "first", "second", "second − first", "relative")
    return Table("Numbers", columns, tuple(rows), "The last column is the difference over the first's absolute value.")


def _difference(pair: list[float | None], *, same: bool) -> tuple[str, str]:
    a, b = pair
    if a is None or b is None:
        return (MISSING, MISSING) if same else ("differs", MISSING)
    if a == b or abs(b - a) <= _SAME * abs(a):
        return "0", "0 %"
    if not (math.isfinite(a) and math.isfinite(b)):
        return ("0", "0 %") if same else ("differs", MISSING)
    return number(b - a, 4), f"{number(100 * (b - a) / abs(a))} %" if a else MISSING


def _same(a: Any, b: Any) -> bool:
    """Tell whether two values are equal; NaN is itself, and 1 is 1.0."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _origins(first: RunRecord, second: RunRecord) -> Table:
    facts = [
        {"status": record.status, "begun": record.created, "seconds": record.seconds, "gradients": record.gradients}
        | record.machine
        | record.versions
        for record in (first, second)
    ]
    names = dict.fromkeys([*facts[0], *facts[1]])
    rows = tuple((str(name), *(cell(fact.get(name)) for fact in facts)) for name in names)
    return Table("Runs, machines and versions", ("fact", "first", "second"), rows)
