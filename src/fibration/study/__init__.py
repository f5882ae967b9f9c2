"""Studies: whole experiments, from data to numbers ready to be drawn."""

from ._elkabetz_cohen import ElkabetzCohenStudy, elkabetz_cohen
from ._fidelity import FidelityStudy, digits_fidelity, fidelity_study
from ._machine import extras, machine_facts
from ._progress import ProgressBar
from ._relu_order import relu_order

__all__ = [
    "ElkabetzCohenStudy",
    "FidelityStudy",
    "ProgressBar",
    "digits_fidelity",
    "elkabetz_cohen",
    "extras",
    "fidelity_study",
    "machine_facts",
    "relu_order",
]
