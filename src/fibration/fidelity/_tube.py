"""Constants that hold on a ball around some parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..curvature import deep_linear_tube
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._assumptions import Status


class TubeConstants(NamedTuple):
    """Bounds on a ball: `floor` and `ceiling` of the Hessian, its `lipschitz` constant, and of the gradient's norm."""

    floor: float
    ceiling: float
    lipschitz: float
    gradient: float

    @property
    def finite(self) -> bool:
        """Whether a certificate can go on with them."""
        return bool(np.isfinite(self.floor) and np.isfinite(self.lipschitz))


class Tube(NamedTuple):
    """A source of constants, and how it knows them."""

    constants: Callable[[PyTree, float], Any]
    status: Status
    note: str

    def __call__(self, params: PyTree, radius: float) -> TubeConstants:
        """Give the constants within `radius` of `params`."""
        found = self.constants(params, radius)
        names = ("smallest_eigenvalue", "largest_eigenvalue", "hessian_lipschitz", "gradient_norm")
        try:
            return TubeConstants(*(float(getattr(found, name)) for name in names))
        except (AttributeError, TypeError) as error:
            raise ParameterError(
                f"a tube of constants of type {type(found).__name__}",
                "an object with the numbers smallest_eigenvalue, largest_eigenvalue, hessian_lipschitz, gradient_norm",
                "return a `fb.curvature.DeepLinearTube`, or a named tuple with these fields",
            ) from error


def as_tube(problem: AbstractProblem, given: Any) -> Tube:
    """Make a tube of a caller's function, or of the closed forms for deep linear networks."""
    if callable(given):
        return Tube(given, "given", "a function of the caller")
    return Tube(lambda params, radius: deep_linear_tube(problem, params, radius), "proven", "closed forms")
