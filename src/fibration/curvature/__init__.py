"""Curvature: products with the Hessian of the cost, and the ends of its spectrum."""

from ._hessian import hessian_vector_product
from ._spectrum import Eigenpair, Sharpness, largest_eigenpair

__all__ = ["Eigenpair", "Sharpness", "hessian_vector_product", "largest_eigenpair"]
