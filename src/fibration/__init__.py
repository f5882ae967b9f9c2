"""Fibration: the geometry of neural-network training.

A network is a map from parameters to functions; training moves between the fibres of that map, and along them. See
`Problem`, `GradientFlow`, `integrate` and `descend` to start.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import (
    balance,
    canonical,
    curvature,
    datasets,
    errors,
    fidelity,
    flows,
    minimizers,
    networks,
    optim,
    plots,
    solvers,
    tangent,
    trees,
    weights,
)
from ._version import __version__
from .flows import AbstractFlow, AdaptedFlow, GradientFlow, InterpolatedFlow, PathFlow
from .losses import AbstractLoss, CrossEntropy, SquaredError
from .problem import AbstractProblem, Problem, StackedProblem, stack
from .solvers import (
    Checkpoint,
    Options,
    Progress,
    Result,
    StatefulObserver,
    Stop,
    Trajectory,
    descend,
    follow,
    integrate,
)

if TYPE_CHECKING:
    from . import report, study

__all__ = [
    "AbstractFlow",
    "AbstractLoss",
    "AbstractProblem",
    "AdaptedFlow",
    "Checkpoint",
    "CrossEntropy",
    "GradientFlow",
    "InterpolatedFlow",
    "Options",
    "PathFlow",
    "Problem",
    "Progress",
    "Result",
    "SquaredError",
    "StackedProblem",
    "StatefulObserver",
    "Stop",
    "Trajectory",
    "__version__",
    "balance",
    "canonical",
    "curvature",
    "datasets",
    "descend",
    "errors",
    "fidelity",
    "flows",
    "follow",
    "integrate",
    "minimizers",
    "networks",
    "optim",
    "plots",
    "report",
    "solvers",
    "stack",
    "study",
    "tangent",
    "trees",
    "weights",
]


def __getattr__(name: str) -> Any:
    # Rooms that draw or print are imported when they are first asked for.
    if name in ("report", "study"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
