"""Elkabetz and Cohen's experiments: how close is gradient descent to gradient flow on small image classifiers?"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from .. import fidelity
from ..curvature import Sharpness
from ..errors import PrecisionWarning, StepSizeError
from ..flows import AbstractFlow, GradientFlow
from ..problem import AbstractProblem
from ..solvers import Trajectory, descend, integrate
from ..solvers._options import ProgressCallback
from ..trees import PyTree
from ._elkabetz_cohen_models import setting
from ._runge_kutta import ClassicalRungeKutta

if TYPE_CHECKING:
    import xarray

ORDER_ONE = 0.05
TOLERANCE = 1e-8


@dataclass(frozen=True)
class ElkabetzCohenStudy:
    """Gradient descent at η₀, at η₀/r for several r, and the gradient flow, compared at T equally spaced times.

    R descents at η₀/r are compared with the one at η₀. All are numbers at the same times; no parameters are kept.

    - `model`, `facts`: what was run; `step_size`: η₀; `steps`: how many of them; `ratios`: the r, increasing.
    - `times` (T,): step size times number of steps.
    - `costs`, `travelled` (R+2, T): the training loss and |θ − θ_start| of the flow, of η₀, and of each η₀/r.
    - `from_flow` (R+1, T): |θ_descent − θ_flow| of η₀ and each η₀/r; `flow_error` (T,): an estimate of the solved
      flow's own error, the distance between two solutions of which one is coarser.
    - `between` (R, T): |θ at η₀ − θ at η₀/r|.
    - `sharpness` (2, T): the largest Hessian eigenvalue along the flow and along the descent at η₀.
    - `gradient_evaluations` (R+2,), `wall_seconds` (R+2,): of the flow (with the coarser solution), η₀, and each η₀/r.
    - `flow_method`: how the flow was solved.
    """

    model: str
    step_size: float
    steps: int
    ratios: tuple[int, ...]
    times: Float[np.ndarray, " T"]
    costs: Float[np.ndarray, "runs T"]
    travelled: Float[np.ndarray, "runs T"]
    from_flow: Float[np.ndarray, "descents T"]
    flow_error: Float[np.ndarray, " T"]
    between: Float[np.ndarray, "ratios T"]
    sharpness: Float[np.ndarray, "2 T"]
    gradient_evaluations: Int[np.ndarray, " runs"]
    wall_seconds: Float[np.ndarray, " runs"]
    flow_method: str
    facts: Mapping[str, Any]

    def richardson(self) -> Float[np.ndarray, "ratios T"]:
        """Estimate |θ at η₀ − θ_flow| from each pair of descents alone, (R, T).

        Where descent is of first order, θ(η) = θ_flow + η v + O(η²), the distance between η₀ and η₀/r is (1 − 1/r) of
        the distance of η₀ from the flow; so this is r/(r−1) · `between` (Richardson's extrapolation).
        """
        ratios = np.asarray(self.ratios, float)[:, None]
        return self.between * ratios / (ratios - 1)

    def first_order(self, tolerance: float = ORDER_ONE) -> bool:
        """Tell whether Richardson's estimates at the end agree with one another within `tolerance`.

        If they do not, the step sizes are too large, or the cost too rough, for the distances to be of first order.
        """
        last = self.richardson()[:, -1]
        return bool(np.ptp(last) <= tolerance * np.max(last))

    def to_xarray(self) -> "xarray.Dataset":
        """Convert to a labelled `xarray.Dataset` along the dimensions `run`, `descent`, `ratio` and `time`.

        ```python
        >>> import jax
        >>> import fibration as fb
        >>> with jax.enable_x64(True):
        ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
        >>> study.to_xarray()["distance_between"].sel(ratio=2).sizes["time"]
        3

        ```
        """
        import xarray

        descents = ["η₀", *(f"η₀/{ratio}" for ratio in self.ratios)]
        variables = {
            "cost": (("run", "time"), self.costs),
            "distance_from_start": (("run", "time"), self.travelled),
            "distance_from_flow": (("descent", "time"), self.from_flow),
            "flow_error": ("time", self.flow_error),
            "distance_between": (("ratio", "time"), self.between),
            "richardson": (("ratio", "time"), self.richardson()),
            "sharpness": (("observed", "time"), self.sharpness),
            "gradient_evaluations": ("run", self.gradient_evaluations),
            "wall_seconds": ("run", self.wall_seconds),
        }
        coordinates = {
            "time": self.times,
            "run": ["flow", *descents],
            "descent": descents,
            "ratio": list(self.ratios),
            "observed": ["flow", "η₀"],
        }
        own = {"step_size": self.step_size, "steps": self.steps, "flow_method": self.flow_method}
        return xarray.Dataset(variables, coordinates, {**self.facts, **own})


def elkabetz_cohen(
    model: str = "linear",
    *,
    mnist: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    step_size: float = 1e-3,
    steps: int | None = None,
    ratios: Sequence[int] | None = None,
    n_stamps: int = 100,
    seed: int = 1,
    quick: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> ElkabetzCohenStudy:
    """Repeat one of Elkabetz and Cohen's experiments, and measure what they could not: the distance to the flow itself.

    Full-batch gradient descent on the cross-entropy of `samples` images, `steps` steps of η₀ = `step_size`; again with
    η₀/r for r times as many steps, for each r of `ratios`; and the gradient flow, from the same start.

    **Arguments:**

    - `model`: "linear" and "relu", fully connected, two hidden layers of 50 units, no biases; "conv", two convolutions
      of 6 and 16 channels with stride 2, then dense layers of 120 and 84 units, ReLU, no biases; "conv-pool", the same
      with max pooling instead of strides, and biases (LeNet-5's sizes).
    - `mnist`: the directory of MNIST's training files (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, gzipped or
      not), of which every 50th image is taken, as in the paper. By default scikit-learn's digits, of 8 × 8 pixels, for
      which convolutions are 3 × 3.
    - `samples`, `steps`, `ratios`: by default the paper's 1000 images, 10,000 steps and (2, 5, 10, 20), which take
      380,000 gradients; with `quick` 200 images, 1,000 steps and (2, 5).
    - `n_stamps`: the number of times at which runs are compared; `steps` is a multiple of twice as many.
    - `checkpoint`: a directory; the same call goes on where a killed one was.
    - `progress`: makes a progress callback for each run from its description, such as `ProgressBar().task`.

    The linear network's flow is smooth, and solved by `integrate` at rtol 1e-8. The others' gradients jump where a
    unit's input changes its sign, and error control would spend ever more steps there for little; their flow is solved
    by the classical Runge–Kutta method with steps of η₀, each of four gradients. `flow_error` says how well.

    **Raises:** `UnknownNameError`; `StepSizeError` for steps or ratios that do not fit; `MissingFileError` without
    MNIST's files, and what its readers raise; `DivergedError` for a step size at which descent diverges; what
    `Checkpoint` raises. Warns with `PrecisionWarning` without float64.

    **Source:** Elkabetz and Cohen, *Continuous vs. discrete optimization of deep neural networks* (arXiv 2107.06608),
    section 6, and their published code; from which this differs in two things: a loss is that of the weights it is
    compared with, not of those one step before, and biases count in distances.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
    >>> study.between.shape, study.gradient_evaluations[1:].tolist()
    ((1, 3), [4, 8])

    ```
    """
    if not jax.config.read("jax_enable_x64"):
        warnings.warn(
            "the distances between descents are near the rounding error of float32; "
            'enable float64 first: jax.config.update("jax_enable_x64", True)',
            PrecisionWarning,
            stacklevel=2,
        )
    steps = (1000 if quick else 10_000) if steps is None else steps
    samples = (200 if quick else 1000) if samples is None else samples
    ratios = ((2, 5) if quick else (2, 5, 10, 20)) if ratios is None else ratios
    check_protocol(step_size, steps, ratios, n_stamps)
    problem, params, facts = setting(model, mnist, samples, seed)
    return compare_step_sizes(
        problem,
        params,
        model=model,
        smooth=model == "linear",
        step_size=step_size,
        steps=steps,
        ratios=tuple(sorted(ratios)),
        n_stamps=n_stamps,
        checkpoint=checkpoint,
        progress=progress,
        facts=facts,
    )


def check_protocol(step_size: float, steps: int, ratios: Sequence[int], n_stamps: int) -> None:
    """Raise `StepSizeError` for numbers that do not fit together, before any work."""
    if not (np.isfinite(step_size) and step_size > 0):
        raise StepSizeError(f"step_size = {step_size}", "a positive step size", "leave it at 0.001")
    if n_stamps < 1 or steps < 1 or steps % (2 * n_stamps):
        raise StepSizeError(
            f"steps = {steps} with n_stamps = {n_stamps}",
            "a number of steps that is a multiple of twice the number of time stamps",
            f"pass steps={max(1, round(steps / (2 * max(n_stamps, 1)))) * 2 * max(n_stamps, 1)}, or fewer time stamps",
        )
    if not ratios or len(set(ratios)) < len(ratios) or any(int(ratio) != ratio or ratio < 2 for ratio in ratios):
        raise StepSizeError(
            f"ratios = {tuple(ratios)}", "different whole numbers from 2", "pass ratios=(2, 5, 10, 20), as the paper"
        )


def compare_step_sizes(
    problem: AbstractProblem,
    params: PyTree,
    *,
    model: str,
    smooth: bool,
    step_size: float,
    steps: int,
    ratios: tuple[int, ...],
    n_stamps: int,
    checkpoint: str | os.PathLike[str] | None,
    progress: Callable[[str], ProgressCallback] | None,
    facts: Mapping[str, Any],
) -> ElkabetzCohenStudy:
    """Run the protocol on any problem: two solutions of the flow, the descent at η₀, and those at η₀/r.

    At most three trajectories of `n_stamps` parameters each are held at a time.
    """
    report = (lambda _: None) if progress is None else progress
    observe = {"sharpness": Sharpness()}

    def common(name: str, about: str) -> dict[str, Any]:
        return {"checkpoint": None if checkpoint is None else Path(checkpoint) / name, "progress": report(about)}

    def descent(method: AbstractFlow, ratio: int, steps: int, observe: Any, name: str, about: str) -> Trajectory:
        return descend(
            problem,
            method,
            params,
            step_size=step_size / ratio,
            steps=steps,
            save_every=steps // n_stamps,
            observe=observe,
            **common(name, about),
        ).raise_if_failed()

    base = descent(GradientFlow(), 1, steps, observe, "descent-1", f"descent at {step_size:.3g}")

    def smooth_flow(rtol: float, observe: Any, name: str) -> Trajectory:
        return integrate(
            problem,
            GradientFlow(),
            params,
            float(base.times[-1]),
            rtol=rtol,
            atol=rtol / 1000,
            times=base.times,
            observe=observe,
            **common(name, f"gradient flow, rtol {rtol:.0e}"),
        ).raise_if_failed()

    def kinked_flow(factor: int, observe: Any, name: str) -> Trajectory:
        step = factor * step_size
        return descend(
            problem,
            ClassicalRungeKutta(step),
            params,
            step_size=step,
            steps=steps // factor,
            save_every=steps // factor // n_stamps,
            observe=observe,
            **common(name, f"gradient flow, steps {step:.3g}"),
        ).raise_if_failed()

    if smooth:
        flow, coarser = smooth_flow(TOLERANCE, observe, "flow"), smooth_flow(10 * TOLERANCE, None, "flow-coarser")
        flow_method = f"{flow.stats['method']}, rtol {TOLERANCE:.0e}"
    else:
        flow, coarser = kinked_flow(1, observe, "flow"), kinked_flow(2, None, "flow-coarser")
        flow_method = f"classical Runge–Kutta, steps of {step_size:.3g}"
    flow_error = fidelity.distance(coarser, flow)[1]
    both = [int(run.stats["gradient_evaluations"]) for run in (flow, coarser)]
    evaluations, seconds = [sum(both)], [flow.stats["wall_seconds"] + coarser.stats["wall_seconds"]]
    del coarser
    costs, travelled, from_flow, between = [flow.costs], [fidelity.distance_from_start(flow)], [], []
    for ratio in (1, *ratios):
        if ratio == 1:
            run = base
        else:
            run = descent(
                GradientFlow(), ratio, ratio * steps, None, f"descent-{ratio}", f"descent at {step_size:.3g}/{ratio}"
            )
            between.append(fidelity.distance(base, run)[1])
        costs.append(run.costs)
        travelled.append(fidelity.distance_from_start(run))
        from_flow.append(fidelity.distance(run, flow)[1])
        evaluations.append(int(run.stats["gradient_evaluations"]))
        seconds.append(run.stats["wall_seconds"])
    return ElkabetzCohenStudy(
        model=model,
        step_size=float(step_size),
        steps=int(steps),
        ratios=tuple(int(ratio) for ratio in ratios),
        times=base.times,
        costs=np.asarray(costs, float),
        travelled=np.asarray(travelled, float),
        from_flow=np.asarray(from_flow, float),
        flow_error=np.asarray(flow_error, float),
        between=np.asarray(between, float),
        sharpness=np.asarray([flow.observed["sharpness"], base.observed["sharpness"]], float),
        gradient_evaluations=np.asarray(evaluations),
        wall_seconds=np.asarray(seconds, float),
        flow_method=flow_method,
        facts=dict(facts),
    )
