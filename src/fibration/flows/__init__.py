"""Flows: vector fields on parameter space. A flow never steps; solvers never look inside one."""

from ._flow import AbstractFlow, GradientFlow
from ._weight_decay import WeightDecay

__all__ = ["AbstractFlow", "GradientFlow", "WeightDecay"]
