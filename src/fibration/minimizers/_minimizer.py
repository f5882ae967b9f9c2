"""What a construction returns: the network, what is certain about it, and what it does to inputs."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ..errors import NonFiniteDataError, ShapeError
from ..networks import MLP
from ._network import Weights, forward
from ._types import Collapse, Coordinates

TIE = 1e-9  # relative to the distance between targets: closer than this is a tie


@dataclass(frozen=True, eq=False)
class Layer:
    """One hidden layer σ(Wx + b) of a constructed network, and the truncation that it is.

    `W` (n, n′), `b` (n,): of the network; `base_point` p, `axis` h (both (n,)) and `opening` (radians) of the cone, in
    the coordinates of the construction; `collapses`: the name of the class that it takes to p, or `None`; `interval`:
    the shifts of p along h from the class mean between which that is exact, or `None`; `margin`: how far the
    pre-activations stay from the wrong sign, negative if they do not; `condition`: that of W,
    zero singular values aside.
    """

    W: Float[np.ndarray, "n m"]
    b: Float[np.ndarray, " n"]
    base_point: Float[np.ndarray, " n"]
    axis: Float[np.ndarray, " n"]
    opening: float
    collapses: Any
    interval: tuple[float, float] | None
    margin: float
    condition: float


@dataclass(frozen=True)
class Attempt:
    """One rung of the ladder: its `method`, whether it `succeeded`, the `reason` if not or a remark, and `numbers`."""

    method: str
    succeeded: bool
    reason: str
    numbers: dict[str, float]

    def __str__(self) -> str:
        return f"{self.method}: " + ", ".join(["succeeded"] * self.succeeded + [self.reason] * bool(self.reason))


@dataclass(frozen=True)
class Conditions:
    """What the theory asks of the data, in the barycentric coordinates of the class means.

    - `noise_to_signal`: δ_P, the largest distance of a sample from its class mean there; the cone construction exists
      for certain below `noise_bound` = ¼√((Q − 1)/Q) (derived; only sufficient).
    - `radius`: δ, the same in the space of inputs; `least_separation`: the smallest distance of a class mean from the
      centre of the means, also there.
    - `opening`: θ_*, in radians, of the smallest cones at the class means, towards the centre, that hold the balls of
      radius 4δ about the others, in the space of inputs; NaN where there are none below π.
    - `satisfied`: whether δ_P is below the bound; `satisfied_in_inputs`: the paper's own condition, δ < ¼ min|x̄_j − x̄|
      and θ_* < π, which thin simplices of means violate without any noise (equation 2.52).

    NaN where the class means are affinely dependent.
    """

    noise_to_signal: float
    noise_bound: float
    radius: float
    least_separation: float
    opening: float

    @property
    def satisfied(self) -> bool:
        """Whether the condition, which is sufficient but not necessary, holds."""
        return self.noise_to_signal < self.noise_bound

    @property
    def satisfied_in_inputs(self) -> bool:
        """Whether the paper's condition, in the space of inputs, holds."""
        return self.radius < self.least_separation / 4 and self.opening < np.pi


@dataclass(frozen=True, eq=False)
class Minimizer:
    """A ReLU network written down without training.

    - `apply`, `params`: the network, for one sample (M,), as `fb.networks.mlp` makes them; `weights`: the same in
      double precision, a list of (W, b).
    - `cost`: what it costs on the samples, √(Σ_j D_j/N_j Σ_i |f(x_i) − y_j|²), in double precision; `affine_cost`: what
      the best affine map costs, which is never less.
    - `certified`: whether the signs of all pre-activations prove that the layers collapse one class each and touch no
      other, so that the cost is zero, and rounding leaves it below 10⁻⁸ of the targets' spread; `margin`: the smallest
      distance of a pre-activation from the wrong sign, in units of the construction's coordinates, negative if there is
      none.
    - `method`: the rung of the ladder that was used: "cone", "separable", "soft", "affine" or "constant"; `attempts`:
      all rungs tried, with the reasons of those that failed.
    - `conditions`: what the theory asks of the data. `layers`: see `Layer`. `classes` (Q,): their names; `targets`
      (Q, P).
    - `coordinates`: the affine map z = Tx + t to the space of the construction; `steps`: its truncations there.
    """

    apply: MLP
    params: list[dict[str, Any]]
    weights: Weights
    cost: float
    affine_cost: float
    certified: bool
    margin: float
    method: str
    attempts: tuple[Attempt, ...]
    conditions: Conditions
    layers: tuple[Layer, ...]
    classes: Shaped[np.ndarray, " Q"]
    targets: Float[np.ndarray, "Q P"]
    coordinates: Coordinates
    steps: tuple[Collapse, ...]

    @property
    def inner_weights(self) -> Weights:
        """The same network as a function of z = Tx + t."""
        first = self.steps[0].cone
        return [(first.weight, first.bias), *self.weights[1:]]

    def outputs(self, inputs: Any) -> Float[np.ndarray, "N P"]:
        """Compute f(x) for each row of inputs (N, M), in double precision."""
        return forward(self.weights, as_rows(inputs, self.apply.sizes[0]))

    def truncated(self, inputs: Any, layers: int | None = None) -> Float[np.ndarray, "N n"]:
        """Compute the inputs as the first layers leave them, τ_ℓ ∘ … ∘ τ_1, in the construction's coordinates."""
        z = self.coordinates(as_rows(inputs, self.apply.sizes[0]))
        for step in self.steps[: len(self.steps) if layers is None else layers]:
            z = step.cone.truncate(z)
        return z

    def predict(self, inputs: Any) -> Shaped[np.ndarray, " N"]:
        """Name the class whose target is nearest to f(x), for each row of inputs (N, M).

        Whole regions of inputs may be at one distance from two targets: such ties go to the class that comes first.
        """
        return self.classes[nearest(self.outputs(inputs), self.targets)]

    def distance(self, inputs: Any, others: Any) -> Float[np.ndarray, " N"]:
        """Compute the pseudo-metric d(x, x′) = |f(x) − f(x′)| that the network induces on inputs, row by row.

        On the truncated inputs it is |Y P⁻¹(z − z′)| (Chen and Muñoz Ewald, arXiv 2309.10639, section 3): x belongs to
        the class whose collapsed point is nearest in it.
        """
        return np.linalg.norm(self.outputs(inputs) - self.outputs(others), axis=1)

    def __str__(self) -> str:
        lines = [f"{self.method}: cost {self.cost:.3g}, best affine map {self.affine_cost:.3g}"]
        lines[0] += f", certified with margin {self.margin:.2g}" if self.certified else ", not certified"
        return "\n".join([*lines, *(f"  {attempt}" for attempt in self.attempts)])


def as_rows(inputs: Any, size: int) -> Float[np.ndarray, "N M"]:
    """Check new inputs (N, …) of so many entries each, and flatten them."""
    try:
        rows: np.ndarray = np.asarray(inputs, np.float64)
    except (TypeError, ValueError):
        rows = np.asarray([], np.float64)
    rows = rows.reshape(len(rows), -1) if rows.ndim > 2 else rows
    if rows.ndim != 2 or rows.shape[1] != size:
        raise ShapeError(
            f"inputs of shape {rows.shape}",
            f"numbers (N, {size}), a row for each sample",
            "reshape one sample to (1, M)",
        )
    if not np.all(np.isfinite(rows)):
        raise NonFiniteDataError("inputs with NaN or infinity", "finite inputs", "drop or repair those rows")
    return rows


def nearest(outputs: Float[np.ndarray, "N P"], targets: Float[np.ndarray, "Q P"]) -> Any:
    """Number the nearest target of each output; the first of those within a tie.

    The nearest one has the largest ⟨f − ȳ, y_k − ȳ⟩ − |y_k − ȳ|²/2, which far outputs do not round away.
    """
    middle = targets.mean(axis=0)
    away, goals = outputs - middle, targets - middle
    scores = away @ goals.T - np.sum(goals**2, axis=1) / 2
    spread = float(np.linalg.norm(goals, axis=1).max(initial=0.0))
    slack = TIE * spread * (spread + np.linalg.norm(away, axis=1, keepdims=True))
    return np.argmax(scores >= scores.max(axis=1, keepdims=True) - slack, axis=1)


def as_params(weights: Weights) -> tuple[MLP, list[dict[str, Any]]]:
    """Make the network as `fb.networks.mlp` does, in JAX's current precision."""
    sizes = (weights[0][0].shape[1], *(len(bias) for _, bias in weights))
    dtype = jnp.result_type(float)
    return MLP(sizes, "relu"), [
        {"weight": jnp.asarray(weight, dtype), "bias": jnp.asarray(bias, dtype)} for weight, bias in weights
    ]
