"""One point of a study: its flows and descents, with checkpoints, then its diagnostics."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import xarray as xr

from ..errors import StepSizeError
from ..flows import AdaptedFlow, GradientFlow
from ..optim import minimize
from ..problem import Problem
from ..solvers import Checkpoint, Options, Stop, Trajectory, descend, integrate
from ..solvers._options import ProgressCallback
from ..solvers._trajectory import is_saved
from ..trees import PyTree
from ._build import Built, build
from ._diagnostics import Findings, diagnostics
from ._run import CHECKPOINTS, RunWriter
from ._schema import Descent, Flow, LeastSquares, Point

_CURVE = 128  # points of a curve in the manifest; all are in the results
OPTIMISERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}


class OverBudget(Exception):  # noqa: N818  (no fault: what is done is kept, and `resume` goes on)
    """A run took longer than its budget."""


def run_point(
    point: Mapping[str, Any],
    run: RunWriter | Any,
    *,
    mesh: Any = None,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> None:
    """Run all that a point asks for, and write it.

    Trajectories that a killed run had begun go on from their checkpoints, to bit-identical results.
    """
    spec = Point.model_validate(dict(point))
    with jax.enable_x64(spec.precision == "float64"):
        built = build(spec, mesh)
        asked = diagnostics(spec)
        observe = {key: look for one in asked.values() for key, look in one.observers(built).items()}
        trajectories: dict[str, Trajectory] = {}
        for name in sorted(spec.runs, key=lambda name: not isinstance(spec.runs[name], Flow)):
            report = None if progress is None else progress(name)
            solved = _solve(spec, name, built, observe, trajectories, run, report)
            if solved.result.code == "wall_seconds":
                raise OverBudget(f"[runs.{name}] reached its budget of {spec.budget.seconds:g} s: {solved.result}")
            trajectories[name] = solved
            if not run.finished(name):
                run.write(name, _dataset(solved, spec.save_parameters))
        found = Findings()
        for name, trajectory in trajectories.items():
            _conclude(name, trajectory, found)
            asked_run = spec.runs[name]
            if isinstance(asked_run, Descent):
                found.summary[f"{name}.step_size"] = paces(asked_run, trajectories)[0]
        begun = time.monotonic()
        for one in asked.values():
            one.conclude(spec, built, trajectories, found)
        found.summary["diagnostics.seconds"] = time.monotonic() - begun
    found.summary["parameters"] = float(built.problem.n_parameters(built.params))
    found.summary["residuals"] = float(built.problem.n_residuals)
    gradients = sum(int(trajectory.stats.get("gradient_evaluations", 0)) for trajectory in trajectories.values())
    curves = {name: thinned(*curve) for name, curve in found.curves.items()}
    run.finish(found.summary, curves, gradients=gradients)
    if jax.process_index() == 0:
        shutil.rmtree(run.directory / CHECKPOINTS, ignore_errors=True)  # the results say it all now


def _solve(
    spec: Point,
    name: str,
    built: Built,
    observe: Mapping[str, Any],
    done: Mapping[str, Trajectory],
    run: RunWriter | Any,
    report: ProgressCallback | None,
) -> Trajectory:
    """Solve one flow, or run one descent, from the checkpoint if there is one."""
    asked = spec.runs[name]
    below = getattr(asked, "stop_below", None)
    common: dict[str, Any] = {
        "observe": observe,
        "checkpoint": Checkpoint(run.checkpoint(name), every=spec.budget.checkpoint_seconds),
        "progress": report,
        "options": Options(chunk_seconds=0.2),
        "stop": Stop(cost_below=below, wall_seconds=spec.budget.seconds),
    }
    problem, params = built.problem, built.params
    match asked:
        case Flow():
            field = GradientFlow() if asked.field == "gradient" else AdaptedFlow(damping=asked.damping)
            times = np.linspace(0.0, asked.t1, asked.saves)
            return integrate(
                problem, field, params, asked.t1, rtol=asked.rtol, atol=asked.atol, times=times, method=asked.method,
                **common,
            )  # fmt: skip
        case Descent():
            return _descend(asked, problem, params, done, common)
        case LeastSquares():
            return minimize(problem, params, asked.steps, asked.tolerance, acceleration=asked.acceleration, **common)


def _descend(
    asked: Descent, problem: Problem, params: PyTree, done: Mapping[str, Trajectory], common: dict[str, Any]
) -> Trajectory:
    step, steps, per_save = paces(asked, done)
    if asked.method in OPTIMISERS:
        return descend(problem, OPTIMISERS[asked.method](step), params, steps=steps, save_every=per_save, **common)
    field = GradientFlow() if asked.method == "gradient" else AdaptedFlow()
    return descend(problem, field, params, step_size=step, steps=steps, save_every=per_save, **common)


def paces(asked: Descent, done: Mapping[str, Trajectory]) -> tuple[float, int, int]:
    """Find step size, steps, and steps between saved times; with `t1` those fall on whole, slightly smaller steps."""
    step = asked.step_size
    if step is None:
        sharpness = float(np.max(done[asked.of].observed["sharpness"]))
        if not 0 < sharpness < np.inf:
            raise StepSizeError(
                f"the largest sharpness along {asked.of!r} is {sharpness:g}, and the stable step size 2/{sharpness:g}",
                "a curvature that bounds steps",
                "give `step_size`",
            )
        step = (asked.stable_fraction or 0.0) * 2 / sharpness
    intervals = asked.saves - 1
    if asked.t1 is None:
        steps = asked.steps or 0
        return step, steps, max(1, steps // intervals)
    per_save = int(np.ceil(asked.t1 / intervals / step - 1e-9))
    return asked.t1 / intervals / per_save, per_save * intervals, per_save


def _dataset(trajectory: Trajectory, save: str) -> xr.Dataset:
    """Make what is stored; slashes in names would be groups of their own on disk."""
    if save == "last":
        last = jax.tree.map(lambda leaf: leaf[-1:] if is_saved(leaf) else leaf, trajectory.params)
        trajectory = dataclasses.replace(trajectory, params=last)
    found = trajectory.to_xarray()
    names = {str(name) for name in (*found.variables, *found.dims)}
    return found.rename({name: name.replace("/", ".") for name in names if "/" in name})


def _conclude(name: str, trajectory: Trajectory, found: Findings) -> None:
    """Tell of a run what every run has."""
    costs = np.asarray(trajectory.costs)
    stats = trajectory.stats
    found.curves[f"{name}.cost"] = (np.asarray(trajectory.times, float), costs)
    found.summary[f"{name}.cost"] = float(costs[-1])
    found.summary[f"{name}.gradients"] = float(stats.get("gradient_evaluations", 0))
    found.summary[f"{name}.seconds"] = float(stats.get("wall_seconds", 0.0))
    found.summary[f"{name}.ended"] = trajectory.result.code
    found.summary[f"{name}.time"] = float(trajectory.times[-1])


def thinned(x: np.ndarray, y: np.ndarray, most: int = _CURVE) -> dict[str, list[float]]:
    """Keep at most so many points of a curve, evenly spaced, with both ends."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    return {"x": np.asarray(x, float)[keep].tolist(), "y": np.asarray(y, float)[keep].tolist()}
