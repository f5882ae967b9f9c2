"""Cones: what one ReLU layer leaves alone, what it collapses to a point, and the closed forms of its matrices."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float


def contraction_of(opening: float, n: int) -> float:
    """Compute λ = min(1, tan(θₙ/2)/tan(θ/2)) for the opening θ of a cone in n dimensions, tan(θₙ/2) = 1/√(n − 1)."""
    wide = math.sqrt(n - 1) * math.tan(opening / 2)
    return 1.0 if wide <= 1 else 1 / wide


def opening_of(contraction: float, n: int) -> float:
    """Compute the opening θ of the widest round cone whose contraction is λ; π on a line."""
    return 2 * math.atan2(1.0, contraction * math.sqrt(n - 1))


@dataclass(frozen=True, eq=False)
class Cone:
    """A base point p, a unit axis h and a contraction λ: the layer σ(W(z − p)) with W = W_λ R in n dimensions.

    R reflects h to u/√n, u the vector of ones, and W_λ = λI + (1 − λ)uuᵀ/n, so that ‖W‖ = 1 and cond W = 1/λ. Points
    whose direction from p is within θ/2 of h have positive pre-activations only and stay; those within θ/2 of −h have
    negative ones only, and go to p. θ is the opening, tan(θ/2) = 1/(λ√(n − 1)).

    Source: Chen and Muñoz Ewald, arXiv 2309.10639, section 2; the closed forms are derived.

    ```python
    >>> import numpy as np
    >>> from fibration.minimizers import Cone
    >>> cone = Cone(np.zeros(2), np.array([1.0, 0.0]), 0.5)
    >>> print(cone.truncate(np.array([[3.0, 1.0], [-3.0, 1.0]])))
    [[3. 1.]
     [0. 0.]]

    ```
    """

    base_point: Float[np.ndarray, " n"]
    axis: Float[np.ndarray, " n"]
    contraction: float

    @property
    def n(self) -> int:
        """The dimension."""
        return len(self.axis)

    @property
    def opening(self) -> float:
        """The angle θ, in radians."""
        return opening_of(self.contraction, self.n)

    @cached_property
    def _mirror(self) -> Float[np.ndarray, " n"]:
        """The vector v of the reflection R = I − vvᵀ; zero for R = I."""
        v = self.axis - 1 / math.sqrt(self.n)
        length = np.linalg.norm(v)
        return v * (math.sqrt(2) / length) if length > 1e-14 else np.zeros(self.n)

    def reflect(self, z: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N n"]:
        """Compute Rz for each row."""
        return z - np.outer(z @ self._mirror, self._mirror)

    @property
    def weight(self) -> Float[np.ndarray, "n n"]:
        """The weight W = W_λ R."""
        reflected = self.reflect(np.eye(self.n))
        return self.contraction * reflected + (1 - self.contraction) * np.outer(np.ones(self.n), self.axis) / math.sqrt(
            self.n
        )

    @property
    def inverse(self) -> Float[np.ndarray, "n n"]:
        """Its inverse W⁻¹ = R(I/λ + (1 − 1/λ)uuᵀ/n)."""
        reflected = self.reflect(np.eye(self.n))
        tilt = (1 - 1 / self.contraction) / math.sqrt(self.n)
        return reflected / self.contraction + tilt * np.outer(self.axis, np.ones(self.n))

    @property
    def bias(self) -> Float[np.ndarray, " n"]:
        """The bias b = −Wp."""
        return -self.preactivations(np.zeros((1, self.n)), from_base=self.base_point[None])[0]

    def preactivations(
        self, z: Float[np.ndarray, "N n"], from_base: Float[np.ndarray, "N n"] | None = None
    ) -> Float[np.ndarray, "N n"]:
        """Compute W(z − p) for each row; or W `from_base`."""
        away = z - self.base_point if from_base is None else from_base
        along = (away @ self.axis)[:, None] / math.sqrt(self.n)
        return self.contraction * self.reflect(away) + (1 - self.contraction) * along

    def truncate(self, z: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N n"]:
        """Compute τ(z) = p + W⁻¹σ(W(z − p)) for each row; exactly z or p where the cone says so."""
        pre = self.preactivations(z)
        kept: np.ndarray = np.all(pre >= 0, axis=1)
        gone: np.ndarray = np.all(pre <= 0, axis=1)
        result = np.where(kept[:, None], z, self.base_point)
        mixed = np.logical_not(np.logical_or(kept, gone))
        if np.any(mixed):
            active = np.maximum(pre[mixed], 0)
            total = active.sum(axis=1, keepdims=True) / self.n
            result[mixed] += self.reflect(active / self.contraction + (1 - 1 / self.contraction) * total)
        return result
