"""Solvers: `solve`, `integrate` and `descend`, and what they take and return."""

from ._checkpoint import Checkpoint
from ._descend import descend
from ._follow import follow
from ._integrate import integrate
from ._observe import StatefulObserver
from ._options import Options, Progress
from ._rkc2 import RKC2
from ._rock4 import ROCK4
from ._solve import solve
from ._stop import Stop
from ._trajectory import Result, Trajectory

__all__ = [
    "RKC2",
    "ROCK4",
    "Checkpoint",
    "Options",
    "Progress",
    "Result",
    "StatefulObserver",
    "Stop",
    "Trajectory",
    "descend",
    "follow",
    "integrate",
    "solve",
]
