"""Which numbers of a study's runs are worth a plot and a column: one value for each run of a point."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..study import RunRecord
from ._records import FAMILIES, family, runs_of, value

_MOST_NAMED = 12  # flows and descents of one point that plots look at


@dataclass(frozen=True)
class Kind:
    """What a number is. `suffix`: the end of its name in a summary; `label`: of a column or an axis."""

    suffix: str
    title: str
    label: str
    caption: str


@dataclass(frozen=True)
class Quantity:
    """A number that every point may have: what it is, of which flow or descent, and its value for each record.

    `run`: empty for what a point has as a whole; `values`: NaN where a record has none, infinite where it diverged.
    """

    kind: Kind
    run: str
    values: np.ndarray

    @property
    def title(self) -> str:
        """Name it in a heading."""
        return self.kind.title.format(run=self.run)

    @property
    def caption(self) -> str:
        """Say what it is, without a full stop."""
        return self.kind.caption.format(run=self.run)

    @property
    def column(self) -> str:
        """Name it at the head of a column."""
        return f"{self.run}: {self.kind.label}" if self.run else self.kind.label

    @property
    def constant(self) -> bool:
        """Whether it is the same in all records that have it."""
        found = self.values[~np.isnan(self.values)]
        return len(found) == 0 or bool(np.all(found == found[0]))


_COST = Kind("cost", "Final cost of {run}", "cost", "The cost at the end of {run}")
_KINDS = (
    Kind(
        "distance_relative",
        "Relative distance of {run} from the flow",
        "distance / way",
        "How far {run} ends from the gradient flow, over how far the flow went",
    ),
    Kind("sharpness_end", "Sharpness at the end of {run}", "sharpness", "The largest Hessian eigenvalue there"),
    Kind(
        "bound",
        "Certified bound of the distance of {run}",
        "bound",
        "The bound at the end of {run} of its distance from the gradient flow, known without the flow",
    ),
    Kind(
        "end.rank_share",
        "Rank of the differential at the end of {run}",
        "rank share",
        "The rank of the differential over what is needed: below 1 there are errors that no small change mends",
    ),
    Kind(
        "end.sigma_ratio",
        "Smallest singular value at the end of {run}",
        "σ_min/σ_max",
        "The smallest singular value of the differential over the largest",
    ),
    Kind("imbalance_end", "Imbalance at the end of {run}", "imbalance", "|μ|/|W|², μ the moment map"),
    Kind("stall_end", "Stall index at the end of {run}", "stall", "0 is a stall: the parameters feel no error"),
    Kind("sharpness_max", "Largest sharpness along {run}", "largest sharpness", "The largest along the run"),
    Kind("distance", "Distance of {run} from the flow", "distance", "Where {run} ends, in parameter space"),
)
# How many of each kind are drawn before the rest: of the first flows and descents that have it.
_FIRST = {
    "cost": 3,
    "distance_relative": 2,
    "sharpness_end": 2,
    "bound": 1,
    "end.rank_share": 1,
    "end.sigma_ratio": 1,
    "imbalance_end": 1,
    "stall_end": 1,
}


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """List the flows and descents of all records: gradient flows first."""
    found: dict[str, tuple[int, bool]] = {}
    for record in records:
        for name, run in runs_of(record).items():
            found.setdefault(name, (FAMILIES.index(family(run)), run.get("kind") != "flow"))
    return sorted(found, key=found.__getitem__)[:_MOST_NAMED]


def quantities(records: Sequence[RunRecord]) -> list[Quantity]:
    """List what there is, the most telling first."""
    names = run_names(records)
    kinds = {kind.suffix: kind for kind in (_COST, *_KINDS)}
    order = [*_FIRST.items(), *((suffix, len(names)) for suffix in kinds)]
    made: dict[tuple[str, str], Quantity] = {}
    for suffix, most in order:
        present = 0
        for name in names:
            if present == most:
                break
            one = made.get((suffix, name)) or _quantity(kinds[suffix], name, records)
            if one is not None:
                made[suffix, name] = one
                present += 1
    return [*made.values(), *_of_points(records)]


def _quantity(kind: Kind, name: str, records: Sequence[RunRecord]) -> Quantity | None:
    """Collect a number of one flow or descent; `None` if no record has it."""
    found = np.array([_value(record, name, kind.suffix) for record in records], float)
    return None if np.all(np.isnan(found)) else Quantity(kind, name, found)


def _value(record: RunRecord, name: str, suffix: str) -> float:
    if suffix == "end.rank_share":
        rank, needed = (value(record, f"{name}.end.{part}") for part in ("rank", "rank_needed"))
        return np.nan if rank is None or not needed else rank / needed
    found = value(record, f"{name}.{suffix}")
    if found is None:
        return np.nan
    # A cost that is not a number is that of a run that diverged.
    return np.inf if np.isnan(found) and suffix in ("cost", "distance", "distance_relative") else found


def _of_points(records: Sequence[RunRecord]) -> list[Quantity]:
    """Collect what a point has as a whole."""
    cost = [value(record, "minimizer.cost") for record in records]
    gradients = [record.gradients for record in records]
    seconds = [record.seconds if record.status == "done" else None for record in records]
    told = "What a network costs that is written down untrained"
    made = (
        (Kind("minimizer.cost", "Cost of the explicit minimiser", "minimiser: cost", told), cost),
        (Kind("gradients", "Gradients", "gradients", "How many gradients all runs of a point took"), gradients),
        (Kind("seconds", "Seconds", "seconds", "How long a point took"), seconds),
    )
    arrays = [(kind, np.array([np.nan if v is None else v for v in values], float)) for kind, values in made]
    return [Quantity(kind, "", array) for kind, array in arrays if not np.all(np.isnan(array))]
