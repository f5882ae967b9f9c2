"""Networks whose disparity matrix has full rank everywhere and whose training fails all the same."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Problem


class _Spiral(eqx.Module):
    """θ(w) = r(cos φ, sin φ) as the value (θ₀, θ₁) of a network that does not look at its input."""

    def __call__(self, params: Any, x: Array) -> Float[Array, "2"]:
        radius = 1.5 + 0.5 * jnp.tanh(params[0])
        angle = 0.75 * math.pi * (1 + jnp.tanh(params[1]))
        del x
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def spiral() -> Problem:
    """Make the problem of two parameters that refutes "full rank implies convergence".

    θ(w) = r(cos φ, sin φ) with r = 1.5 + 0.5 tanh w₁ and φ = 0.75π(1 + tanh w₂), fitted to the point with r = 1.5 and
    φ = 1.45π, which it can reach. The differential is invertible at every w and the cost is strictly convex in θ, but
    from φ between 0.02π and 0.3π gradient flow drifts to φ → 0, where |∂θ/∂w| → 0, and the cost
    to (3.25 − 3 cos 1.45π)/2 = 1.859652: ∫σ_min² dt is finite.

    **Source:** derived, against claim C3 of Jiang, arXiv 1903.02140.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.canonical.spiral()
    >>> start = jnp.array([0.0, -0.8])  # φ = 0.25 π
    >>> run = fb.integrate(problem, fb.GradientFlow(), start, t1=1e4)
    >>> bool(run.costs[-1] > 1.8)
    True

    ```
    """
    angle = 1.45 * math.pi
    target = 1.5 * jnp.array([[math.cos(angle), math.sin(angle)]])
    return Problem(_Spiral(), jnp.zeros((1, 1)), target)


class _Arctan(eqx.Module):
    def __call__(self, params: Any, x: Array) -> Array:
        del x
        return jnp.arctan(params)


def arctan() -> Problem:
    """Make the problem θ(w) = arctan w with target 2, out of reach: full rank everywhere, cost → (2 − π/2)²/2.

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.canonical.arctan()
    >>> [round(problem.cost(jnp.array(w)).item(), 3) for w in (0.0, 1e6)]
    [2.0, 0.092]

    ```
    """
    return Problem(_Arctan(), jnp.zeros((1, 1)), jnp.array([[2.0]]))
