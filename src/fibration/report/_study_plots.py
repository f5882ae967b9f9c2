"""The plots of a study: heat maps over its axes, small multiples of its curves, and numbers along its only axis."""

from collections.abc import Sequence

import numpy as np

from ..plots import Plot, Series
from ..plots._numbers import listed, number
from ._fidelity_plots import CUT, largest, shown_range
from ._figures import HeatMap, Panels
from ._quantities import Quantity, run_names
from ._records import FAMILY_LABELS, curve, family, runs_of, value
from ._run_plots import MOST_CURVES, MOST_PLOTS
from ._sweep import Axis, Sweep

_MOST_PANELS, _MOST_COLOURS, _MOST_MULTIPLES = 12, 6, 3
_MOST_NAMED = 20  # seeds that are named instead of placed by their number
_POINTS = 64  # of each curve where there are many


def study_plots(study: Sweep, found: Sequence[Quantity]) -> tuple[list[Plot | HeatMap | Panels], list[str]]:
    """Describe at most fourteen plots.

    **Returns:** the plots, and sentences about what is not drawn.
    """
    made: list[Plot | HeatMap | Panels] = [*_multiples(study), *_certificates(study)]
    telling = [one for one in found if not one.constant and np.isfinite(one.values).any()]
    drawn = _lines(study, telling) if len(study.drawn) < 2 else _heat_maps(study, telling)
    room = MOST_PLOTS - len(made)
    said: list[str] = []
    if len(drawn) > room:
        left = [figure.title for figure in drawn[room:]]
        said.append(f"Not drawn, since a page has at most {MOST_PLOTS} plots: {listed(left[:6])}" + _more(left))
    same = [f"{one.column} {_same(one.values)}" for one in found if one.constant]
    if same and len(study.records) > 1:
        said.append(f"Not drawn, since the same in every run: {listed(same[:6])}{_more(same)}")
    maps = [figure for figure in drawn[:room] if isinstance(figure, HeatMap)]
    if any(np.any(figure.failed) for figure in maps):
        said.append("In heat maps a cross marks places where runs failed, in a corner where others have a value.")
    return [*made, *drawn[:room]], said


def _more(left: Sequence[str]) -> str:
    return f" and {len(left) - 6} more." if len(left) > 6 else "."


def _same(values: np.ndarray) -> str:
    return number(values[~np.isnan(values)][0])


def _heat_maps(study: Sweep, found: Sequence[Quantity]) -> list[HeatMap]:
    """Describe each quantity over the two axes with most values, as the median over everything else."""
    x, y = study.by_length[:2]
    others = [axis.key for axis in (*study.by_length[2:], study.seeds) if len(axis.names) > 1]
    over = f", median over {listed(others)}" if others else ""
    cells: dict[tuple[int, int], list[int]] = {}
    for index, place in enumerate(zip(y.places, x.places, strict=True)):
        if min(place) >= 0:
            cells.setdefault((int(place[0]), int(place[1])), []).append(index)
    shape = len(y.names), len(x.names)
    failed = np.zeros(shape)
    for place, members in cells.items():
        failed[place] = sum(study.records[i].status in ("failed", "damaged") for i in members)
    return [_heat_map(one, (x, y), cells, failed, over) for one in found]


def _heat_map(
    one: Quantity, axes: tuple[Axis, Axis], cells: dict[tuple[int, int], list[int]], failed: np.ndarray, over: str
) -> HeatMap:
    x, y = axes
    values = np.full(failed.shape, np.nan)
    words = [[f"{x.key}: {column}\n{y.key}: {row}\nno run" for column in x.names] for row in y.names]
    for (row, column), members in cells.items():
        have = one.values[members]
        have = have[~np.isnan(have)]
        if len(have):
            # The lower of two in the middle, so that half of them diverging does not make it infinite.
            values[row, column] = np.median(have) if np.isfinite(have).all() else np.sort(have)[(len(have) - 1) // 2]
        lost = f", {failed[row, column]:.0f} failed" if failed[row, column] else ""
        told = "no value" if not len(have) else number(values[row, column], 4)
        spread = f"\nfrom {number(have.min())} to {number(have.max())}" if len(have) > 1 else ""
        runs = f"{len(members)} {'run' if len(members) == 1 else 'runs'}"
        words[row][column] = f"{x.key}: {x.names[column]}\n{y.key}: {y.names[row]}\n{told}{spread}\n{runs}{lost}"
    told = tuple(tuple(row) for row in words)
    return HeatMap(one.title, f"{one.caption}{over}.", x.key, y.key, x.names, y.names, values, failed, told)


def _lines(study: Sweep, found: Sequence[Quantity]) -> list[Plot]:
    """Describe quantities along the only axis: a dot for each run, and the medians joined."""
    if not study.drawn:
        return []
    axis, names = study.drawn[0], run_names(study.records)
    kinds = dict.fromkeys(one.kind for one in found)
    return [_line(axis, [one for one in found if one.kind == kind], names, seeds=axis is study.seeds) for kind in kinds]


def _line(axis: Axis, members: Sequence[Quantity], names: Sequence[str], *, seeds: bool) -> Plot:
    at = axis.numbers if axis.numbers is not None else np.arange(float(len(axis.names)))
    if named := axis.numbers is None or (seeds and len(axis.names) <= _MOST_NAMED):
        at = np.arange(float(len(axis.names)))
    series: list[Series] = []
    for one in members:
        shade = names.index(one.run) + 1 if one.run in names else 1
        have = (axis.places >= 0) & ~np.isnan(one.values)
        x, y = at[axis.places[have]], one.values[have]
        if not seeds:
            middle = np.array([np.median(y[x == place]) for place in np.unique(x)], float)
            series.append(Series(one.run or one.column, np.unique(x), middle, shade))
        name = one.run or one.column
        series.append(Series(name if seeds else f"{name}, each run", x, y, shade, "none"))
    shown = np.concatenate([one.y for one in series])
    shown = shown[np.isfinite(shown)]
    y_log = bool(len(shown) and shown.min() > 0 and shown.max() > 30 * shown.min())
    kind, of = members[0].kind, members[0].run if len(members) == 1 else "each run"
    join = "" if seeds else "; the line joins the medians"
    lost = sum(int(np.isinf(one.values).sum()) for one in members)
    join += f"; left out, since not finite: {lost} of {sum(len(one.values) for one in members)}" if lost else ""
    return Plot(
        kind.title.format(run=of),
        f"{kind.caption.format(run=of)}{join}.",
        axis.key,
        kind.label,
        tuple(series),
        x_log=not named and bool(at.min() > 0 and at.max() >= 8 * at.min()),
        y_log=y_log,
        x_names=axis.names if named else (),
    )


def _multiples(study: Sweep) -> list[Panels]:
    """Describe the costs over time of the first flows and descents, side by side along the first axis."""
    made = [_multiple(study, name) for name in run_names(study.records)]
    return [panels for panels in made if panels is not None][:_MOST_MULTIPLES]


def _multiple(study: Sweep, name: str) -> Panels | None:
    across, colours = (*study.by_length[:2], None, None)[:2]
    shown = _chosen(len(across.names), _MOST_PANELS) if across is not None else [0]
    hues = _chosen(len(colours.names), _MOST_COLOURS) if colours is not None else [0]
    members = [i for i, record in enumerate(study.records) if f"{name}.cost" in record.summary]
    members = [i for i in members if across is None or across.places[i] in shown]
    members = [i for i in members if colours is None or colours.places[i] in hues]
    kept = [members[i] for i in _chosen(len(members), MOST_CURVES)]
    panels: list[tuple[str, tuple[Series, ...]]] = []
    words: list[str] = []
    for place in shown:
        curves: list[Series] = []
        for i in kept:
            points = curve(study.records[i], f"{name}.cost")
            if points is None or (across is not None and across.places[i] != place):
                continue
            hue = 0 if colours is None else hues.index(int(colours.places[i]))
            label = name if colours is None else f"{colours.key} = {colours.told[i]}"
            curves.append(Series(label, _thin(points[0]), _thin(points[1]), hue + 1))
            words.append(f"{study.where(i)}\nrun {study.records[i].id}")
        if curves:
            panels.append((name if across is None else f"{across.key} = {across.names[place]}", tuple(curves)))
    if not panels:
        return None
    return _drawn(study, name, panels, words, [(across, shown), (colours, hues)], len(members) - len(kept))


def _drawn(
    study: Sweep,
    name: str,
    panels: list[tuple[str, tuple[Series, ...]]],
    words: list[str],
    chosen: Sequence[tuple[Axis | None, list[int]]],
    left_out: int,
) -> Panels:
    everything = [series for _, curves in panels for series in curves]
    log = any(np.any(series.y > 0) for series in everything)
    starts = np.array([series.y[0] for series in everything])
    limits = shown_range(everything, 100 * largest(starts), log=log) if np.any(starts > 0) else None
    caption = f"The cost of {name} over time, one line for each run"
    if chosen[0][0] is not None:
        caption += f", one panel for each {chosen[0][0].key}"
    for axis, shown in chosen:
        if axis is not None and len(shown) < len(axis.names):
            caption += f"; shown are {len(shown)} of the {len(axis.names)} values of {axis.key}"
    if left_out:
        caption += f"; {left_out:,} curves are left out, every so many of them, to keep {MOST_CURVES}"
    run = next((runs_of(record)[name] for record in study.records if name in runs_of(record)), {})
    return Panels(
        f"Cost of {name} over time",
        f"{caption}{CUT if limits else ''}.",
        FAMILY_LABELS[family(run)].partition(" (")[0],
        "cost",
        tuple(panels),
        tuple(words),
        y_log=log,
        y_range=limits,
        span=len(panels) > 3,
    )


def _chosen(count: int, most: int) -> list[int]:
    """Choose at most so many of `count`, evenly, with both ends."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())) if count else []


def _thin(values: np.ndarray) -> np.ndarray:
    return values[_chosen(len(values), _POINTS)]


def _certificates(study: Sweep) -> list[Plot]:
    """Describe what certificates promise against what was measured."""
    series: list[Series] = []
    names = run_names(study.records)
    told = 0
    for name in names:
        pairs = np.array(
            [
                (bound, distance)
                for record in study.records
                if (bound := value(record, f"{name}.bound")) is not None
                and (distance := value(record, f"{name}.distance")) is not None
            ],
            float,
        ).reshape(-1, 2)
        told += len(pairs)
        pairs = pairs[np.isfinite(pairs).all(axis=1) & (pairs > 0).all(axis=1)]
        if len(pairs):
            series.append(Series(name, pairs[:, 0], pairs[:, 1], names.index(name) + 1, "none"))
    points = sum(len(one.x) for one in series)
    if points < 2:
        return []
    ends = np.array([min(one.y.min() for one in series), max(one.x.max() for one in series)])
    above = sum(int(np.sum(one.y > one.x)) for one in series)
    wrong = f"; {above:,} of {points:,} lie above it" if above else ""
    without = f"; {told - points:,} of {told:,} have no finite bound at their end" if told > points else ""
    return [
        Plot(
            "Certificates against distances",
            "How far each descent ends from the gradient flow, against the bound of it that its certificate gives; no "
            f"bound is wrong as long as every circle is under the line{wrong}{without}.",
            "certified bound",
            "distance from the flow",
            (Series("bound = distance", ends, ends, 0, "dotted"), *series),
            x_log=True,
            y_log=True,
        )
    ]
