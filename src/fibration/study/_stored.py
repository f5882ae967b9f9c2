"""From stored results back to what the library works with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..errors import StoreError
from ..solvers import Result, Trajectory
from ._fidelity import FidelityStudy
from ._records import RunRecord
from ._schema import Descent, Flow, Point


def trajectory(dataset: xr.Dataset) -> Trajectory:
    """Make a trajectory of a stored one; its parameters are a dictionary from paths to arrays.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([1.0]))
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.array(0.0), step_size=0.5, steps=2)
    >>> print(fb.study.trajectory(run.to_xarray()).result)
    completed at t = 1

    ```
    """
    times = np.asarray(dataset["time"].values, float)
    parts: dict[str, dict[str, np.ndarray]] = {"params": {}, "observed": {}, "": {}}
    for name, variable in dataset.data_vars.items():
        kind, _, rest = str(name).replace("/", ".").partition(".")
        along = bool(variable.dims) and variable.dims[0] == "time"
        values = np.asarray(variable.values)
        if kind == "params":
            parts["params"][rest] = values if along else values[None]
        elif kind == "observed":
            parts["observed"][rest] = values
        else:
            parts[""][str(name)] = values
    stats: dict[str, Any] = dict(dataset.attrs)
    result = Result(str(stats.pop("result", "completed")), float(stats.pop("result_time", times[-1])))
    costs = parts[""].pop("cost", None)
    stats |= {name: values.tolist() for name, values in parts[""].items()}
    return Trajectory(times, parts["params"], costs, parts["observed"], result, stats)


def fidelity_of(record: RunRecord, facts: Mapping[str, Any] | None = None) -> FidelityStudy:
    """Make the `FidelityStudy` of a stored run: its gradient flow, and its gradient descents by step size.

    **Raises:** `StoreError` for a run without a gradient flow and a descent with all their parameters and sharpness.
    """
    point = Point.model_validate(record.point)
    flows = [name for name, run in point.runs.items() if isinstance(run, Flow) and run.field == "gradient"]
    descents = [name for name, run in point.runs.items() if isinstance(run, Descent) and run.method == "gradient"]
    if len(flows) != 1 or not descents or point.save_parameters != "all" or not point.diagnostics.sharpness:
        raise StoreError(
            f"run {record.id} has gradient flows {flows}, descents {descents}, and saved {point.save_parameters!r}",
            'one gradient flow, gradient descents, `save_parameters = "all"` and `diagnostics.sharpness = true`',
            "change the study file, and run it again",
        )
    steps = {name: float(record.summary[f"{name}.step_size"] or 0) for name in descents}
    ordered = sorted(descents, key=steps.__getitem__)
    flow = trajectory(record.open(flows[0]))
    stable = 2 / float(np.max(flow.observed["sharpness"]))
    runs = tuple(trajectory(record.open(name)) for name in ordered)
    return FidelityStudy(flow, runs, tuple(steps[name] for name in ordered), stable, dict(facts or facts_of(record)))


def facts_of(record: RunRecord) -> dict[str, Any]:
    """Tell what was run, by name."""
    point = record.point
    data, network = dict(point["data"]), dict(point["network"])
    told = {
        "data": _told(data.pop("source"), data),
        "network": _told(network.pop("kind"), network),
        "loss": point["loss"].replace("_", " "),
        "dtype": point["precision"],
        "seed": point["seed"],
    }
    counts = {"parameters": record.summary.get("parameters"), "residuals": record.summary.get("residuals")}
    return told | {name: int(value) for name, value in counts.items() if isinstance(value, float)}


def _told(name: str, options: Mapping[str, Any]) -> str:
    said = [key if value is True else f"{key} {value}" for key, value in options.items() if value not in (None, False)]
    return ", ".join([name, *said])
