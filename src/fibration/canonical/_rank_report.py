"""The rank report: how singular the disparity matrix is, what makes it so, and what that does not say."""

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .. import _validation, tangent
from ..errors import MemoryBudgetError, ParameterError
from ..losses import CrossEntropy
from ..problem import Problem
from ..trees import PyTree
from ._arguments import concrete, epsilon
from ._basis import Basis
from ._coordinates import prepared
from ._disparity import _disparity
from ._projected import conflicting, single
from ._structure import (
    Unit,
    alike_pairs,
    as_units,
    dead_units,
    kept_pairs,
    linear_in_inputs,
    n_rescalings,
    without_weights,
)

if TYPE_CHECKING:
    from ._exact import ExactSpectrum

# Beyond so many of the fewer of rows and columns singular values are not computed.
_MOST = 4000
TOLERANCES = ("eps", "1e-08", "1e-04")


class Spectrum(eqx.Module):
    """Singular values of a matrix, descending, and what they say.

    - `ranks`: the numbers of singular values above {max(rows, columns)·eps, 1e-8, 1e-4}·σ_max, under "eps", "1e-08",
      "1e-04", where no level is below the first; `needed`: the rank that is asked for.
    - `eps`: the rounding unit of what the matrix was computed from, if it is coarser than that of its own type.
    - `stable_rank`: ‖·‖_F²/σ_max²; `entropy_rank`: exp(−Σ p log p), p = σ²/Σσ².
    """

    singular_values: Float[np.ndarray, " r"]
    shape: tuple[int, int]
    needed: int
    eps: float = 0.0

    @property
    def floor(self) -> float:
        """What rounding leaves of a singular value that is zero, in units of σ_max: max(rows, columns)·eps."""
        return max(self.shape) * max(self.eps, float(np.finfo(self.singular_values.dtype).eps))

    @property
    def sigma_max(self) -> float:
        """The largest singular value."""
        return float(self.singular_values[0])

    @property
    def sigma_min(self) -> float:
        """The singular value that decides about full rank: number `needed`, 0 if there are fewer."""
        return float(self.singular_values[self.needed - 1]) if len(self.singular_values) >= self.needed else 0.0

    @property
    def ratio(self) -> float:
        """σ_min/σ_max."""
        return self.sigma_min / self.sigma_max if self.sigma_max > 0 else 0.0

    @property
    def ranks(self) -> dict[str, int]:
        """The numerical ranks at three tolerances."""
        levels = zip(TOLERANCES, (0.0, 1e-8, 1e-4), strict=True)
        relative = self._relative
        return {name: int(np.sum(relative > max(level, self.floor))) for name, level in levels}

    @property
    def _relative(self) -> Float[np.ndarray, " r"]:
        """The singular values in units of the largest, whose squares are always in range."""
        return self.singular_values / (self.sigma_max if self.sigma_max > 0 else 1.0)

    @property
    def stable_rank(self) -> float:
        """The squared Frobenius norm over that of the largest singular value."""
        return float(np.sum(self._relative**2))

    @property
    def entropy_rank(self) -> float:
        """The exponential of the entropy of the squared singular values."""
        if self.sigma_max == 0:
            return 0.0
        p = self._relative**2 / np.sum(self._relative**2)
        p = p[p > 0]
        return float(np.exp(-np.sum(p * np.log(p))))

    def __str__(self) -> str:
        ranks = ", ".join(f"{rank} at {name}" for name, rank in self.ranks.items())
        return (
            f"rank of {self.needed}: {ranks}; σ_max {self.sigma_max:.2e}, σ_min {self.sigma_min:.2e} "
            f"(ratio {self.ratio:.0e}), stable rank {self.stable_rank:.2f}, entropy rank {self.entropy_rank:.2f}"
        )


class RankReport(eqx.Module):
    """What the network can change of its function now: spectra, their causes, and what they do not say.

    - `canonical`: the `Spectrum` of H (M, K·Q), needed K·Q; `data`: that of the differential of the outputs (N·Q, M),
      needed N·Q, or N(Q − 1) for cross-entropy, `None` without a problem. Full data rank is the weaker condition, and
      the one that training needs.
    - `modes_at_data`: (rank, condition) of E = `basis.evaluate(inputs)`, `None` without a problem.
    - `parameters`: M; `rescalings`: how many ways to rescale parameters the function does not feel, `None` if too many
      parameters to count; `effective_parameters`: M less these.
    - `dead`: rows and columns of weight matrices that move nothing, and not for the sake of a zero that can move.
    - `copies`: pairs that are equal, up to the sign, and that gradient descent keeps so, on any data; `alike`: pairs
      that only move the function alike now, with the sign.
    - `exact`: the `ExactSpectrum` of H if it was asked for.
    - `stalls`: which of "zero initialisation", "duplicate units", "dead units", "linear in the inputs" are found.
    """

    canonical: Spectrum
    data: Spectrum | None
    modes_at_data: tuple[int, float] | None
    parameters: int
    rescalings: int | None
    dead: tuple[Unit, ...]
    copies: tuple[tuple[Unit, Unit, int], ...]
    alike: tuple[tuple[Unit, Unit, int], ...]
    stalls: tuple[str, ...]
    notes: tuple[str, ...]
    exact: "ExactSpectrum | None" = None

    @property
    def effective_parameters(self) -> int:
        """The parameters less the rescalings."""
        return self.parameters - (self.rescalings or 0)

    def __str__(self) -> str:
        lines = [f"disparity, {self.canonical}"]
        if self.exact is not None:
            lines.append(f"in high precision, {self.exact}")
        if self.data is not None:
            lines.append(f"data, {self.data}")
        counted = "" if self.rescalings is None else f", {self.effective_parameters} after rescalings"
        lines.append(f"{self.parameters} parameters{counted}")
        if self.stalls:
            lines.append(f"found: {', '.join(self.stalls)}")
        return "\n".join([*lines, *self.notes])


@concrete
def rank_report(
    apply: Any, params: PyTree, basis: Any, problem: Any = None, *, rule: Any = None, exact: bool = False
) -> RankReport:
    """Report the rank of the disparity matrix, and with a `problem` of the differential at its samples.

    **Arguments:** as in `coordinates`; `problem`: one block, whose samples lie in the box; `exact`: also compute the
    singular values of H with 60 digits (see `exact_spectrum`, which says for which networks), to tell singular from
    nearly singular.

    **Returns:** a `RankReport`; `str` of it says it in sentences, and always that full rank does not by itself imply
    convergence.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`; `MemoryBudgetError` if H has over 4000 of both.
    It cannot be traced by `jit`, `grad` or `vmap`.

    Allocates H (M·K·Q numbers) a few times.

    **Source:** Jiang, arXiv 1903.02140, for the disparity matrix. The paper infers convergence from full rank; the
    inference fails (see `fb.canonical.spiral`), and this report does not make it.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=3)
    >>> report = fb.canonical.rank_report(lambda w, x: w[1:2] @ (w[:1, None] @ x), jnp.array([0.5, 2.0]), basis)
    >>> report.stalls, report.canonical.ranks["eps"], report.canonical.needed
    (('linear in the inputs',), 1, 4)

    ```
    """
    params, rule = prepared(apply, params, basis, rule)
    state, constant = eqx.partition(params, eqx.is_inexact_array)

    def disparity_at(state: PyTree) -> Float[np.ndarray, "M C"]:
        return np.asarray(_disparity(apply, eqx.combine(state, constant), rule), float)

    H = disparity_at(state)
    _validation.check_finite(H, "entries of the disparity matrix")
    if min(H.shape) > _MOST:
        raise MemoryBudgetError(
            f"H is {H.shape[0]} × {H.shape[1]}",
            f"at most {_MOST} rows or columns for all singular values",
            "take fewer modes, or use `disparity_operator` with a Krylov method",
        )
    canonical = Spectrum(_singular_values(H), H.shape, H.shape[1], epsilon(state))
    problem = None if problem is None else single(problem)
    data, at_data = (None, None) if problem is None else _at_data(problem, params, basis)
    pairs = alike_pairs(state, H)
    kept = kept_pairs(apply, state, constant, basis, pairs)
    dead, copies = dead_units(state, H, disparity_at), as_units(state, kept)
    alike = as_units(state, [pair for pair in pairs if pair not in kept])
    rescalings = n_rescalings(apply, state, constant, basis)
    if rescalings is not None:  # what moves is felt
        rescalings = min(rescalings, H.shape[0] - canonical.ranks["eps"])
    at_zero = without_weights(state, H, H.shape[1] // basis.size)
    stalls = {
        "zero initialisation": at_zero,
        "duplicate units": bool(copies) and not at_zero,
        "dead units": bool(dead) and not at_zero,
        "linear in the inputs": linear_in_inputs(apply, state, constant, basis),
    }
    precise = None
    if exact:
        from ._exact import exact_spectrum  # mpmath is imported when it is first asked for

        precise = exact_spectrum(apply, params, basis)
    report = RankReport(
        canonical,
        data,
        at_data,
        H.shape[0],
        rescalings,
        dead,
        copies,
        () if at_zero else alike,
        tuple(name for name, found in stalls.items() if found),
        (),
        precise,
    )
    return dataclasses.replace(report, notes=tuple(_notes(report, problem)))


def _at_data(problem: Problem, params: PyTree, basis: Basis) -> tuple[Spectrum, tuple[int, float]]:
    """Compute the spectrum of the differential at the samples, and rank and condition of the modes there.

    **Raises:** `ParameterError` for cross-entropy of one class.
    """
    softmax = isinstance(problem.loss, CrossEntropy)
    if softmax and problem.n_outputs < 2:
        raise ParameterError(
            "cross-entropy of one class", "at least two classes: that of one is constant", "pass the number of classes"
        )
    D = np.asarray(tangent.jacobian(problem, params), float)
    needed = problem.n_samples * (problem.n_outputs - softmax)
    centred = _centred(D, problem.n_outputs) if softmax else D
    data = Spectrum(_singular_values(centred), D.shape, needed, epsilon(params, problem.inputs))
    table = np.asarray(basis.evaluate(problem.inputs))
    sigma = np.linalg.svd(table, compute_uv=False)
    rank = int(np.sum(sigma > max(table.shape) * np.finfo(sigma.dtype).eps * sigma[0]))
    complete = len(sigma) == problem.n_samples
    return data, (rank, float(sigma[0] / sigma[-1]) if sigma[-1] > 0 and complete else float("inf"))


def _singular_values(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " r"]:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return np.linalg.svd(np.linalg.qr(tall, mode="r"), compute_uv=False)


def _centred(D: Float[np.ndarray, "NQ M"], q: int) -> Float[np.ndarray, "NQ M"]:
    """Take the mean over the classes away, which softmax does not feel."""
    rows = D.reshape(-1, q, D.shape[1])
    return (rows - rows.mean(axis=1, keepdims=True)).reshape(D.shape)


def _notes(report: RankReport, problem: Problem | None) -> list[str]:
    m, needed, effective = report.parameters, report.canonical.needed, report.effective_parameters
    notes = []
    if needed > m:
        notes.append(f"Full column rank is impossible: {needed} columns for {m} parameters. Take fewer modes.")
    elif needed > effective:
        notes.append(
            f"Full column rank is impossible: {needed} columns for {effective} effective parameters, after "
            f"{report.rescalings} rescalings that the function does not feel. Take fewer modes."
        )
    elif report.canonical.ranks["eps"] < needed and not report.stalls and not report.alike:
        notes.append(
            "This precision cannot tell H from a singular matrix, which does not prove that it is one: for small "
            "networks of one input, pass `exact=True`."
        )
    if "zero initialisation" in report.stalls:
        notes.append("All weights are zero: a symmetric saddle, in which only biases of the output move.")
    if "dead units" in report.stalls:
        notes.append(f"These move nothing on the whole box: {_listed(report.dead)}.")
    if "duplicate units" in report.stalls:
        notes.append(f"Copies, which gradient descent keeps: {_listed(_paired(report.copies))}.")
    if report.alike:
        notes.append(
            f"These move the function alike now, without being copies, and part when they move: "
            f"{_listed(_paired(report.alike))}."
        )
    if "linear in the inputs" in report.stalls:
        notes.append("The network is affine in its inputs: its tangent functions span d + 1 dimensions per output.")
    if problem is not None:
        notes += _notes_on_data(report, problem)
    eps = max(spectrum.eps for spectrum in (report.canonical, report.data) if spectrum is not None)
    if eps > np.finfo(float).eps:
        notes.append(
            f"Parameters or inputs of a rounding unit of {eps:.0e}: no rank below {report.canonical.floor:.0e}·σ_max "
            "means anything. Use float64 for all of them (`jax_enable_x64`)."
        )
    notes.append("Full rank does not by itself imply convergence: σ_min must stay away from zero along the run.")
    return notes


def _notes_on_data(report: RankReport, problem: Problem) -> list[str]:
    notes = []
    rank, condition = report.modes_at_data or (0, 0.0)
    if rank < problem.n_samples:
        notes.append(f"The modes have rank {rank} on {problem.n_samples} samples: go by the data rank, not by H's.")
    elif condition > 1e8:
        notes.append(
            f"The modes are ill-conditioned on the samples (condition {condition:.0e}), as on samples that lie on a "
            "surface in the box: go by the data rank, not by H's."
        )
    if conflicting(problem):
        notes.append("Some inputs are identical with different targets: zero cost is impossible.")
    if isinstance(problem.loss, CrossEntropy):
        notes.append("Cross-entropy on separable data has no finite minimiser; its rank is on the zero-sum part.")
    return notes


def _paired(pairs: tuple[tuple[Unit, Unit, int], ...]) -> list[str]:
    return [f"{a} and {b.index}{' (mirrored)' if sign < 0 else ''}" for a, b, sign in pairs]


def _listed(items: Any, most: int = 6) -> str:
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
