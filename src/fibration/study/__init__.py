"""Studies: whole experiments, from data to numbers ready to be drawn."""

from ._fidelity import FidelityStudy, digits_fidelity, fidelity_study
from ._machine import extras, machine_facts
from ._progress import ProgressBar

__all__ = ["FidelityStudy", "ProgressBar", "digits_fidelity", "extras", "fidelity_study", "machine_facts"]
