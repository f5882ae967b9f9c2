"""One flow and several descents from the same start: how faithful is each step size?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import fidelity
from ..curvature import Sharpness
from ..flows import GradientFlow
from ..problem import AbstractProblem
from ..solvers import Options, Trajectory, descend, integrate
from ..solvers._options import ProgressCallback
from ..trees import PyTree


@dataclass(frozen=True)
class FidelityStudy:
    """A gradient flow and gradient descents at several step sizes, saved at the same times.

    `flow` and `descents`: trajectories with the observation "sharpness", the largest Hessian eigenvalue; `step_sizes`:
    one for each descent, increasing; `stable_step_size`: 2 over the largest sharpness along the flow; `facts`: what was
    run, by name.
    """

    flow: Trajectory
    descents: tuple[Trajectory, ...]
    step_sizes: tuple[float, ...]
    stable_step_size: float
    facts: Mapping[str, Any]

    def distances(self) -> list[np.ndarray]:
        """Compute |θ_descent − θ_flow| at the saved times, one vector (T,) for each descent."""
        return [fidelity.distance(descent, self.flow)[1] for descent in self.descents]

    def crossing_time(self, step_size: float) -> float | None:
        """Find when the flow's sharpness last climbs above 2/step size, or `None` if it ends below."""
        above = self.flow.observed["sharpness"] > 2 / step_size
        if not above[-1]:
            return None
        below = np.flatnonzero(~above)
        return float(self.flow.times[below[-1] + 1 if len(below) else 0])


def fidelity_study(
    problem: AbstractProblem,
    params: PyTree,
    *,
    t1: float,
    fractions: Sequence[float] = (0.1, 0.4, 0.9, 1.2),
    n_times: int = 61,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    progress: Callable[[str], ProgressCallback] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> FidelityStudy:
    """Solve the gradient flow, then descend at step sizes that are fractions of the largest stable one.

    **Arguments:** `fractions`: of 2/(largest sharpness along the flow); above 1 gradient descent is unstable somewhere
    along the flow. Each step size is rounded down so that the `n_times` equally spaced saved times fall on whole steps.
    `progress`: makes a progress callback for each run from its description, such as `ProgressBar().task`.

    **Raises:** what `integrate` and `descend` raise.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> study = fb.study.fidelity_study(problem, jnp.array(1.0), t1=4.0, fractions=(0.1, 1.1), n_times=3, rtol=1e-4)
    >>> [round(step_size, 3) for step_size in study.step_sizes]  # 2/sharpness = 2; whole steps within 2.0
    [0.2, 2.0]

    ```
    """
    report = (lambda _: None) if progress is None else progress
    times = np.linspace(0.0, t1, n_times)
    options = Options(chunk_seconds=0.2)
    flow = integrate(
        problem,
        GradientFlow(),
        params,
        t1,
        rtol=rtol,
        atol=atol,
        times=times,
        observe={"sharpness": Sharpness()},
        progress=report("gradient flow"),
        options=options,
    ).raise_if_failed()
    stable = 2 / float(np.max(flow.observed["sharpness"]))
    descents, step_sizes = [], []
    for fraction in sorted(fractions):
        per_save = int(np.ceil(times[1] / (fraction * stable) - 1e-9))
        step_size = float(times[1] / per_save)
        descents.append(
            descend(
                problem,
                GradientFlow(),
                params,
                step_size=step_size,
                steps=per_save * (n_times - 1),
                save_every=per_save,
                observe={"sharpness": Sharpness()},
                progress=report(f"descent, step size {step_size:.3g}"),
                options=options,
            )
        )
        step_sizes.append(step_size)
    return FidelityStudy(flow, tuple(descents), tuple(step_sizes), stable, dict(facts or {}))
