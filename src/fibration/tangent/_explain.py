"""Why the differential loses rank: identical inputs, dead units, too few parameters, dependent samples."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from .. import _sharding, trees
from ..problem import AbstractProblem, Problem
from ..trees import PyTree
from ._differential import Differential
from ._factor import Products, start

# Beyond so many samples the nearest pair of inputs is not looked for.
_PAIRS = 4000
# More samples or groups than this are counted, not listed.
_NAMED = 6


class RankReport(eqx.Module):
    """The numerical rank of D = ∂x/∂θ, its singular values, and the samples on which it is lost; `str` says it.

    - `rank`: the number of singular values above `threshold`; `needed`: N·Q. `parameters`: K.
    - `singular_values` (min(N·Q, K),), descending; `from_gram`: they are square roots of the Gram matrix's eigenvalues,
      which resolve no better than √(N·Q·eps)·σ_max.
    - `leverage` (N,): how much of the left null space lies on each sample: the sum over its outputs of the squared
      entries of an orthonormal basis of ker Dᵀ, from 0 to Q. The leverages add up to N·Q − rank.
    - `dependent_samples`: indices of the samples with a leverage above 1e-6: those that take part in a linear
      dependence between rows. Samples of a stacked problem are counted through, block after block; `blocks` holds the
      N of each.
    - `explanation`: what the dependence comes from; see `explain_rank`.
    """

    rank: int = eqx.field(static=True)
    needed: int = eqx.field(static=True)
    parameters: int = eqx.field(static=True)
    singular_values: Float[np.ndarray, " r"]
    threshold: float = eqx.field(static=True)
    from_gram: bool = eqx.field(static=True)
    dependent_samples: Int[np.ndarray, " d"]
    leverage: Float[np.ndarray, " N"]
    blocks: tuple[int, ...] = eqx.field(static=True)
    explanation: str = eqx.field(static=True, default="")

    @property
    def full(self) -> bool:
        """Whether every output can be moved by itself: rank = N·Q."""
        return self.rank == self.needed

    @property
    def ratio(self) -> float:
        """The least of the min(N·Q, K) singular values over the largest."""
        first = float(self.singular_values[0])
        return float(self.singular_values[-1]) / first if first > 0 else 0.0

    def __str__(self) -> str:
        return self.explanation


def explain_rank(problem: AbstractProblem, params: PyTree, report: RankReport) -> str:
    """Say in sentences what the rank is and what it is lost on.

    Looks for too few parameters, samples with identical inputs (and with equal or different targets), rows and columns
    of D that are zero (dead units), and otherwise names the samples whose rows depend on each other. With full rank and
    a condition above eps^(−0.4) it names the nearest pair of inputs, of up to 4000 samples.

    **Returns:** sentences, the first with the rank and σ_min/σ_max.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.ones((2, 3)), jnp.array([[1.0], [2.0]]))
    >>> report = fb.tangent.rank(problem, jnp.ones((1, 3)))
    >>> print(fb.tangent.explain_rank(problem, jnp.ones((1, 3)), report))
    rank 1 of 2 (σ_min/σ_max = ...). Samples 0 and 1 have identical inputs with different targets; no parameters can fit
    both.

    ```
    """
    differential = Differential(problem, params)
    sentences = [f"rank {report.rank} of {report.needed} (σ_min/σ_max = {report.ratio:.0e})."]
    eps = float(np.finfo(np.float32).eps if report.singular_values.dtype == np.float32 else np.finfo(float).eps)
    if report.full:
        if report.ratio < eps**0.4:
            sentences += _nearest(differential)
        return " ".join(sentences)
    if report.from_gram:
        sentences.append(
            f"This is by the Gram matrix, which tells nothing below {report.threshold:.0e}·σ_max from zero."
        )
    k = report.parameters
    if k < report.needed:
        sentences.append(
            f"There are {k} parameters for {report.needed} outputs, so that the rank cannot exceed {k}, and every "
            "sample can take part in the dependence."
        )
    same = _identical(differential)
    sentences += same + _immobile(differential)
    if k >= report.needed and not same and len(report.dependent_samples):
        places = [_place(report.blocks, int(index)) for index in report.dependent_samples]
        sentences.append(f"The rows of {_names(places, len(report.blocks))} are linearly dependent.")
        sentences += _nearest(differential, below=eps**0.4)
    return " ".join(sentences)


def _place(blocks: Sequence[int], index: int) -> tuple[int, int]:
    """Find a sample's block and its index there."""
    ends = np.cumsum(blocks)
    block = int(np.searchsorted(ends, index, side="right"))
    return block, index - int(ends[block] - blocks[block])


def _names(samples: Sequence[tuple[int, int]], n_blocks: int) -> str:
    """Name samples given by block and index, the first few of them."""
    several = [f"{index} of block {block}" if n_blocks > 1 else str(index) for block, index in samples]
    if len(several) > _NAMED:
        return f"samples {', '.join(several[:_NAMED])} and {len(several) - _NAMED} more"
    if len(several) == 1:
        return f"sample {several[0]}"
    return f"samples {', '.join(several[:-1])} and {several[-1]}"


def _rows(block: Problem) -> Float[np.ndarray, "n d"]:
    return _sharding.on_host(block.inputs).reshape(block.n_samples, -1).astype(float)


def _identical(differential: Differential) -> list[str]:
    """Find the groups of samples with identical inputs."""
    found: list[str] = []
    for number, block in enumerate(differential.blocks):
        _, group, counts = np.unique(_rows(block), axis=0, return_inverse=True, return_counts=True)
        targets = _sharding.on_host(block.targets).reshape(block.n_samples, -1)
        for index in np.flatnonzero(counts > 1):
            members: Int[np.ndarray, " g"] = np.flatnonzero(group.reshape(-1) == index)
            names = _names([(number, int(member)) for member in members], len(differential.blocks))
            text = f"{names[0].upper()}{names[1:]} have identical inputs"
            if np.all(targets[members] == targets[members[0]]):
                found.append(f"{text} and equal targets; one of them is enough.")
            else:
                found.append(
                    f"{text} with different targets; no parameters can fit {'both' if len(members) == 2 else 'all'}."
                )
    if len(found) > _NAMED:
        return [*found[:_NAMED], f"{len(found) - _NAMED} more groups of samples have identical inputs."]
    return found


def _immobile(differential: Differential) -> list[str]:
    """Find the rows and the columns of D that are zero: they are where its products with random vectors are."""
    rows, columns = _zeros(differential)
    rows = _sharding.on_host(rows)
    found: list[str] = []
    samples, start_of = [], 0
    for number, block in enumerate(differential.blocks):
        part = rows[start_of : start_of + block.n_residuals].reshape(block.n_samples, block.n_outputs)
        samples += [(number, int(index)) for index in np.flatnonzero(part.any(axis=1))]
        start_of += block.n_residuals
    if samples:
        names = _names(samples, len(differential.blocks))
        found.append(f"Outputs of {names} move with no parameter.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(columns):
        count = int(np.sum(leaf))
        if count:
            name = jax.tree_util.keystr(path) or "the parameters"
            found.append(f"{count} of the {leaf.size} parameters in {name} move no output: dead units, or never used.")
    return found


@eqx.filter_jit
def _zeros(differential: Differential) -> tuple[PyTree, PyTree]:
    products = Products(differential)
    images = products.jvp(trees.random_like(jax.random.key(1), differential.params)) == 0
    gradient = products.vjp(start(differential.shape[0], products.dtype))
    return images, jax.tree.map(lambda leaf: leaf == jnp.zeros((), leaf.dtype), gradient)


def _nearest(differential: Differential, below: float = np.inf) -> list[str]:
    """Name the nearest pair of different inputs, if it is nearer than `below` in units of the inputs' size."""
    best: tuple[float, str] | None = None
    for number, block in enumerate(differential.blocks):
        rows = _rows(block)
        if not 2 <= len(rows) <= _PAIRS:
            continue
        distances, neighbours = (np.asarray(part) for part in KDTree(rows).query(rows, k=2))
        i = int(np.argmin(distances[:, 1]))
        distance, size = float(distances[i, 1]), float(np.max(np.linalg.norm(rows, axis=1)))
        if distance < below * size and (best is None or distance < best[0]):
            pair = sorted((i, int(neighbours[i, 1])))
            best = distance, _names([(number, index) for index in pair], len(differential.blocks))
    if best is None:
        return []
    return [f"The nearest inputs are those of {best[1]}, at distance {best[0]:.1e}: merge them, or add damping."]
