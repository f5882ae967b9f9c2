"""Tikhonov damping of the lift, and how strong it is when nobody says."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import ParameterError

AUTOMATIC = 1e-6  # relative strength of the default damping
ROOM = 1.5  # parameters per output, below which the default damping is on


class Tikhonov(eqx.Module):
    """Damping λ = relative·σ_max(θ₀)² + absolute of the lift Dᵀ(DDᵀ + λ)⁻¹.

    σ_max(θ₀) is that at the start of the run: with a positive λ that does not change, the flow exists for all times
    (|θ'| ≤ |∇ₓC|/(2√λ)), while λ = relative·σ_max(θ)² can vanish with the differential. In a direction with singular
    value σ the residual decays σ²/(σ² + λ) times as fast.

    **Source:** derived; Tikhonov's regularisation, Levenberg's and Marquardt's method in small steps.

    **Raises:** `ParameterError` for numbers that are negative or not finite.

    ```python
    >>> import fibration as fb
    >>> fb.AdaptedFlow(damping=fb.flows.Tikhonov(relative=1e-6)).damping.relative.item()
    1e-06

    ```
    """

    relative: Any = 0.0
    absolute: Any = 0.0

    def __init__(self, relative: Any = 0.0, absolute: Any = 0.0) -> None:
        for name, value in (("relative", relative), ("absolute", absolute)):
            if not trees.is_traced(value) and not 0 <= _validation.as_number(name, value) < float("inf"):
                raise ParameterError(f"{name} = {value}", "a finite number, not negative", "try relative=1e-6")
        self.relative, self.absolute = as_array(relative), as_array(absolute)

    @property
    def is_zero(self) -> bool:
        """Whether there is no damping for sure."""
        known = not trees.is_traced(self.relative) and not trees.is_traced(self.absolute)
        return known and float(self.relative) == 0 and float(self.absolute) == 0

    def strength(self, sigma_max: Float[Array, ""]) -> Float[Array, ""]:
        """Compute λ."""
        return (self.relative * sigma_max**2 + self.absolute).astype(sigma_max.dtype)


def as_array(value: Any) -> Any:
    # An array, so that runs with another strength share their compilation; NumPy's, to keep its float64.
    return value if isinstance(value, jax.Array) else np.asarray(value, float)


def as_damping(damping: Any) -> Tikhonov | str | None:
    """Turn what a user gives as damping into a `Tikhonov`, "auto", or `None` for none at all."""
    if isinstance(damping, str) and damping == "auto":
        return damping
    if not isinstance(damping, Tikhonov):
        if isinstance(damping, str) or damping is None or np.ndim(damping) != 0:
            raise ParameterError(
                f"damping = {damping!r}",
                'a number λ, a `fb.flows.Tikhonov`, or "auto"',
                "use damping=0.0 for none at all",
            )
        damping = Tikhonov(absolute=damping)
    return None if damping.is_zero else damping


def settled(damping: Tikhonov | str | None, shape: tuple[int, int]) -> Tikhonov | None:
    """Give the damping for M outputs and K parameters, or `None` for none."""
    if isinstance(damping, str):
        n_outputs, n_parameters = shape
        return Tikhonov(relative=AUTOMATIC) if n_parameters < ROOM * n_outputs else None
    return damping
