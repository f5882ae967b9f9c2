"""The page of balanced weights: what was balanced, what that changed, what was left alone and why."""

import statistics
from collections import Counter

from ..plots._numbers import listed, number
from ..study import machine_facts
from ..weights import BalancedPair, WeightsReport, weights_plots
from ..weights._report import ratio, rounding
from ._page import Page, Table

_LONG = 48  # characters of a name, beyond which a table on a terminal cuts it
_MANY = 30  # pairs, beyond which a terminal is shown a summary
_WORST = 10
_SIDES = "The pairs (left: B, W_Q, W_O or down; right: A, W_K, W_V or up)"
_COLUMNS = (
    "pair",
    "type",
    "sizes",
    "rank",
    "imbalance",
    "‖left‖",
    "‖right‖",
    "condition",
    "change",
    "moved",
    "note",
)


def weights_page(report: WeightsReport) -> Page:
    """Make the page of weights balanced on disk: sentences, four plots, tables of all pairs and of what was skipped.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> folder = tempfile.mkdtemp()
    >>> pair = {"q.lora_A.weight": np.array([[0.1, 0.0]]), "q.lora_B.weight": np.array([[8.0], [6.0]])}
    >>> path = fb.weights.write(folder + "/adapter.safetensors", pair)
    >>> report = fb.weights.balance_weights(path, folder + "/balanced.safetensors")
    >>> [table.title for table in fb.report.weights_page(report).tables]
    ['All pairs', 'What was run', 'Machine and versions']

    ```
    """
    facts = (
        ("input", report.source),
        ("output", report.out),
        ("recognised as", report.kind),
        ("strength", f"{report.strength:g}"),
        *((("gauge", report.gauge),) if any(pair.kind == "LoRA" for pair in report.pairs) else ()),
        ("tensors", f"{report.tensors:,}"),
        ("bytes of balanced tensors", f"{report.bytes:,}"),
        ("seconds", number(report.seconds)),
        *(("note", note) for note in report.notes),
    )
    machine = tuple((name, str(value)) for name, value in machine_facts().items())
    return Page(
        "Balanced weights",
        tuple(weights_sentences(report)),
        tuple(weights_plots(report)),
        (
            Table("All pairs", _COLUMNS, tuple(_row(pair, pair.name) for pair in report.pairs)),
            *_skipped(report),
            Table("What was run", (), facts),
            Table("Machine and versions", (), machine),
        ),
    )


def weights_sentences(report: WeightsReport) -> list[str]:
    """Tell in sentences what was balanced, how far the pairs were from balance, and what it did to the function.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> folder = tempfile.mkdtemp()
    >>> pair = {"q.lora_A.weight": np.array([[0.1, 0.0]]), "q.lora_B.weight": np.array([[8.0], [6.0]])}
    >>> path = fb.weights.write(folder + "/adapter.safetensors", pair)
    >>> report = fb.weights.balance_weights(path, folder + "/balanced.safetensors")
    >>> print(fb.report.weights_sentences(report)[0])
    The only pair of the LoRA file was balanced: the norms of its sides differed by a factor of 100,
    and agree now.

    ```
    """
    pairs = report.pairs
    ratios = [[ratio(pair.norms[when]) for pair in pairs] for when in (0, 1)]
    conditions = [statistics.median(max(pair.conditions[when]) for pair in pairs) for when in (0, 1)]
    imbalances = [[pair.imbalance[when] for pair in pairs] for when in (0, 1)]
    total = len(pairs) + len(report.skipped)
    how = "balanced" if report.strength == 1 else f"balanced at strength {report.strength:g}"
    now = f"by a factor of at most {number(max(ratios[1]))}" if max(ratios[1]) > 1.01 else ""
    if total == 1:
        first = (
            f"The only pair of the {report.kind} was {how}: the norms of its sides differed by a factor of "
            f"{number(ratios[0][0])}, and {f'differ {now} now' if now else 'agree now'}."
        )
    else:
        count = f"All {total} pairs" if not report.skipped else f"{len(pairs)} of {total} pairs"
        was = "was" if len(pairs) == 1 else "were"
        first = (
            f"{count} of the {report.kind} {was} {how}: the norms of their sides differed by a factor of "
            f"{number(statistics.median(ratios[0]))} in the median and {number(max(ratios[0]))} at most, and "
            f"{f'differ {now} now' if now else 'agree now'}."
        )
    second = (
        f"The largest imbalance was {number(max(imbalances[0]))}, relative to the squared norms, and is "
        f"{number(max(imbalances[1]))}; the larger condition number of a pair went from {number(conditions[0])} to "
        f"{number(conditions[1])}{'' if total == 1 else ' in the median'}."
    )
    return [first, second, _function(report), *_left_alone(report)]


def weights_tables(report: WeightsReport, *, every: bool = False) -> tuple[Table, ...]:
    """Make the tables for a terminal: a row for each pair, with long names cut in the middle, and what was skipped.

    `every`: show all pairs; otherwise, beyond 30, a summary by module and the ten that were worst.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> folder = tempfile.mkdtemp()
    >>> pair = {"q.lora_A.weight": np.array([[0.1, 0.0]]), "q.lora_B.weight": np.array([[8.0], [6.0]])}
    >>> path = fb.weights.write(folder + "/adapter.safetensors", pair)
    >>> report = fb.weights.balance_weights(path, folder + "/balanced.safetensors")
    >>> fb.report.weights_tables(report)[0].rows[0][:5]
    ('q', 'F64', '2 × 1 × 2', '1', '1 → 0')

    ```
    """
    if every or len(report.pairs) <= _MANY:
        return (
            Table(_SIDES, _COLUMNS, tuple(_row(pair, _cut(pair.name)) for pair in report.pairs)),
            *_skipped(report),
        )
    groups = report.by_module().items()
    summary = Table(
        "By module: medians, and the largest change",
        ("module", "pairs", "imbalance", "‖left‖", "‖right‖", "condition", "change"),
        tuple((module, str(len(pairs)), *_medians(pairs)) for module, pairs in groups),
    )
    worst = tuple(_row(pair, _cut(pair.name)) for pair in report.worst(_WORST))
    return (
        summary,
        Table(_SIDES.replace("The pairs", f"The {_WORST} furthest from balance"), _COLUMNS, worst),
        *_skipped(report),
    )


def _function(report: WeightsReport) -> str:
    types = sorted({pair.dtype for pair in report.pairs}, key=rounding)
    worst = max(report.pairs, key=lambda pair: pair.change / rounding(pair.dtype))
    against = listed([f"{number(rounding(dtype))} for {dtype}" for dtype in types])
    text = f"The products, and with them the function, changed by at most {number(report.worst_change)} of their norms"
    # Two factors that are rounded once each change by about twice the unit; in float64 the computation rounds too.
    allowed = 4 * rounding(worst.dtype) + 1e-13
    if worst.change <= allowed:
        return f"{text}: rounding, of which the unit is {against}."
    return (
        f"{text}, which is more than rounding of {worst.dtype} explains ({against}): look at {worst.name}, "
        f"{worst.note or 'whose small numbers may lie below the range of the type'}."
    )


def _left_alone(report: WeightsReport) -> list[str]:
    if not report.skipped:
        return []
    reasons = Counter(one.reason for one in report.skipped)
    parts = [f"{count} because {reason}" for reason, count in reasons.most_common(4)]
    more = len(reasons) - len(parts)
    tail = f", and others for {more} more reasons" if more else ""
    return [f"Left as they are: {'; '.join(parts)}{tail}."]


def _skipped(report: WeightsReport) -> tuple[Table, ...]:
    if not report.skipped:
        return ()
    return (Table("Skipped", ("name", "reason"), tuple((one.name, one.reason) for one in report.skipped)),)


def _row(pair: BalancedPair, name: str) -> tuple[str, ...]:
    sides = [_change(pair.norms[0][side], pair.norms[1][side]) for side in (0, 1)]
    return (
        name,
        pair.dtype,
        _sizes(pair),
        str(pair.rank),
        _change(*pair.imbalance),
        *sides,
        _change(max(pair.conditions[0]), max(pair.conditions[1])),
        number(pair.change, 2),
        number(pair.moved, 2),
        pair.note,
    )


def _medians(pairs: tuple[BalancedPair, ...]) -> tuple[str, ...]:
    columns = (
        [pair.imbalance for pair in pairs],
        [(pair.norms[0][0], pair.norms[1][0]) for pair in pairs],
        [(pair.norms[0][1], pair.norms[1][1]) for pair in pairs],
        [(max(pair.conditions[0]), max(pair.conditions[1])) for pair in pairs],
    )
    texts = [_change(*(statistics.median(one[when] for one in column) for when in (0, 1))) for column in columns]
    return (*texts, number(max(pair.change for pair in pairs), 2))


def _sizes(pair: BalancedPair) -> str:
    """Write the sizes of B (m, r) and A (r, n) as m × r × n; of other pairs their own shapes."""
    left, right = ("×".join(map(str, shape)) for shape in pair.shapes)
    if pair.kind == "LoRA" and len(pair.shapes[0]) == len(pair.shapes[1]) == 2:
        return " × ".join(map(str, (*pair.shapes[0], pair.shapes[1][1])))
    return f"{left}, {right}"


def _change(before: float, after: float) -> str:
    return f"{number(before, 2)} → {number(after, 2)}"


def _cut(name: str) -> str:
    """Cut a long name in its middle: its ends tell the layer and the module."""
    if len(name) <= _LONG:
        return name
    half = (_LONG - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
