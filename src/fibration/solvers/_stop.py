"""When a run stops before its end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .. import trees
from ..errors import ShapeError, StepSizeError, UnknownNameError
from ..problem import AbstractProblem
from ..trees import PyTree

FAILURE_CODES = ("nonfinite", "step_underflow", "max_steps", "rank_loss", "blow_up", "stalled")


@dataclass(frozen=True)
class Stop:
    """Conditions that end a run early, tested at the start and after every accepted step; the first one met wins.

    - `cost_below`: C(θ) falls below it; costs one forward evaluation a step.
    - `gradient_norm_below`: |∇C(θ)| falls below it; costs one gradient a step, which the statistics count.
    - `time`: the time reaches it; the run ends with the step that does so, a little later.
    - `wall_seconds`: the run has taken this long; tested about twice a second.
    - `when`: conditions of your own by name, functions `(problem, params, time) -> bool` that JAX can trace.

    A run always ends when it turns non-finite. The trajectory then has the time of the stop as its last saved time, and
    `result.code` is the condition's name.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([1.0]))
    >>> stop = fb.Stop(cost_below=1e-3)
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.array(0.0), step_size=0.5, steps=100, stop=stop)
    >>> run.result.code, int(run.stats["steps"])
    ('cost_below', 5)

    ```
    """

    cost_below: float | None = None
    gradient_norm_below: float | None = None
    time: float | None = None
    wall_seconds: float | None = None
    when: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("cost_below", "gradient_norm_below", "wall_seconds"):
            value = getattr(self, name)
            if value is not None and not float(value) > 0:
                raise StepSizeError(
                    f"{name} = {value}", "a positive number", "leave it out to switch the condition off"
                )
        if self.time is not None and not np.isfinite(float(self.time)):
            raise StepSizeError(f"time = {self.time}", "a finite time", "leave it out to switch the condition off")
        taken = {"completed", "stationary", "cost_below", "gradient_norm_below", "time", "wall_seconds", *FAILURE_CODES}
        if not isinstance(self.when, Mapping):
            raise UnknownNameError("`when` is no mapping", "conditions by name", 'pass `when={"name": condition}`')
        for name, condition in self.when.items():
            if not callable(condition):
                raise UnknownNameError(
                    f"the condition {name!r} is {condition!r}", "a function", "pass the function itself"
                )
            if name in taken:
                raise UnknownNameError(f"a condition is named {name!r}", "a name that has no meaning yet", "rename it")


class Conditions(eqx.Module):
    """Stop conditions bound to a run: `codes[i]` names what `test(state, time)[i]` tells.

    Thresholds are arrays, so that another threshold does not compile the run again.
    """

    codes: tuple[str, ...] = eqx.field(static=True)
    tests: tuple[Callable[[PyTree, Array], Bool[Array, ""]], ...]
    gradient_evaluations: int = eqx.field(static=True)
    cost_evaluations: int = eqx.field(static=True)

    def first_met(self, state: PyTree, time: Array) -> Array:
        """Give 1 + the index of the first condition met, or 0."""
        if not self.tests:
            return jnp.asarray(0, jnp.int32)
        met = jnp.stack([jnp.asarray(test(state, time)) for test in self.tests])
        return jnp.where(jnp.any(met), 1 + jnp.argmax(met), 0).astype(jnp.int32)


class _CostBelow(eqx.Module):
    problem: AbstractProblem
    constant: PyTree
    threshold: Array

    def __call__(self, state: PyTree, time: Array) -> Array:  # noqa: ARG002
        return self.problem.cost(eqx.combine(state, self.constant)) < self.threshold


class _GradientNormBelow(eqx.Module):
    problem: AbstractProblem
    constant: PyTree
    threshold: Array

    def __call__(self, state: PyTree, time: Array) -> Array:  # noqa: ARG002
        return trees.norm(self.problem.gradient(eqx.combine(state, self.constant))) < self.threshold


class _TimeReached(eqx.Module):
    threshold: Array

    def __call__(self, state: PyTree, time: Array) -> Array:  # noqa: ARG002
        return time >= self.threshold


class _When(eqx.Module):
    problem: AbstractProblem
    constant: PyTree
    function: Callable[..., Any]

    def __call__(self, state: PyTree, time: Array) -> Array:
        met = jnp.asarray(self.function(self.problem, eqx.combine(state, self.constant), time), bool)
        if met.shape != ():
            raise ShapeError(
                f"a stop condition has shape {met.shape}", "one truth value", "take `jnp.all` or `jnp.any`"
            )
        return met


def bind(
    stop: Stop | None,
    problem: AbstractProblem,
    constant: PyTree,
    own: Mapping[str, Callable[..., Any]] | None = None,
    gradients_each: int = 1,
) -> Conditions:
    """Bind stop conditions to a problem and to the constant leaves of its parameters.

    `own`: those of the flow, by name, each of which costs `gradients_each`; they come after the user's.
    """
    own = {} if own is None else own
    stop = Stop() if stop is None else stop
    tests: dict[str, Callable[[PyTree, Array], Array]] = {}
    if stop.cost_below is not None:
        tests["cost_below"] = _CostBelow(problem, constant, jnp.asarray(float(stop.cost_below)))
    if stop.gradient_norm_below is not None:
        tests["gradient_norm_below"] = _GradientNormBelow(
            problem, constant, jnp.asarray(float(stop.gradient_norm_below))
        )
    if stop.time is not None:
        tests["time"] = _TimeReached(jnp.asarray(float(stop.time)))
    tests |= {name: _When(problem, constant, function) for name, function in (*stop.when.items(), *own.items())}
    gradients = int("gradient_norm_below" in tests) + gradients_each * len(own)
    return Conditions(tuple(tests), tuple(tests.values()), gradients, int("cost_below" in tests))
