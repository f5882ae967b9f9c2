"""Poles: which are stable, which are marginal, and how to say so."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

from ...errors import UnstableSystemError

_ROUNDING = 10 * np.finfo(float).eps  # of a pole, relative to ‖A‖
_NAMED = 4


def margins(poles: Any, discrete: bool) -> Any:
    """Compute how far poles are outside of the left half-plane, or of the unit circle: (n,) for `poles` (n,)."""
    return np.abs(poles) - 1 if discrete else poles.real


def rounding(A: Shaped[np.ndarray, "n n"], discrete: bool) -> float:
    """Compute the distance from the boundary within which a computed pole may be on either side."""
    size = float(np.linalg.norm(A))
    return _ROUNDING * (max(1.0, size) if discrete else size)


def check_not_marginal(poles: Any, A: Any, discrete: bool) -> None:
    """Raise `UnstableSystemError` for poles on the boundary of stability, to rounding."""
    marginal = poles[np.abs(margins(poles, discrete)) <= rounding(A, discrete)]
    if len(marginal):
        raise UnstableSystemError(
            f"{count(marginal, 'marginal pole')}, {'on the unit circle' if discrete else 'on the imaginary axis'}",
            f"poles off {'it' if discrete else 'the axis'}: neither Gramians nor a split exist",
            "take integrators and undamped modes out of the model, or damp them; `euclidean_realization` "
            "needs no stability",
        )


def check_stable(poles: Any, A: Any, discrete: bool) -> None:
    """Raise `UnstableSystemError` unless all poles are stable."""
    check_not_marginal(poles, A, discrete)
    unstable = poles[margins(poles, discrete) > 0]
    if len(unstable):
        raise UnstableSystemError(
            count(unstable, "unstable pole"),
            "poles inside the unit circle" if discrete else "poles with negative real part",
            '`truncate(…, unstable="split")` sets the unstable part aside; `euclidean_realization` needs no stability',
        )


def count(poles: Any, what: str) -> str:
    """Say how many poles, and which."""
    named = ", ".join(f"{pole.real:.3g}" if pole.imag == 0 else f"{pole:.3g}" for pole in poles[:_NAMED] + 0.0)  # no −0
    return f"{len(poles)} {what}{'s' * (len(poles) > 1)} ({named}{', …' * (len(poles) > _NAMED)})"
