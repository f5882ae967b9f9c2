"""Flows that move the outputs along a path."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import ParameterError, ShapeError
from ..problem import AbstractProblem
from ..tangent._differential import blocks_of
from ._damping import as_array
from ._flow import Time
from ._lifted import AbstractLiftedFlow
from ._metrics import squared_targets

Path = Callable[[Any], Any]


class PathFlow(AbstractLiftedFlow):
    """The flow that moves the outputs along a path γ: θ' = D⁺[γ̇(t) + κ(γ(t) − x)].

    Where D has full row rank the distance from the path decays, (x − γ)' = −κ(x − γ). Elsewhere the part P⊥γ̇ cannot
    be followed, P⊥ the projector onto the complement of the range of D.

    **Arguments:**

    - `path`: t -> γ(t), shaped like `problem.outputs`, (N, Q), in terms of JAX; its velocity is found by automatic
      differentiation. By default the straight line (1−t)x₀ + ty from the outputs at the start to the targets, which it
      reaches at t = 1, for `SquaredError`.
    - `feedback`: κ ≥ 0, which also damps errors of the integration; 10 to 20 is plenty for the straight line.
    - the others: see `AdaptedFlow`.

    **Raises:** `ParameterError`, `UnknownNameError`; `ShapeError` for a path of another shape.

    **Source:** derived; the straight line is Chen and Muñoz Ewald, arXiv 2408.01517.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w**3 * x, jnp.array([1.0]), jnp.array([8.0]))
    >>> flow = fb.PathFlow(feedback=10.0, damping=0.0)
    >>> run = fb.descend(problem, flow, jnp.array(1.0), step_size=0.01, steps=100, save_every=50)
    >>> print((run.params**3).round(1))  # the outputs 1, 4.5 and 8
    [1.  4.5 8. ]

    ```
    """

    path: Path | None
    feedback: Any

    def __init__(
        self,
        path: Path | None = None,
        feedback: Any = 0.0,
        damping: Any = "auto",
        method: str = "auto",
        on_rank_loss: str = "stop",
    ) -> None:
        super().__init__(damping, method, on_rank_loss)
        if path is not None and not callable(path):
            raise ParameterError(f"path is {type(path).__name__}", "a function t -> (N, Q)", "pass the function itself")
        if not trees.is_traced(feedback) and not 0 <= _validation.as_number("feedback", feedback) < float("inf"):
            raise ParameterError(f"feedback = {feedback}", "a finite number, not negative", "try feedback=10.0")
        self.path, self.feedback = path, as_array(feedback)

    def output_velocity(self, problem: AbstractProblem, outputs: Float[Array, " M"], time: Time) -> Float[Array, " M"]:
        """Compute γ̇(t) + κ(γ(t) − x)."""
        first = outputs if self.start is None else self.start.outputs
        path = straight_line(problem, first) if self.path is None else flat_path(problem, self.path)
        place, velocity = moving(path, jnp.asarray(time, outputs.dtype))
        return (velocity + self.feedback * (place - outputs)).astype(outputs.dtype)


class StraightLine(eqx.Module):
    """(1−t)x₀ + ty."""

    first: Float[Array, " M"]
    last: Float[Array, " M"]

    def __call__(self, time: Any) -> Float[Array, " M"]:
        """Give the point at a time."""
        return self.first + time * (self.last - self.first)


class Decay(eqx.Module):
    """y + e^{−wᵢ(t − t₀)/N}(x₀ − y): the outputs along the adapted flow."""

    first: Float[Array, " M"]
    last: Float[Array, " M"]
    rates: Float[Array, " M"]
    begin: Any

    def __call__(self, time: Any) -> Float[Array, " M"]:
        """Give the point at a time."""
        return self.last + jnp.exp(-self.rates * (time - self.begin)) * (self.first - self.last)


class FlatPath(eqx.Module):
    """A user's path as a vector of M numbers."""

    path: Path
    problem: AbstractProblem

    def __call__(self, time: Any) -> Float[Array, " M"]:
        """Give the point at a time."""
        values = self.path(time)
        parts = [jnp.asarray(part) for part in (values if isinstance(values, tuple | list) else [values])]
        vector = jnp.concatenate([part.reshape(-1) for part in parts])
        if vector.shape != (self.problem.n_residuals,):
            raise ShapeError(
                f"the path has shapes {[part.shape for part in parts]}",
                f"{self.problem.n_residuals} numbers, shaped like `problem.outputs(params)`",
                "return one number for each sample and output",
            )
        return vector


def flat_path(problem: AbstractProblem, path: Path) -> FlatPath:
    """Make a path a vector of M numbers."""
    return FlatPath(path, problem)


def targets_of(problem: AbstractProblem) -> Float[Array, " M"]:
    """Join the targets of all blocks; for `SquaredError` only."""
    return jnp.concatenate([squared_targets(block).reshape(-1) for block in blocks_of(problem)])


def rates_of(problem: AbstractProblem) -> Float[Array, " M"]:
    """Give the rates wᵢ/N at which residuals decay along the adapted flow."""
    parts: list[Array] = []
    for block in blocks_of(problem):
        weights = jnp.ones(block.n_samples) if block.weights is None else block.weights
        parts.append(jnp.repeat(weights / block.n_samples, block.n_outputs))
    return jnp.concatenate(parts)


def straight_line(problem: AbstractProblem, first: Float[Array, " M"]) -> StraightLine:
    """Give the straight line from `first` to the targets."""
    return StraightLine(first, targets_of(problem).astype(first.dtype))


def decay(problem: AbstractProblem, first: Float[Array, " M"], begin: Any = 0.0) -> Decay:
    """Give the path that the outputs take along the adapted flow, from `first` at a time."""
    last, rates = targets_of(problem).astype(first.dtype), rates_of(problem).astype(first.dtype)
    return Decay(first, last, rates, jnp.asarray(begin, first.dtype))


def moving(path: Path, time: Float[Array, ""]) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Compute where a path is, and its velocity."""
    return jax.jvp(path, (time,), (jnp.ones_like(time),))
