"""What a study records beside the costs: one diagnostic of each theory, along the runs and after them."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .. import balance, canonical, fidelity, minimizers, tangent, trees
from ..curvature import Sharpness
from ..errors import FibrationError, StudyFileError, TimeMismatchError
from ..solvers import Trajectory
from ..trees import PyTree
from ._build import Built
from ._schema import Descent, Flow, Point

Number = float | str | None


@dataclass
class Findings:
    """Numbers by name, "run.quantity", and curves of a quantity over a run's saved times, (x, y)."""

    summary: dict[str, Number] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


class AbstractDiagnostic(eqx.Module):
    """One diagnostic: observers of every run, and what there is to say when all have ended."""

    def observers(self, built: Built) -> Mapping[str, Any]:  # noqa: ARG002
        """Make the observers that every run gets, by name."""
        return {}

    @abstractmethod
    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:
        """Add to the findings."""


def diagnostics(point: Point) -> dict[str, AbstractDiagnostic]:
    """List the diagnostics that a point asks for."""
    asked = point.diagnostics
    made: dict[str, AbstractDiagnostic | None] = {
        "sharpness": SharpnessAlong() if asked.sharpness else None,
        "fidelity": Fidelity() if asked.fidelity else None,
        "certificate": CertificateOfDescents() if asked.certificate else None,
        "rank": RankAtEnds() if asked.rank else None,
        "canonical": None if asked.canonical is None else CanonicalAlong(**asked.canonical.model_dump()),
        "balance": Balance() if asked.balance else None,
        "minimizer": ExplicitMinimizer() if asked.minimizer else None,
    }
    return {name: one for name, one in made.items() if one is not None}


class SharpnessAlong(AbstractDiagnostic):
    """The largest Hessian eigenvalue along every run."""

    def observers(self, built: Built) -> Mapping[str, Any]:  # noqa: ARG002
        """Observe the sharpness, warm-started."""
        return {"sharpness": Sharpness()}

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:  # noqa: ARG002
        """Tell the largest and the last value of each run."""
        for name, run in runs.items():
            values = np.asarray(run.observed["sharpness"])
            found.curves[f"{name}.sharpness"] = (run.times, values)
            found.summary[f"{name}.sharpness_max"] = float(np.max(values))
            found.summary[f"{name}.sharpness_end"] = float(values[-1])


class Fidelity(AbstractDiagnostic):
    """The distance of every gradient descent from the gradient flow that was saved at the same times."""

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:  # noqa: ARG002
        """Tell the distance at the end, and as a part of the way that the flow went."""
        flows = [name for name, run in point.runs.items() if isinstance(run, Flow) and run.field == "gradient"]
        for name, run in point.runs.items():
            if not isinstance(run, Descent) or run.method != "gradient":
                continue
            for flow in flows:
                try:
                    times, distances = fidelity.distance(runs[name], runs[flow])
                except TimeMismatchError:
                    continue
                if len(times) < 2:
                    continue
                found.curves[f"{name}.distance"] = (times, distances)
                found.summary[f"{name}.distance"] = float(distances[-1])
                travelled = fidelity.distance_from_start(runs[flow])[-1]
                found.summary[f"{name}.distance_relative"] = float(distances[-1] / travelled) if travelled > 0 else None
                break


class CertificateOfDescents(AbstractDiagnostic):
    """A bound of the distance between gradient descent and its flow, without solving the flow."""

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:
        """Tell the bound at the end, until when there is one, and of which kind."""
        for name, run in point.runs.items():
            if not isinstance(run, Descent) or run.method != "gradient":
                continue
            try:
                told = fidelity.certify(built.problem, runs[name])
            except FibrationError as error:  # a run beyond stability has no certificate: that is a finding
                found.summary[f"{name}.certificate"] = f"none: {error.given}"
                continue
            found.curves[f"{name}.bound"] = (told.times, told.bound)
            found.summary[f"{name}.bound"] = float(told.bound[-1])
            found.summary[f"{name}.certified_until"] = float(told.valid_until)
            found.summary[f"{name}.certificate"] = told.message


class RankAtEnds(AbstractDiagnostic):
    """Singular values of the differential of the outputs, where the runs start and end."""

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:  # noqa: ARG002
        """Tell ranks, and σ_min/σ_max."""
        places: dict[str, PyTree] = {"start": built.params}
        places |= {f"{name}.end": run.final_params for name, run in runs.items() if not run.result.failed}
        for place, params in places.items():
            report = tangent.rank(built.problem, params)
            sigma = np.asarray(report.singular_values)
            found.summary[f"{place}.rank"] = float(report.rank)
            found.summary[f"{place}.rank_needed"] = float(report.needed)
            complete = len(sigma) >= report.needed and sigma[0] > 0
            found.summary[f"{place}.sigma_ratio"] = float(sigma[report.needed - 1] / sigma[0]) if complete else 0.0
            found.curves[f"{place}.singular_values"] = (np.arange(1.0, len(sigma) + 1), sigma)


class CanonicalAlong(AbstractDiagnostic):
    """The stall index and the disparity matrix's singular values along every run."""

    degree: int
    kind: str
    index_set: str

    def observers(self, built: Built) -> Mapping[str, Any]:
        """Observe in a box round the data.

        **Raises:** `StudyFileError` for more than ten inputs.
        """
        inputs = np.asarray(built.problem.inputs, float)
        dimension = int(np.prod(inputs.shape[1:]))
        if dimension > 10:
            raise StudyFileError(
                f"[diagnostics.canonical] with {dimension} inputs", "at most ten", "leave it out, or reduce the inputs"
            )
        low, high = inputs.min(axis=0), inputs.max(axis=0)
        side = np.where(high > low, high - low, 1.0)
        box = np.stack([low - 0.05 * side, high + 0.05 * side], axis=-1)  # no sample on the boundary
        return {"canonical": canonical.observer(canonical.Basis(box, self.degree, self.kind, self.index_set))}

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:  # noqa: ARG002
        """Tell σ_min at the data, the stall index, and the ratio of Polyak and Łojasiewicz."""
        columns = self.observers(built)["canonical"].columns
        for name, run in runs.items():
            rows = dict(zip(columns, np.asarray(run.observed["canonical"]).T, strict=False))
            for column in ("stall", "data_sigma_min", "pl_ratio", "envelope"):
                found.curves[f"{name}.{column}"] = (run.times, rows[column])
                found.summary[f"{name}.{column}_end"] = float(rows[column][-1])


class Imbalance(eqx.Module):
    """An observer: |μ|/|W|², μ the moment map of the rescalings of hidden units, which gradient flow conserves."""

    rescaling: balance.Rescaling

    def __call__(self, problem: Any, params: PyTree) -> Any:  # noqa: ARG002
        """Compute it."""
        squares = trees.dot(params, params)
        return jnp.linalg.norm(self.rescaling.moment_map(params)) / jnp.where(squares > 0, squares, 1)


class Balance(AbstractDiagnostic):
    """How far from balanced the hidden units are along every run."""

    def observers(self, built: Built) -> Mapping[str, Any]:
        """Observe the moment map of all rescalings that the function does not notice; none for tanh networks."""
        found = balance.rescaling(built.problem.apply, built.params, built.problem.inputs[0])
        return {"imbalance": Imbalance(found)} if found.n_units else {}

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:  # noqa: ARG002
        """Tell the imbalance at both ends."""
        for name, run in runs.items():
            if "imbalance" not in run.observed:
                found.summary[f"{name}.imbalance"] = "the function notices every rescaling of its units"
                continue
            values = np.asarray(run.observed["imbalance"])
            found.curves[f"{name}.imbalance"] = (run.times, values)
            found.summary[f"{name}.imbalance_start"] = float(values[0])
            found.summary[f"{name}.imbalance_end"] = float(values[-1])


class ExplicitMinimizer(AbstractDiagnostic):
    """What a ReLU network costs that is written down for this data without training."""

    def conclude(self, point: Point, built: Built, runs: Mapping[str, Trajectory], found: Findings) -> None:  # noqa: ARG002
        """Tell its cost in the study's units, C = (1/2N) Σ |x − y|², and whether zero is certified."""
        if built.labels is None:
            found.summary["minimizer"] = "for classes only"
            return
        inputs = np.asarray(built.problem.inputs, float).reshape(len(built.labels), -1)
        try:
            made = minimizers.construct(inputs, built.labels, weights="sample")
        except FibrationError as error:
            found.summary["minimizer"] = f"none: {error.given}"
            return
        found.summary["minimizer"] = f"{made.method}, {'certified' if made.certified else 'not certified'}"
        found.summary["minimizer.cost"] = float(made.cost) ** 2 / 2
        found.summary["minimizer.affine_cost"] = float(made.affine_cost) ** 2 / 2
