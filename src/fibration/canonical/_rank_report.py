"""The rank report: how singular the disparity matrix is, what makes it so, and what that does not say."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .. import _validation, tangent
from ..errors import MemoryBudgetError
from ..losses import CrossEntropy
from ..problem import AbstractProblem
from ..trees import PyTree
from ._basis import Basis
from ._coordinates import prepared
from ._disparity import _disparity
from ._projected import single
from ._quadrature import AbstractRule
from ._structure import Unit, copied_units, dead_units, linear_in_inputs, n_rescalings, without_weights

# Beyond so many of the fewer of rows and columns singular values are not computed.
_MOST = 4000
TOLERANCES = ("eps", "1e-08", "1e-04")


class Spectrum(eqx.Module):
    """Singular values of a matrix, descending, and what they say.

    - `ranks`: the numbers of singular values above {max(rows, columns)·eps, 1e-8, 1e-4}·σ_max, under "eps", "1e-08",
      "1e-04"; `needed`: the rank that is asked for.
    - `stable_rank`: ‖·‖_F²/σ_max²; `entropy_rank`: exp(−Σ p log p), p = σ²/Σσ².
    """

    singular_values: Float[np.ndarray, " r"]
    shape: tuple[int, int]
    needed: int

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
        floor = max(self.shape) * float(np.finfo(self.singular_values.dtype).eps)
        levels = zip(TOLERANCES, (floor, 1e-8, 1e-4), strict=True)
        return {name: int(np.sum(self.singular_values > level * self.sigma_max)) for name, level in levels}

    @property
    def stable_rank(self) -> float:
        """The squared Frobenius norm over that of the largest singular value."""
        return float(np.sum(self.singular_values**2)) / self.sigma_max**2 if self.sigma_max > 0 else 0.0

    @property
    def entropy_rank(self) -> float:
        """The exponential of the entropy of the squared singular values."""
        if self.sigma_max == 0:
            return 0.0
        p = self.singular_values**2 / np.sum(self.singular_values**2)
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
    - `dead`: rows and columns of weight matrices that move nothing; `copies`: pairs that move the function alike, with
      the sign.
    - `stalls`: which of "zero initialisation", "duplicate units", "dead units", "linear in the inputs" are found.
    """

    canonical: Spectrum
    data: Spectrum | None
    modes_at_data: tuple[int, float] | None
    parameters: int
    rescalings: int | None
    dead: tuple[Unit, ...]
    copies: tuple[tuple[Unit, Unit, int], ...]
    stalls: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def effective_parameters(self) -> int:
        """The parameters less the rescalings."""
        return self.parameters - (self.rescalings or 0)

    def __str__(self) -> str:
        lines = [f"disparity, {self.canonical}"]
        if self.data is not None:
            lines.append(f"data, {self.data}")
        counted = "" if self.rescalings is None else f", {self.effective_parameters} after rescalings"
        lines.append(f"{self.parameters} parameters{counted}")
        if self.stalls:
            lines.append(f"found: {', '.join(self.stalls)}")
        return "\n".join([*lines, *self.notes])


def rank_report(
    apply: Any,
    params: PyTree,
    basis: Basis,
    problem: AbstractProblem | None = None,
    *,
    rule: AbstractRule | None = None,
) -> RankReport:
    """Report the rank of the disparity matrix, and with a `problem` of the differential at its samples.

    **Arguments:** as in `coordinates`; `problem`: one block, whose samples lie in the box.

    **Returns:** a `RankReport`; `str` of it says it in sentences, and always that full rank does not by itself imply
    convergence.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`; `MemoryBudgetError` if H has over 4000 of both.

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
    state = eqx.filter(params, eqx.is_inexact_array)
    H = np.asarray(_disparity(apply, params, rule))
    _validation.check_finite(H, "entries of the disparity matrix")
    if min(H.shape) > _MOST:
        raise MemoryBudgetError(
            f"H is {H.shape[0]} × {H.shape[1]}",
            f"at most {_MOST} rows or columns for all singular values",
            "take fewer modes, or use `disparity_operator` with a Krylov method",
        )
    canonical = Spectrum(_singular_values(H), H.shape, H.shape[1])
    dead, copies = dead_units(state, H), copied_units(state, H)
    rescalings = n_rescalings(apply, params, basis)
    stalls = [
        name
        for name, found in {
            "zero initialisation": without_weights(state),
            "duplicate units": bool(copies) and not without_weights(state),
            "dead units": bool(dead) and not without_weights(state),
            "linear in the inputs": linear_in_inputs(apply, params, basis),
        }.items()
        if found
    ]
    data, at_data = None, None
    if problem is not None:
        problem = single(problem)
        D = np.asarray(tangent.jacobian(problem, params))
        softmax = isinstance(problem.loss, CrossEntropy)
        needed = problem.n_samples * (problem.n_outputs - softmax)
        data = Spectrum(_singular_values(_centred(D, problem.n_outputs) if softmax else D), D.shape, needed)
        sigma = np.linalg.svd(np.asarray(basis.evaluate(problem.inputs)), compute_uv=False)
        rank = int(np.sum(sigma > max(problem.n_samples, basis.size) * np.finfo(sigma.dtype).eps * sigma[0]))
        complete = len(sigma) == problem.n_samples
        at_data = rank, float(sigma[0] / sigma[-1]) if sigma[-1] > 0 and complete else float("inf")
    notes = _notes(canonical, data, at_data, problem, H.shape[0] - (rescalings or 0), rescalings, dead, copies, stalls)
    return RankReport(canonical, data, at_data, H.shape[0], rescalings, dead, copies, tuple(stalls), tuple(notes))


def _singular_values(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " r"]:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return np.linalg.svd(np.linalg.qr(tall, mode="r"), compute_uv=False)


def _centred(D: Float[np.ndarray, "NQ M"], q: int) -> Float[np.ndarray, "NQ M"]:
    """Take the mean over the classes away, which softmax does not feel."""
    rows = D.reshape(-1, q, D.shape[1])
    return (rows - rows.mean(axis=1, keepdims=True)).reshape(D.shape)


def _notes(
    canonical: Spectrum,
    data: Spectrum | None,
    at_data: tuple[int, float] | None,
    problem: Any,
    effective: int,
    rescalings: int | None,
    dead: tuple[Unit, ...],
    copies: tuple[tuple[Unit, Unit, int], ...],
    stalls: list[str],
) -> list[str]:
    m, needed = canonical.shape[0], canonical.needed
    notes = []
    if needed > m:
        notes.append(f"Full column rank is impossible: {needed} columns for {m} parameters. Take fewer modes.")
    elif needed > effective:
        notes.append(
            f"Full column rank is impossible: {needed} columns for {effective} effective parameters, after "
            f"{rescalings} rescalings that the function does not feel. Take fewer modes."
        )
    if "zero initialisation" in stalls:
        notes.append("All weights are zero: a symmetric saddle, in which only biases of the output move.")
    if dead and "dead units" in stalls:
        notes.append(f"These move nothing on the whole box: {_listed(dead)}.")
    if copies and "duplicate units" in stalls:
        pairs = [f"{a} and {b.index}{' (mirrored)' if sign < 0 else ''}" for a, b, sign in copies]
        notes.append(f"Copies, which gradient descent keeps: {_listed(pairs)}.")
    if "linear in the inputs" in stalls:
        notes.append("The network is affine in its inputs: its tangent functions span d + 1 dimensions per output.")
    if at_data is not None and data is not None:
        if at_data[0] < problem.n_samples:
            notes.append(
                f"The modes have rank {at_data[0]} on {problem.n_samples} samples: go by the data rank, not by H's."
            )
        inputs = np.asarray(problem.inputs).reshape(problem.n_samples, -1)
        distinct, group = np.unique(inputs, axis=0, return_inverse=True)
        targets = np.asarray(problem.targets).reshape(problem.n_samples, -1)
        for number in range(len(distinct)):
            members = targets[group.reshape(-1) == number]
            if len(distinct) < problem.n_samples and np.any(members != members[0]):
                notes.append("Some inputs are identical with different targets: zero cost is impossible.")
                break
        if isinstance(problem.loss, CrossEntropy):
            notes.append("Cross-entropy on separable data has no finite minimiser; its rank is on the zero-sum part.")
    if canonical.singular_values.dtype == np.float32:
        notes.append("In float32 no rank below 1e-5·σ_max means anything: enable x64.")
    notes.append("Full rank does not by itself imply convergence: σ_min must stay away from zero along the run.")
    return notes


def _listed(items: Any, most: int = 6) -> str:
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
