"""The page of a study: its runs on the axes of its sweep."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..plots._numbers import listed, number
from ..study import RunRecord
from ._page import Page, Table
from ._quantities import Quantity, quantities
from ._records import MISSING, brief, cell, cut, flattened, last_line, words
from ._run_page import anchor, errors_of, run_page
from ._study_plots import study_plots
from ._sweep import Sweep, statuses, sweep

_MOST_ROWS = 2_000
_MOST_COLUMNS = 10  # of numbers
_MOST_ERRORS = 50
_MOST_CAUSES = 20


def study_page(
    name: str, axes: Mapping[str, Sequence[Any]], records: Sequence[RunRecord], description: str = ""
) -> Page:
    """Make the page of a study: how many points are done, heat maps and small multiples, and a row for each point.

    A study of one point has the page of its run. Plots are over the two axes with most values, and medians over all
    others and the seeds; a page has at most fourteen, of at most 200 curves each, and its table at most 2,000 rows.

    **Arguments:** `axes`: the dotted keys that vary with their values, "seed" last; `records`: in the order of points.

    ```python
    >>> import tempfile
    >>> import fibration as fb
    >>> store = fb.study.Store(tempfile.mkdtemp() + "/store", create=True)
    >>> for seed in (0, 1):
    ...     with store.claim({"runs": {"flow": {"kind": "flow"}}, "seed": seed}) as run:
    ...         run.finish({"flow.cost": 0.25 + seed}, {})
    >>> print(fb.report.study_page("Two seeds", {"seed": (0, 1, 2)}, store.records()).lead[0])
    Of 3 points 2 are done and 1 has not begun.

    ```
    """
    study = sweep(axes, records)
    if study.total == 1 and len(records) == 1:
        return run_page(records[0], name, description)
    found = quantities(records)
    plots, said = study_plots(study, found)
    tables = (_axes(study), _points(study, found), _causes(records), _same(study), _origins(records))
    lead = [*([description] if description.strip() else []), statuses(study), *_best(study, found), *_failures(records)]
    failed = [record for record in records if record.error]
    return Page(
        name,
        (*lead, *said),
        tuple(plots),
        tuple(table for table in tables if table.rows),
        errors_of(failed[:_MOST_ERRORS]),
        dashboard=True,
    )


def _best(study: Sweep, found: Sequence[Quantity]) -> list[str]:
    """Tell where the first costs are lowest."""
    made: list[str] = []
    for one in [one for one in found if one.kind.suffix == "cost"][:2]:
        finite = np.where(np.isfinite(one.values), one.values, np.inf)
        index = int(np.argmin(finite))
        where = study.where(index)
        if np.isfinite(finite[index]) and where:
            made.append(f"The lowest final cost of {one.run}, {number(finite[index])}, is at {where}.")
    lost = Counter(one.run for one in found if one.kind.suffix == "cost" for value in one.values if np.isinf(value))
    if lost:
        made.append(f"Diverged: {listed([f'{run} in {count:,}' for run, count in lost.items()])} of the points.")
    return made


def _failures(records: Sequence[RunRecord]) -> list[str]:
    causes = Counter(_cause(record) for record in records if record.status == "failed")
    if not causes:
        return []
    most, count = causes.most_common(1)[0]
    if len(causes) == 1:
        return [f"What failed ended with: {most}."]
    return [f"What failed ended in {len(causes):,} ways, most often ({count:,}): {most}."]


def _cause(record: RunRecord) -> str:
    return last_line(record.error).rstrip(".") or "no message"


def _axes(study: Sweep) -> Table:
    axes = [*study.axes, *([study.seeds] if len(study.seeds.names) > 1 else [])]
    rows = [(axis.key, f"{len(axis.names):,}", cut("; ".join(axis.names))) for axis in axes]
    return Table("What varies", ("setting", "values", "which"), tuple(rows))


def _points(study: Sweep, found: Sequence[Quantity]) -> Table:
    """Make a row for each point that has begun."""
    columns = [one for one in found if one.kind.suffix not in ("seconds", "gradients")][:_MOST_COLUMNS]
    axes = [*study.axes, study.seeds]
    failures = any(record.error for record in study.records)
    kept = range(min(len(study.records), _MOST_ROWS))
    rows = [
        (
            study.records[i].id,
            *(axis.told[i] for axis in axes),
            study.records[i].status,
            *(MISSING if np.isnan(one.values[i]) else number(one.values[i], 4) for one in columns),
            number(study.records[i].seconds),
            *([last_line(study.records[i].error) or MISSING] if failures else []),
        )
        for i in kept
    ]
    heads = ("run", *(axis.key for axis in axes), "status", *(one.column for one in columns), "seconds")
    note = ""
    if len(kept) < len(study.records):
        note = f"The first {len(kept):,} of {len(study.records):,} points; `fibration list` has all."
    folded = [record for record in study.records if record.error][:_MOST_ERRORS]
    links = {record.id: anchor(record) for record in folded}
    return Table("Points", (*heads, *(["error"] if failures else [])), tuple(rows), note, links)


def _causes(records: Sequence[RunRecord]) -> Table:
    """Count what failures ended with."""
    causes = Counter(_cause(record) for record in records if record.error)
    first = {_cause(record): record for record in reversed(records) if record.error}
    folded = sum(causes.values())
    note = f"Below stand the errors of the first {_MOST_ERRORS} of {folded:,}." if folded > _MOST_ERRORS else ""
    rows = [(first[cause].id, f"{count:,}", cause) for cause, count in causes.most_common(_MOST_CAUSES)]
    return Table("Failures", ("first run", "runs", "last line of the error"), tuple(rows) if folded > 1 else (), note)


def _same(study: Sweep) -> Table:
    """Tell what every point says, apart from what varies."""
    points = [record.point for record in study.records if record.point]
    if not points:
        return Table("In every point", (), ())
    keys = [axis.key for axis in study.axes] + ["seed"]
    told = [(key, found) for key, found in flattened(points[0]) if not any(_under(key, axis) for axis in keys)]
    return Table("In every point", (), tuple((key, words(found)) for key, found in told))


def _under(key: str, axis: str) -> bool:
    return key == axis or key.startswith(f"{axis}.")


def _origins(records: Sequence[RunRecord]) -> Table:
    """Tell the machines and versions, with how many runs had which."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        for name, fact in (*record.machine.items(), *record.versions.items()):
            found.setdefault(str(name), Counter())[brief(fact)] += 1
    rows: list[tuple[str, str]] = []
    for name, counts in found.items():
        told = [f"{fact} ({count:,} runs)" if len(counts) > 1 else fact for fact, count in counts.most_common(6)]
        rows.append((name, cut(", ".join(told))))
    total = sum(record.seconds for record in records)
    gradients = sum(record.gradients or 0 for record in records)
    rows += [("seconds of all runs", cell(float(total))), ("gradients of all runs", f"{gradients:,}")]
    return Table("Machines and versions", (), tuple(rows) if records else ())
