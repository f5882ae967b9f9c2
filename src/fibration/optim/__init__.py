"""The optimiser that comes out of the adapted flow."""

from ._adapted import AdaptedState, adapted
from ._least_squares import AdaptedLeastSquares, ResidualArguments, residual_function
from ._minimize import minimize

__all__ = ["AdaptedLeastSquares", "AdaptedState", "ResidualArguments", "adapted", "minimize", "residual_function"]
