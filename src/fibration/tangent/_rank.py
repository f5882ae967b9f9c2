"""The numerical rank of the differential, and which samples it is lost on."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import _sharding, trees
from ..errors import NonFiniteDataError
from ..trees import PyTree
from ._differential import Differential, checked
from ._explain import RankReport, explain_rank
from ._minimum_norm import check_rtol, fits

# Samples that take part in a null direction by less than this do so by rounding alone.
_LEVERAGE = 1e-6


def rank(problem: Any, params: PyTree, rtol: Any = None) -> RankReport:
    """Decide the numerical rank of D = ∂x/∂θ at θ, and find the samples and parameters that it is lost on.

    **Arguments:** `rtol`: singular values up to rtol·σ_max count as zero; max(N·Q, K)·eps by default.

    **Returns:** a `RankReport`.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`.

    The singular values are those of the Jacobian if it fits in the problem's memory budget, three times over, else the
    square roots of the Gram matrix's eigenvalues, whose least resolution is √(N·Q·eps)·σ_max.

    **Source:** Chen and Muñoz Ewald, arXiv 2408.01517, whose rank condition it tests; the leverages are derived.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), jnp.array([[1.0], [2.0], [3.0]])
    >>> problem = fb.Problem(lambda w, x: jnp.tanh(x @ w["in"]) @ w["out"], inputs, targets)
    >>> report = fb.tangent.rank(problem, {"in": jnp.eye(2, 3) + 0.5, "out": jnp.ones((3, 1))})
    >>> report.rank, report.needed, report.dependent_samples.tolist()
    (2, 3, [0, 2])

    ```
    """
    check_rtol(rtol)
    differential = checked(problem, params)
    m, k = differential.shape
    dense = fits(differential, 3 * m * k)
    sigma, vectors = (_sharding.on_host(part) for part in _decomposition(differential, dense))
    if not np.all(np.isfinite(sigma)):
        raise NonFiniteDataError(
            "the differential of the outputs holds NaN or infinity",
            "outputs that can be differentiated at these parameters",
            "look for a square root of zero, an overflow or a division by zero in `apply`",
        )
    eps = _eps(differential)
    finest = max(m, k) * eps if dense else float(np.sqrt(m * eps))
    threshold = finest if rtol is None else rtol if dense else max(finest, rtol)
    found = int(np.sum((sigma > threshold * sigma[0]) & (sigma > 0)))
    # A row's leverage in ker Dᵀ is one minus that in range D.
    rows = np.clip(1 - np.sum(vectors[:, :found] ** 2, axis=1), 0, 1) if found < m else np.zeros(m)
    ends = np.cumsum([block.n_residuals for block in differential.blocks])[:-1]
    shares = [
        part.reshape(block.n_samples, block.n_outputs).sum(axis=1)
        for block, part in zip(differential.blocks, np.split(rows, ends), strict=True)
    ]
    leverage = np.concatenate(shares)
    report = RankReport(
        rank=found,
        needed=m,
        parameters=k,
        singular_values=sigma[: min(m, k)],
        threshold=threshold,
        from_gram=not dense,
        dependent_samples=np.flatnonzero(leverage > max(_LEVERAGE, np.sqrt(eps))),
        leverage=leverage,
        blocks=tuple(block.n_samples for block in differential.blocks),
    )
    return dataclasses.replace(report, explanation=explain_rank(problem, params, report))


@eqx.filter_jit
def _decomposition(differential: Differential, dense: bool) -> tuple[Array, Array]:
    if dense:
        matrix = _sharding.everywhere(differential.jacobian(), differential.mesh)
        u, sigma, _ = jnp.linalg.svd(matrix, full_matrices=False)
        return sigma, u
    squares, vectors = jnp.linalg.eigh(_sharding.everywhere(differential.gram(), differential.mesh))
    return jnp.sqrt(jnp.maximum(squares[::-1], 0)), vectors[:, ::-1]


def _eps(differential: Differential) -> float:
    leaves = [*trees.coordinates(differential.params), jax.eval_shape(differential.outputs, differential.params)]
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
