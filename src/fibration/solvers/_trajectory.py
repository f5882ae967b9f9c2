"""What a run returns: saved times, parameters, costs, observations, statistics and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ..errors import BlowUpError, DifferentialRankError, DivergedError
from ..trees import PyTree

if TYPE_CHECKING:
    import xarray

FAILURES = {
    "nonfinite": ("parameters, velocity or cost turned NaN or infinite", "a smaller step size, or another start"),
    "step_underflow": (
        "no step met the tolerance, however short",
        "a larger rtol or atol, float64, another method, or a smoother field",
    ),
    "rank_loss": (
        "the differential of the outputs lost rank",
        'damping, `on_rank_loss="damp"`, more parameters, or another start',
    ),
    "blow_up": (
        "the parameters run off to infinity in finite time",
        "targets that the network's outputs can reach, damping, or another start",
    ),
    "stalled": (
        "no step lowered the cost although one should have, however short",
        "a smoother network, float64, or another start",
    ),
    "max_steps": ("the limit on steps was reached", "a larger `Options.max_steps`, or looser tolerances"),
}


def is_saved(leaf: Any) -> bool:
    """Tell whether a leaf of a trajectory's parameters was saved along the way, and was not held constant."""
    return isinstance(leaf, np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    `code`: "completed", the name of the stop condition that was met ("cost_below", "gradient_norm_below", "time",
    "wall_seconds" or your own), or a failure: "nonfinite", "step_underflow", "max_steps", and of an adapted flow
    "rank_loss" or "blow_up"; `time`: the time at which it ended; `detail`: what the flow has to say about it;
    `message`: all of this in a sentence.
    """

    code: str
    time: float
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run ended for a reason that nobody asked for."""
        return self.code in FAILURES

    @property
    def message(self) -> str:
        """The result in a sentence."""
        detail = f"; {self.detail}" if self.detail else ""
        if self.failed:
            return f"failed at t = {self.time:.6g}: {FAILURES[self.code][0]}{detail}"
        if self.code == "completed":
            return f"completed at t = {self.time:.6g}{detail}"
        return f"stopped at t = {self.time:.6g}: {self.code}{detail}"

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Trajectory:
    """A solved flow or a finished descent; a plain record of numpy arrays.

    - `times` (T,): the saved times, increasing; for an optimiser, numbers of steps.
    - `params`: a pytree like the parameters, with a leading axis T on its floating-point leaves; with
      `Options(save="last")` that axis has length 1.
    - `costs` (T,): the cost at the saved times; `None` where there is no problem (`solve`).
    - `observed`: what each observer returned, stacked: name -> (T, …).
    - `stats`: "gradient_evaluations" (all but the one that checks the start) and "hvp_evaluations" (Jacobian–vector
      products of stabilised methods), "cost_evaluations" (of stop conditions and saved times), "steps" (accepted),
      "rejected", "method", "wall_seconds", and for a resumed run "resumed_at". Stabilised methods add
      "spectral_radius", the estimate in force at each saved time, NaN where a classical one was at work; "auto"
      adds "steps_by_method", and if it changed the method "switches" and "first_switch", its time.
    - `result`: how the run ended.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([1.0]))
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.array(0.0), step_size=0.5, steps=2)
    >>> print(run.times, run.params, run.result)
    [0.  0.5 1. ] [0.   0.5  0.75] completed at t = 1

    ```
    """

    times: Float[np.ndarray, " T"]
    params: PyTree
    costs: Float[np.ndarray, " T"] | None
    observed: Mapping[str, Shaped[np.ndarray, "T ..."]]
    result: Result
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final_params(self) -> PyTree:
        """The parameters at the last saved time, as JAX arrays, ready to go on from."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[-1]) if is_saved(leaf) else leaf, self.params)

    def raise_if_failed(self) -> "Trajectory":
        """Return the trajectory itself, or raise an error that holds it if its result is a failure.

        **Raises:** `DifferentialRankError` for "rank_loss", `BlowUpError` for "blow_up", `DivergedError` for others.
        """
        if self.result.failed:
            what, fix = FAILURES[self.result.code]
            given = f"{what} at t = {self.result.time:.6g}, after {self.stats.get('steps', '?')} steps"
            given += f"; {self.result.detail}" if self.result.detail else ""
            error = {"rank_loss": DifferentialRankError, "blow_up": BlowUpError}.get(self.result.code, DivergedError)
            raise error(given, "a run that reaches its end", f"try {fix}", self)
        return self

    def to_xarray(self) -> "xarray.Dataset":
        """Convert to a labelled `xarray.Dataset` along the dimension `time`.

        Variables: `cost`, `params/<path>` for each leaf, `observed/<name>`, and what the method noted at each saved
        time, such as `spectral_radius`; attributes: the statistics and the result. With `Options(save="last")` the
        parameters have no `time`.

        ```python
        >>> import jax.numpy as jnp
        >>> import fibration as fb
        >>> problem = fb.Problem(lambda p, x: p["w"] * x, jnp.array([1.0]), jnp.array([1.0]))
        >>> run = fb.descend(problem, fb.GradientFlow(), {"w": jnp.array(0.0)}, step_size=0.5, steps=2)
        >>> run.to_xarray()["params/w"].dims
        ('time',)

        ```
        """
        import xarray

        variables: dict[str, Any] = {}
        if self.costs is not None:
            variables["cost"] = ("time", self.costs)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            if is_saved(leaf):
                name = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
                along = leaf.shape[0] == len(self.times)
                values = leaf if along else leaf[0]
                axes = [f"{name}_{i}" for i in range(leaf.ndim - 1)]
                variables[name.rstrip("/")] = (["time", *axes] if along else axes, values)
        for name, values in self.observed.items():
            axes = [f"observed/{name}_{i}" for i in range(values.ndim - 1)]
            variables[f"observed/{name}"] = (["time", *axes], values)
        stats = dict(self.stats)
        for name in [name for name, values in stats.items() if isinstance(values, list)]:
            variables[name] = ("time", np.asarray(stats.pop(name)[: len(self.times)]))
        # Files hold no dictionaries among their attributes.
        stats |= {f"steps_{name}": count for name, count in stats.pop("steps_by_method", {}).items()}
        attributes = {**stats, "result": self.result.code, "result_time": self.result.time}
        return xarray.Dataset(variables, coords={"time": self.times}, attrs=attributes)
