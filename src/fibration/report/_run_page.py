"""The page of one run: every flow against every descent."""

import re
from collections.abc import Sequence

from ..plots._numbers import listed, number
from ..study import RunRecord
from ._page import Page, Table, Traceback
from ._records import MISSING, cell, cut, ended, finite, flattened, kind, runs_of, sentence, value, words
from ._run_plots import View, run_plots

_LONGEST_ERROR = 20_000
# Column, and the end of the number's name in the summary.
_NUMBERS = (
    ("step size", "step_size"),
    ("time", "time"),
    ("gradients", "gradients"),
    ("seconds", "seconds"),
    ("final cost", "cost"),
    ("distance from flow", "distance"),
    ("over flow's way", "distance_relative"),
    ("certified bound", "bound"),
    ("largest sharpness", "sharpness_max"),
    ("sharpness at end", "sharpness_end"),
    ("imbalance at start", "imbalance_start"),
    ("imbalance at end", "imbalance_end"),
    ("stall index at end", "stall_end"),
    ("σ_min at the data", "data_sigma_min_end"),
)


def run_page(record: RunRecord, title: str = "", description: str = "") -> Page:
    """Make the page of one run: its flows and descents against one another, numbers, and what was run on what.

    A run that failed, or has not ended, gets a page of what there is.

    ```python
    >>> import tempfile
    >>> import fibration as fb
    >>> store = fb.study.Store(tempfile.mkdtemp() + "/store", create=True)
    >>> with store.claim({"runs": {"flow": {"kind": "flow"}}, "seed": 0}) as run:
    ...     run.finish({"flow.cost": 0.25}, {"flow.cost": {"x": [0.0, 1.0], "y": [1.0, 0.25]}})
    >>> page = fb.report.run_page(store.records()[0])
    >>> [plot.title for plot in page.plots], page.tables[0].rows[0]
    (['Cost'], ('flow', 'gradient flow', '0.25'))

    ```
    """
    tables = (
        _runs(record),
        _certificates(record),
        _ranks(record),
        Table("What was run", (), tuple((key, words(found)) for key, found in flattened(record.point))),
        Table(
            "All numbers", ("name", "value"), tuple((name, cell(found, 6)) for name, found in record.summary.items())
        ),
        facts_table(record),
    )
    lead = [*([description] if description.strip() else []), sentence(record), *_found(record)]
    return Page(
        title or f"Run {record.id}",
        tuple(lead),
        tuple(run_plots([View(record)])),
        tuple(table for table in tables if table.rows),
        errors_of([record]),
        dashboard=True,
    )


def facts_table(record: RunRecord) -> Table:
    """Tell where a run comes from."""
    facts = {
        "run": record.id,
        "status": record.status,
        "begun": record.created or MISSING,
        "seconds": number(record.seconds),
        "gradients": MISSING if record.gradients is None else f"{record.gradients:,}",
        "studies": ", ".join(record.studies) or MISSING,
    }
    parts = (*facts.items(), *record.machine.items(), *record.versions.items())
    return Table("Run, machine and versions", (), tuple((str(name), words(found)) for name, found in parts))


def anchor(record: RunRecord) -> str:
    """Name the place on a page where a run's error stands."""
    return "error-" + re.sub(r"[^A-Za-z0-9_-]", "-", record.id)


def errors_of(records: Sequence[RunRecord]) -> tuple[Traceback, ...]:
    """Fold what went wrong; long texts lose their middle."""
    made: list[Traceback] = []
    for record in records:
        if not record.error:
            continue
        text = record.error.rstrip()
        if len(text) > _LONGEST_ERROR:
            half = _LONGEST_ERROR // 2
            text = f"{text[:half]}\n\n… {len(text) - 2 * half:,} characters left out …\n\n{text[-half:]}"
        last = text.splitlines()[-1] if text else ""
        made.append(Traceback(f"{record.id}, {record.status}: {cut(last)}", text, anchor(record)))
    return tuple(made)


def _found(record: RunRecord) -> list[str]:
    """Tell in sentences what a run found: closeness, costs, ranks, the explicit minimiser."""
    made: list[str] = []
    names = runs_of(record)
    close = [_closeness(record, name) for name in names if value(record, f"{name}.distance") is not None]
    if close:
        more = f"; {len(close) - 3} more are in the table" if len(close) > 3 else ""
        made.append(f"Away from the gradient flow in parameter space end: {listed(close[:3])}{more}.")
    costs = {name: cost for name in names if finite([cost := value(record, f"{name}.cost")])}
    if costs:
        best = min(costs, key=lambda name: costs[name] or 0.0)
        made.append(f"The lowest final cost, {number(costs[best] or 0.0)}, is that of {best} ({kind(names[best])}).")
    lost = [name for name in names if record.summary.get(f"{name}.ended") == "nonfinite"]
    if lost:
        made.append(f"Diverged: {listed(lost)}.")
    rank, needed = value(record, "start.rank"), value(record, "start.rank_needed")
    if rank is not None and needed is not None:
        full = "full" if rank >= needed else "not full: there are errors that no small change of the parameters mends"
        made.append(f"The differential of the outputs has rank {rank:,.0f} of {needed:,.0f} at the start, {full}.")
    explicit = record.summary.get("minimizer")
    if isinstance(explicit, str):
        cost, affine = value(record, "minimizer.cost"), value(record, "minimizer.affine_cost")
        costing = "" if cost is None else f", costs {number(cost)}"
        costing += "" if affine is None else f", where the best affine map costs {number(affine)}"
        made.append(f"An explicit minimiser, without training: {cut(explicit)}{costing}.")
    return made


def _closeness(record: RunRecord, name: str) -> str:
    distance, share = value(record, f"{name}.distance") or 0.0, value(record, f"{name}.distance_relative")
    part = "" if share is None else f" ({number(100 * share)} % of the flow's own way)"
    return f"{name} by {number(distance)}{part}"


def _runs(record: RunRecord) -> Table:
    names = runs_of(record)
    texts = {name: [cell(value(record, f"{name}.{end}")) for _, end in _NUMBERS] for name in names}
    kept = [i for i in range(len(_NUMBERS)) if any(row[i] != MISSING for row in texts.values())]
    endings = {name: ended(record.summary.get(f"{name}.ended")) for name in names}
    told = any(text != MISSING for text in endings.values())
    columns = ("run", "kind", *(["ended"] if told else []), *(_NUMBERS[i][0] for i in kept))
    rows = [
        (name, kind(run), *([endings[name]] if told else []), *(texts[name][i] for i in kept))
        for name, run in names.items()
    ]
    return Table("Flows and descents", columns, tuple(rows))


def _certificates(record: RunRecord) -> Table:
    rows = [
        (
            name,
            *(cell(value(record, f"{name}.{end}")) for end in ("bound", "distance", "certified_until")),
            cut(str(record.summary[f"{name}.certificate"]), 400),
        )
        for name in runs_of(record)
        if f"{name}.certificate" in record.summary
    ]
    return Table(
        "Certificates",
        ("descent", "bound at the end", "distance at the end", "certified until", "in words"),
        tuple(rows),
        "A certificate bounds the distance of gradient descent from the gradient flow without solving the flow.",
    )


def _ranks(record: RunRecord) -> Table:
    places = {"start": "start", **{f"{name}.end": f"end of {name}" for name in runs_of(record)}}
    rows = [
        (text, *(cell(value(record, f"{place}.{end}")) for end in ("rank", "rank_needed", "sigma_ratio")))
        for place, text in places.items()
        if value(record, f"{place}.rank") is not None
    ]
    return Table("Rank of the differential", ("place", "rank", "needed", "σ_min/σ_max"), tuple(rows))
