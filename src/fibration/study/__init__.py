"""Studies: declared in a file, run into a store, resumed, swept over a cluster; and experiments as functions."""

from ._distributed import initialize_distributed
from ._document import StudyFile, read_study
from ._elkabetz_cohen import ElkabetzCohenStudy, elkabetz_cohen
from ._export import export_netcdf
from ._fidelity import FidelityStudy, fidelity_study
from ._machine import extras, machine_facts
from ._progress import ProgressBar
from ._records import RunRecord
from ._relu_order import relu_order
from ._runner import StudyOutcome, check_data, run_study, stored_study, template
from ._store import Store
from ._stored import facts_of, fidelity_of, trajectory
from ._studies import StudyRecord

__all__ = [
    "ElkabetzCohenStudy",
    "FidelityStudy",
    "ProgressBar",
    "RunRecord",
    "Store",
    "StudyFile",
    "StudyOutcome",
    "StudyRecord",
    "check_data",
    "elkabetz_cohen",
    "export_netcdf",
    "extras",
    "facts_of",
    "fidelity_of",
    "fidelity_study",
    "initialize_distributed",
    "machine_facts",
    "read_study",
    "relu_order",
    "run_study",
    "stored_study",
    "template",
    "trajectory",
]
