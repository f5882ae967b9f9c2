"""What a certificate needs to know of the Hessian, and where it looks."""

from typing import Any

import numpy as np

from .. import trees
from ..errors import ParameterError, UnknownNameError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._assumptions import Assumption
from ._measured import Spectrum, sampled_lipschitz
from ._tube import Tube, as_tube

SAMPLES = 11  # states at which the Lipschitz constant is sampled


def curvature_along(
    problem: AbstractProblem,
    curvature: Any,
    states: list[PyTree],
    hessian_lipschitz: float | None,
    dense_limit: int,
    tolerance: float,
) -> tuple[Tube | Assumption, Spectrum | None]:
    """Find what is known of the Hessian: constants on tubes or its Lipschitz constant, and its spectrum at the states.

    On tubes the spectrum is joined in only where it is proven, so that the whole is.
    """
    if curvature not in ("path", "tube") and not callable(curvature):
        raise UnknownNameError(
            f"curvature = {curvature!r}", '"path", "tube" or a function (params, radius)', "choose one of them"
        )
    if curvature == "path":
        spectrum = Spectrum(problem, states, dense_limit=dense_limit, tolerance=tolerance)
        return _lipschitz(problem, states, hessian_lipschitz), spectrum
    if trees.size(states[0]) > dense_limit:
        return as_tube(problem, curvature), None
    return as_tube(problem, curvature), Spectrum(problem, states, dense_limit=dense_limit, tolerance=tolerance)


def _lipschitz(problem: AbstractProblem, states: list[PyTree], given: float | None) -> Assumption:
    if given is None:
        few = np.unique(np.linspace(0, len(states) - 1, SAMPLES).round().astype(int)).tolist()
        return sampled_lipschitz(problem, [states[i] for i in few])
    if not (np.isfinite(given) and given >= 0):
        raise ParameterError(f"hessian_lipschitz = {given}", "a finite constant ≥ 0", "leave it out to have it sampled")
    return Assumption("Lipschitz constant of the Hessian", float(given), "given", "by the caller")


def choose_checks(matrix: np.ndarray, times: np.ndarray, checks: int) -> list[int]:
    """Choose the saved states at which to look at the Hessian, closer together where the descent moves fast.

    The loss from looking at few states is about ∫ρ|θ − θ_checked| dt, which is least when checks lie evenly in the
    integral of √speed.
    """
    if checks < 2:
        raise ParameterError(f"checks = {checks}", "at least 2: the start and the end", "leave it at its default")
    if len(times) <= checks:
        return list(range(len(times)))
    moved = np.linalg.norm(np.diff(matrix, axis=0).astype(float), axis=1)
    along = np.concatenate([[0.0], np.cumsum(np.sqrt(moved * np.diff(times)) + 1e-12)])
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], checks)).clip(0, len(times) - 1)).tolist()
