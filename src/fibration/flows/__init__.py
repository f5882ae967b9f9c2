"""Flows: vector fields on parameter space. A flow never steps; solvers never look inside one."""

from ._adapted import AdaptedFlow, InterpolatedFlow
from ._certificate import Certificate, certificate
from ._damping import Tikhonov
from ._flow import AbstractFlow, GradientFlow
from ._horizontal import Holonomy, Horizontality, bracket, holonomy, horizontality
from ._metrics import AbstractOutputMetric, Euclidean, SoftmaxFisher, Whitened
from ._path import PathFlow
from ._stopping_time import stopping_time
from ._weight_decay import WeightDecay

__all__ = [
    "AbstractFlow",
    "AbstractOutputMetric",
    "AdaptedFlow",
    "Certificate",
    "Euclidean",
    "GradientFlow",
    "Holonomy",
    "Horizontality",
    "InterpolatedFlow",
    "PathFlow",
    "SoftmaxFisher",
    "Tikhonov",
    "WeightDecay",
    "Whitened",
    "bracket",
    "certificate",
    "holonomy",
    "horizontality",
    "stopping_time",
]
