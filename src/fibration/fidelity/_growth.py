"""How errors grow along a step whose Hessian is bounded below: the scalar side of Gronwall's inequality."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

MAX_FIXED_POINT = 60
SERIES = 22  # terms; enough below |z| = 1 for float64


def phi1(z: Any) -> Any:
    """Compute (eᶻ − 1)/z, the mean of e^{zr} over 0 ≤ r ≤ 1, for a JAX or numpy array."""
    xp = _namespace(z)
    small = xp.abs(z) < 1e-8
    safe = xp.where(small, 1.0, z)
    return xp.where(small, 1 + z / 2, xp.expm1(safe) / safe)


def phi2(z: Any) -> Any:
    """Compute (eᶻ − 1 − z)/z², the integral of e^{zr}(1 − r) over 0 ≤ r ≤ 1."""
    xp = _namespace(z)
    small = xp.abs(z) < 1
    safe, near = xp.where(small, 1.0, z), xp.where(small, z, 0.0)
    series = _horner(near, [1 / math.factorial(j + 2) for j in range(SERIES)])
    return xp.where(small, series, (phi1(safe) - 1) / safe)


def bump(z: Any) -> Any:
    """Compute the integral of e^{zr} r(1 − r) over 0 ≤ r ≤ 1, which is φ₂(z) − 2φ₃(z)."""
    xp = _namespace(z)
    small = xp.abs(z) < 1
    safe, near = xp.where(small, 1.0, z), xp.where(small, z, 0.0)
    series = _horner(near, [(j + 1) / math.factorial(j + 3) for j in range(SERIES)])
    second = (phi1(safe) - 1) / safe
    return xp.where(small, series, second - 2 * (second - 0.5) / safe)


def _namespace(z: Any) -> Any:
    return jnp if isinstance(z, jax.Array) else np


def _horner(z: Any, coefficients: list[float]) -> Any:
    total = 0.0 * z
    for coefficient in reversed(coefficients):
        total = total * z + coefficient
    return total


class Defect(eqx.Module):
    """What is known of the defect δ(u) of one step of length `length`, from two gradients along it.

    `middle`, `end`: δ at half the step and at its end, and it is zero at the start; `curvature`: a bound of the second
    derivative of the gradient along the step. δ lies below the polygon through the three values by no more than
    curvature·u(h − u)/2 on each half of length h.
    """

    length: Float[Array, ""]
    middle: Float[Array, ""]
    end: Float[Array, ""]
    curvature: Float[Array, ""]

    def total(self) -> Float[Array, ""]:
        """Bound the integral of δ over the step."""
        half = self.length / 2
        return half * (self.middle + self.end / 2) + self.curvature * half**3 / 6

    def grown(self, rate: Float[Array, ""]) -> Float[Array, ""]:
        """Bound the integral of e^{rate·(length − u)} δ(u) over the step."""
        half = self.length / 2
        z = rate * half
        hump = 0.5 * self.curvature * half**3 * bump(z)
        first = half * self.middle * phi2(z) + hump
        second = half * (self.middle * phi1(z) + (self.end - self.middle) * phi2(z)) + hump
        return jnp.exp(z) * first + second


def grow(
    error: Float[Array, ""],
    defect: Defect,
    lowest: Float[Array, ""],
    floor: Float[Array, ""],
    lipschitz: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Bool[Array, ""]]:
    """Carry an error bound over one step: e' ≤ −max(floor, lowest − (ρ/2) e) e + δ.

    `lowest`: a lower bound of the smallest Hessian eigenvalue on the step itself; `floor`: one on everything within
    reach; `lipschitz`: ρ.

    **Returns:** the bound at the end of the step, its largest value on the step, the rate, and whether both hold: no
    finite bound does once e has run away (e' ≤ … + (ρ/2) e² blows up in finite time).
    """

    def rate(highest: Array) -> Array:
        return -jnp.maximum(floor, lowest - 0.5 * lipschitz * highest)

    def image(highest: Array) -> Array:
        """Bound the error on the step if it is at most `highest` there."""
        return jnp.maximum(1.0, jnp.exp(defect.length * rate(highest))) * (error + defect.total())

    def unsettled(carry: tuple[Array, Array, Array]) -> Array:
        highest, bound, count = carry
        return (bound > highest) & (count < MAX_FIXED_POINT)

    def enlarge(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, bound, count = carry
        highest = bound * (1 + 1e-6)  # a little above the fixed point, so that the inequality is soon met
        return highest, image(highest), count + 1

    first = error + defect.total()
    highest, bound, _ = jax.lax.while_loop(unsettled, enlarge, (first, image(first), jnp.asarray(0)))
    a = rate(highest)
    grown = jnp.exp(defect.length * a) * error + defect.grown(a)
    holds = (bound <= highest) & jnp.isfinite(highest) & jnp.isfinite(grown)
    return grown, highest, a, holds
