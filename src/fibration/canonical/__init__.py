"""Canonical space: Fourier coordinates of a network's function, and the disparity matrix between two gradients."""

import importlib
from typing import TYPE_CHECKING, Any

from ._basis import Basis
from ._breakpoints import breakpoints
from ._certificate import LazyCertificate, lazy_certificate
from ._coordinates import Resolved, coordinates, resolve
from ._counterexamples import arctan, spiral
from ._disparity import disparity, disparity_operator
from ._experiments import convexity, relu_singularity, settling_times, singularity_probability, speeds
from ._observer import Observer, observer
from ._plots import frequency_plot, landscape_plots, singularity_plot, spectrum_plot
from ._projected import projected_cost, projected_gradient, stall_index
from ._quadrature import AbstractRule, LatticeRule, PiecewiseRule, ProductRule, quadrature
from ._rank_report import RankReport, Spectrum, rank_report
from ._scattered import fit
from ._structure import Unit

if TYPE_CHECKING:
    from ._exact import ExactSpectrum, exact_spectrum

__all__ = [
    "AbstractRule",
    "Basis",
    "ExactSpectrum",
    "LatticeRule",
    "LazyCertificate",
    "Observer",
    "PiecewiseRule",
    "ProductRule",
    "RankReport",
    "Resolved",
    "Spectrum",
    "Unit",
    "arctan",
    "breakpoints",
    "convexity",
    "coordinates",
    "disparity",
    "disparity_operator",
    "exact_spectrum",
    "fit",
    "frequency_plot",
    "landscape_plots",
    "lazy_certificate",
    "observer",
    "projected_cost",
    "projected_gradient",
    "quadrature",
    "rank_report",
    "relu_singularity",
    "resolve",
    "settling_times",
    "singularity_plot",
    "singularity_probability",
    "spectrum_plot",
    "speeds",
    "spiral",
    "stall_index",
]


def __getattr__(name: str) -> Any:
    # mpmath is imported when it is first asked for.
    if name in ("ExactSpectrum", "exact_spectrum"):
        return getattr(importlib.import_module("._exact", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
