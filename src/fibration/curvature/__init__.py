"""Curvature: products with the Hessian of the cost, its spectrum, and closed-form bounds."""

from ._bounds import DeepLinearTube, HessianBound, deep_linear_lower_bound, deep_linear_tube, homogeneous_lower_bound
from ._density import SpectralDensity, spectral_density
from ._hessian import hvp
from ._observers import Sharpness, Spectrum
from ._spectrum import ExtremeEigenvalues, extreme_eigenvalues
from ._stability import EdgeOfStability, Stability, stability

__all__ = [
    "DeepLinearTube",
    "EdgeOfStability",
    "ExtremeEigenvalues",
    "HessianBound",
    "Sharpness",
    "SpectralDensity",
    "Spectrum",
    "Stability",
    "deep_linear_lower_bound",
    "deep_linear_tube",
    "extreme_eigenvalues",
    "homogeneous_lower_bound",
    "hvp",
    "spectral_density",
    "stability",
]
