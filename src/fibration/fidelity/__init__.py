"""Fidelity: how closely a descent follows its flow, measured, estimated and guaranteed."""

from ._assumptions import Assumption
from ._certify import Certificate, certify
from ._compare import compare
from ._comparison import Comparison, Run
from ._deep_linear import DeepLinearGuarantee, DeepLinearMeasurement, deep_linear_guarantee
from ._distance import distance, distance_from_start
from ._enclosure import Enclosure, enclose
from ._first_order import FirstOrderError, first_order_error
from ._modified import ModifiedFlow
from ._scalar_data import whiten
from ._separation import CurvedSaddle, SeparationExample, separation_example
from ._step_size import StepSize, step_size_for

__all__ = [
    "Assumption",
    "Certificate",
    "Comparison",
    "CurvedSaddle",
    "DeepLinearGuarantee",
    "DeepLinearMeasurement",
    "Enclosure",
    "FirstOrderError",
    "ModifiedFlow",
    "Run",
    "SeparationExample",
    "StepSize",
    "certify",
    "compare",
    "deep_linear_guarantee",
    "distance",
    "distance_from_start",
    "enclose",
    "first_order_error",
    "separation_example",
    "step_size_for",
    "whiten",
]
