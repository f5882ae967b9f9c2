"""Kinks: of what order are methods on the gradient flow of a network with rectifiers?"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from .. import datasets, fidelity, networks
from ..errors import StepSizeError
from ..flows import GradientFlow
from ..losses import CrossEntropy
from ..problem import Problem
from ..solvers import Trajectory, descend, integrate
from ..solvers._options import ProgressCallback
from ._runge_kutta import ClassicalRungeKutta

if TYPE_CHECKING:
    import xarray

SCHEMES = ("Euler", "Runge–Kutta 4")


def relu_order(
    activations: Sequence[str] = ("tanh", "relu"),
    *,
    samples: int = 300,
    hidden: int = 32,
    t1: float = 5.0,
    step_counts: Sequence[int] = (32, 64, 128, 256, 512, 1024),
    rtols: Sequence[float] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    reference_steps: int = 16_384,
    seed: int = 0,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> "xarray.Dataset":
    """Measure methods on the gradient flow of a smooth network and of one with rectifiers, at fixed and adaptive steps.

    A 64-`hidden`-10 network without biases on `samples` normalised digits, cross-entropy, from t = 0 to `t1`. The
    gradient of a rectifier network jumps wherever a unit's input changes its sign on a sample. A method of any order
    then errs by step size × jump in the step that crosses it, which leaves order one; and a step-size control that
    believes its error estimate takes ever more steps, up to 1/rtol, where a smooth flow takes rtol^(−1/5) (Tsit5).

    **Arguments:** `step_counts`: numbers of equal steps, of Euler's method (gradient descent) and of the classical
    Runge–Kutta method; `rtols`: tolerances of `integrate`, with atol = rtol/100; `reference_steps`: errors are
    distances at `t1` from the classical Runge–Kutta method with that many steps.

    **Returns:** a data set with `fixed_error` (activation, scheme, steps), `order` (activation, scheme), the slope of
    log error against log step size, and `error`, `steps_taken`, `rejected` and `gradient_evaluations`
    (activation, rtol) of the adaptive runs. Errors are relative to the distance travelled.

    **Raises:** `StepSizeError` for fewer than two step counts or for a reference no finer than they are;
    `UnknownNameError` for an activation that `networks.ACTIVATIONS` does not have.

    **Source:** derived; for Runge–Kutta methods across discontinuities see Hairer, Nørsett and Wanner, *Solving
    Ordinary Differential Equations I*, section II.6.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     measured = fb.study.relu_order(("tanh",), samples=9, step_counts=(200, 400), rtols=(), reference_steps=1600)
    >>> measured["order"].sel(activation="tanh").values.round(1)
    array([1., 4.])

    ```
    """
    if len(set(step_counts)) < 2 or min(step_counts) < 1 or reference_steps <= max(step_counts):
        raise StepSizeError(
            f"step_counts = {tuple(step_counts)} with reference_steps = {reference_steps}",
            "two step counts or more, and a reference with more steps than any of them",
            "leave them at their defaults",
        )
    import xarray

    report = (lambda _: None) if progress is None else progress
    every, _ = datasets.digits()
    inputs, labels = datasets.digits(samples)
    inputs = (inputs - every.mean()) / every.std()
    counts = sorted(set(step_counts))
    fixed = np.zeros((len(activations), len(SCHEMES), len(counts)))
    adaptive = np.zeros((4, len(activations), len(rtols)))
    for row, activation in enumerate(activations):
        apply, params = networks.mlp((64, hidden, 10), activation, key=jax.random.key(seed), bias=False, init="glorot")
        problem = Problem(apply, inputs, labels, loss=CrossEntropy(n_classes=10))

        def equal_steps(scheme: str, steps: int) -> Trajectory:
            step = t1 / steps
            flow = GradientFlow() if scheme == "Euler" else ClassicalRungeKutta(step)
            bar = report(f"{activation}, {scheme}, {steps} steps")  # noqa: B023
            return descend(problem, flow, params, step_size=step, steps=steps, save_every=steps, progress=bar)  # noqa: B023

        reference = equal_steps(SCHEMES[1], reference_steps)
        travelled = fidelity.distance_from_start(reference)[-1]

        def error(run: Trajectory) -> float:
            return float(fidelity.distance(run, reference)[1][-1] / travelled)  # noqa: B023

        for column, scheme in enumerate(SCHEMES):
            fixed[row, column] = [error(equal_steps(scheme, steps)) for steps in counts]
        for column, rtol in enumerate(rtols):
            run = integrate(
                problem,
                GradientFlow(),
                params,
                t1,
                rtol=rtol,
                atol=rtol / 100,
                times=[0.0, t1],
                method="tsit5",
                progress=report(f"{activation}, Tsit5, rtol {rtol:.0e}"),
            )
            stats = [run.stats[name] for name in ("steps", "rejected", "gradient_evaluations")]
            adaptive[:, row, column] = [error(run), *stats]
    slopes = [[np.polyfit(np.log(t1 / np.asarray(counts)), np.log(line), 1)[0] for line in both] for both in fixed]
    names = ("error", "steps_taken", "rejected", "gradient_evaluations")
    variables = {
        "fixed_error": (("activation", "scheme", "steps"), fixed),
        "order": (("activation", "scheme"), np.asarray(slopes)),
        **{
            name: (("activation", "rtol"), values if name == "error" else values.astype(int))
            for name, values in zip(names, adaptive, strict=True)
        },
    }
    coordinates = {"activation": list(activations), "scheme": list(SCHEMES), "steps": counts, "rtol": list(rtols)}
    facts = {"network": f"64-{hidden}-10", "samples": len(inputs), "t1": t1, "reference_steps": reference_steps}
    return xarray.Dataset(variables, coordinates, {**facts, "seed": seed})
