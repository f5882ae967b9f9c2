"""The page of a fidelity study: what was found, in three sentences and five plots."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plots._numbers import distinct, number
from ..solvers import Trajectory
from ..study import FidelityStudy, machine_facts
from ._fidelity_plots import distance, fidelity_plots, names, reached_end, travelled
from ._page import Page, Table


def fidelity_page(study: FidelityStudy) -> Page:
    """Make the page of a study: three sentences, five plots, and tables of what was run and on what.

    **Raises:** `EmptyDataError` for a study without descents.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> study = fb.study.fidelity_study(problem, jnp.array(1.0), t1=4.0, fractions=(0.1,), n_times=3, rtol=1e-4)
    >>> [table.title for table in fb.report.fidelity_page(study).tables]
    ['Runs', 'What was run', 'Machine and versions']

    ```
    """
    what = {
        **study.facts,
        "end time": f"{study.flow.times[-1]:.6g}",
        "saved times": len(study.flow.times),
        "largest stable step size": f"{number(study.stable_step_size)} (2 over the flow's largest sharpness)",
    }
    return Page(
        "How closely does gradient descent follow the gradient flow?",
        tuple(three_sentences(study)),
        tuple(fidelity_plots(study)),
        (
            _runs(study),
            Table("What was run", (), _rows(what)),
            Table("Machine and versions", (), _rows(machine_facts())),
        ),
    )


def three_sentences(study: FidelityStudy) -> list[str]:
    """Tell in three sentences what a study found: how close, where it parts, and at what cost.

    Every number is computed from the study's trajectories.

    **Raises:** `EmptyDataError` for a study without descents.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> study = fb.study.fidelity_study(problem, jnp.array(1.0), t1=4.0, fractions=(0.1,), n_times=3, rtol=1e-4)
    >>> print(fb.report.three_sentences(study)[0])
    The gradient flow is training with infinitely small steps; gradient descent with the only step size, 0.2, ends
    0.00... away from it in parameter space, which is 0.69... % of the distance that the flow travelled until t = 4.

    ```
    """
    names(study)
    return [_closeness(study), _parting(study), _price(study)]


def _closeness(study: FidelityStudy) -> str:
    times, distances, own = distance(study, 0)
    run, step = study.descents[0], distinct(study.step_sizes)[0]
    who = "The gradient flow is training with infinitely small steps; gradient descent with the "
    who += f"{'only' if len(study.descents) == 1 else 'smallest'} step size, {step}, "
    if run.result.code == "nonfinite" or not np.isfinite(distances[-1]):
        return f"{who}diverges: it {run.result.message}."
    how = f"ends {number(distances[-1])} away from it in parameter space"
    if not reached_end(study, run):
        how = f"{run.result.message}, {number(distances[-1])} away from it in parameter space at its last saved time"
    if not own[-1] > 0:
        return f"{who}{how}, while the flow did not move until t = {times[-1]:.6g}."
    share = f"{number(100 * distances[-1] / own[-1])} %"
    return f"{who}{how}, which is {share} of the distance that the flow travelled until t = {times[-1]:.6g}."


def _parting(study: FidelityStudy) -> str:
    index = len(study.descents) - 1
    run, step_size, step = study.descents[index], study.step_sizes[index], distinct(study.step_sizes)[index]
    times, distances, _ = distance(study, index)
    sharpness, limit = study.flow.observed["sharpness"], 2 / step_size
    crossing = study.crossing_time(step_size)
    text = (
        "A descent can follow the flow only while the sharpness (the largest curvature of the cost) is below 2/step "
        f"size, that is below {number(limit)} for the {'only' if index == 0 else 'largest'} one, {step}; the flow's "
    )
    if crossing is None and np.max(sharpness) <= limit:
        text += f"sharpness stays below that, at most {number(np.max(sharpness))}"
    elif crossing is None:
        text += (
            f"sharpness climbs above that, to {number(np.max(sharpness))}, but ends below, at {number(sharpness[-1])}"
        )
    elif crossing <= study.flow.times[0]:
        text += "sharpness is above that from the start"
    else:
        text += f"sharpness climbs above that by t = {crossing:.6g}"
        if times[-1] >= crossing * (1 - 1e-9):
            then = distances[np.abs(times - crossing).argmin()]
            text += f", when this descent is {number(then)} away from the flow"
    if reached_end(study, run):
        return f"{text}, and at the end this descent is {number(distances[-1])} away from the flow."
    return f"{text}, and this descent {run.result.message}."


def _price(study: FidelityStudy) -> str:
    run = study.descents[0]
    flow_cost, cost = (int(r.stats["gradient_evaluations"]) for r in (study.flow, run))
    which = "only" if len(study.descents) == 1 else "smallest"
    compared = "just as many"
    if cost > flow_cost:
        compared = f"{number(cost / flow_cost)} times as many"
    elif cost < flow_cost:
        compared = f"{number(100 * cost / flow_cost)} % of that"
    until = "" if reached_end(study, run) else f" until it ended at t = {run.result.time:.6g}"
    return (
        f"Solving the flow ({study.flow.stats['method']}) took {flow_cost:,} gradients of the cost, and the descent "
        f"with the {which} step size took {cost:,}{until}, {compared}."
    )


def _runs(study: FidelityStudy) -> Table:
    columns = (
        "run",
        "of stable limit",
        "method",
        "gradients",
        "seconds",
        "final cost",
        "distance travelled",
        "distance from flow",
        "sharpness at end",
        "ended",
    )
    from_flow = ["0", *(number(distance(study, index)[1][-1]) for index in range(len(study.descents)))]
    limits = ["–", *(f"{number(100 * step / study.stable_step_size)} %" for step in study.step_sizes)]
    runs = (study.flow, *study.descents)
    rows = [_run(*row) for row in zip(names(study), runs, limits, from_flow, strict=True)]
    return Table("Runs", columns, tuple(rows))


def _run(name: str, run: Trajectory, limit: str, from_flow: str) -> tuple[str, ...]:
    return (
        name,
        limit,
        str(run.stats["method"]),
        f"{int(run.stats['gradient_evaluations']):,}",
        number(float(run.stats["wall_seconds"])),
        "–" if run.costs is None else number(float(run.costs[-1])),
        number(float(travelled(run)[-1])),
        from_flow,
        number(float(run.observed["sharpness"][-1])),
        "completed" if run.result.code == "completed" else run.result.message,
    )


def _rows(facts: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple((str(name), str(value)) for name, value in facts.items())
