"""What `compare` returns, as numbers, a table and a figure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..plots import to_matplotlib
from ..solvers import Trajectory
from ._certify import Certificate
from ._comparison_plots import end_plot, time_plot

if TYPE_CHECKING:
    import pandas as pd
    import xarray

ASYMPTOTIC = 0.05  # spread of Richardson's estimates beyond which they are not of first order


@dataclass(frozen=True)
class Run:
    """One step size of a comparison.

    - `step_size`, `descent`: the descent's trajectory; `times` (T,): those at which it is compared.
    - `distance` (T,): from the flow; `first_order`, `richardson` (T,): two estimates of it; `richardson_spread`: by how
      much Richardson's estimates from different partners differ at the end, relative to the smallest; `modified` (T,):
      the distance from the modified flow. NaN where there is none.
    - `certificate`: a `Certificate`, or a sentence that says why there is none.
    - `stability` (T,): the step size times the largest Hessian eigenvalue along the flow.
    """

    step_size: float
    descent: Trajectory
    times: Float[np.ndarray, " T"]
    distance: Float[np.ndarray, " T"]
    first_order: Float[np.ndarray, " T"]
    modified: Float[np.ndarray, " T"]
    richardson: Float[np.ndarray, " T"]
    richardson_spread: float
    certificate: Certificate | str
    stability: Float[np.ndarray, " T"]

    @property
    def bound(self) -> Float[np.ndarray, " T"]:
        """The guaranteed distance (T,), infinite where nothing is guaranteed."""
        if isinstance(self.certificate, str):
            return np.full(len(self.times), np.inf)
        return self.certificate.bound[: len(self.times)]

    @property
    def asymptotic(self) -> bool | None:
        """Whether Richardson's estimates agree within 5 %, or `None` if there are not two of them."""
        return None if np.isnan(self.richardson_spread) else self.richardson_spread <= ASYMPTOTIC

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before believing the numbers, in sentences."""
        notes: list[str] = []
        over, beyond = np.flatnonzero(self.stability >= 2), np.flatnonzero(self.stability >= 1)
        if len(over):
            notes.append(
                f"step size times sharpness is {self.stability[over[0]]:.2f}, over the limit 2, from "
                f"t = {self.times[over[0]]:.6g}: the flow is no model of descent beyond that"
            )
        elif len(beyond):
            notes.append(
                f"step size times sharpness is above 1 from t = {self.times[beyond[0]]:.6g}: descent oscillates, and "
                "the modified flow is no model of it"
            )
        if self.asymptotic is False:
            notes.append(f"Richardson's estimates differ by {self.richardson_spread:.0%}: not of first order")
        if self.descent.result.failed:
            notes.append(f"the descent {self.descent.result.message}")
        if isinstance(self.certificate, str):
            notes.append(f"no certificate: {self.certificate}")
        elif self.certificate.reason:
            notes.append(f"no guarantee beyond t = {self.certificate.valid_until:.6g}: {self.certificate.reason}")
        return tuple(notes)


@dataclass(frozen=True)
class Comparison:
    """Gradient descent at several step sizes beside its gradient flow; see `compare`.

    `flow`: the solved flow, saved at the times of every descent; `runs`: one `Run` for each step size, increasing;
    `solver_error`: the largest distance between the flow and itself solved at ten times the tolerances, below which
    distances say nothing; `t1`: the time asked for, of which a descent covers its whole steps.
    """

    flow: Trajectory
    runs: tuple[Run, ...]
    solver_error: float
    t1: float

    def table(self) -> "pd.DataFrame":
        """Tabulate what holds at the end of each descent, a row for each step size.

        Columns: "step_size", "steps", "time", "stability" (the largest step size × sharpness), "distance",
        "first_order", "richardson", "richardson_spread", "modified", "bound", "valid_until", "kind", "notes".
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for run in self.runs:
            rows.append(
                {
                    "step_size": run.step_size,
                    "steps": int(np.rint(run.descent.times[-1] / run.step_size)),
                    "time": float(run.times[-1]),
                    "stability": float(np.max(run.stability)),
                    "distance": float(run.distance[-1]),
                    "first_order": float(run.first_order[-1]),
                    "richardson": _last(run.richardson),
                    "richardson_spread": run.richardson_spread,
                    "modified": _last(run.modified),
                    "bound": float(run.bound[-1]),
                    "valid_until": run.certificate.valid_until if isinstance(run.certificate, Certificate) else np.nan,
                    "kind": run.certificate.kind if isinstance(run.certificate, Certificate) else "none",
                    "notes": "; ".join(run.notes),
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Draw distances and bounds against time, and every distance at the end against the step size.

        **Returns:** a `matplotlib.figure.Figure` of 10 × 4 inches.

        **Raises:** `MissingExtraError` without matplotlib.
        """
        return to_matplotlib([time_plot(self.runs), end_plot(self.runs)])

    def to_xarray(self) -> "xarray.Dataset":
        """Convert to a labelled `xarray.Dataset` over `step_size` and `stamp`, the number of the compared time.

        Variables: "time", "distance", "first_order", "richardson", "modified", "bound", "stability" (step_size, stamp),
        NaN after a run's last time; "valid_until" (step_size). Attributes: "solver_error", "t1".
        """
        import xarray

        longest = max(len(run.times) for run in self.runs)

        def padded(name: str) -> np.ndarray:
            rows = [np.asarray(getattr(run, name), float) for run in self.runs]
            return np.stack([np.pad(row, (0, longest - len(row)), constant_values=np.nan) for row in rows])

        names = {"times": "time"} | {
            name: name for name in ("distance", "first_order", "richardson", "modified", "bound", "stability")
        }
        variables: dict[str, Any] = {label: (("step_size", "stamp"), padded(name)) for name, label in names.items()}
        certain = [run.certificate for run in self.runs]
        variables["valid_until"] = (
            "step_size",
            [c.valid_until if isinstance(c, Certificate) else np.nan for c in certain],
        )
        coordinates = {"step_size": [run.step_size for run in self.runs], "stamp": np.arange(longest)}
        return xarray.Dataset(variables, coords=coordinates, attrs={"solver_error": self.solver_error, "t1": self.t1})


def _last(values: np.ndarray) -> float:
    """Give the last number that is known, or NaN."""
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else float("nan")
