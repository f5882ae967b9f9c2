"""The Gram matrix D Dᵀ of the differential, without the Jacobian wherever that is cheaper."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .. import _sharding, _validation
from ..problem import AbstractProblem
from ..trees import PyTree
from ._factors import Factors, contract, factors
from ._gram_rows import assemble_rows
from ._plan import Block, Plan, plan, trace

if TYPE_CHECKING:
    from ._differential import Differential

METHODS = ("auto", "structured", "jacobian")
_TILE = 320  # rows of the Gram matrix that are computed at once, about: few enough for the caches


def gram_matrix(differential: "Differential", method: str = "auto") -> Float[Array, "M M"]:
    """Compute D Dᵀ; usable in compiled code."""
    if method == "jacobian":
        return _by_jacobian(differential)
    leaves = jax.tree.leaves(differential.params)
    problems, mesh = differential.blocks, differential.mesh
    blocks = [trace(block, differential.params, differential.constant, mesh) for block in problems]
    # Blocks without a mesh are divided here, as those with one already are.
    inputs = [block._inputs if block.mesh is not None else _sharding.place(block._inputs, mesh) for block in problems]
    found = plan(blocks, inputs, leaves, "pairs" if method == "structured" else None)
    budget = min(block.memory_budget for block in problems)
    m, k = differential.shape
    if method == "auto" and "pairs" not in found.routes and k < m and m * k * leaves[0].dtype.itemsize <= budget:
        return _by_jacobian(differential)  # forming D is most of the work then, and simplest is fastest
    scales = differential.row_scales()
    samples, dtype = [], jnp.result_type(jnp.float32, *leaves)
    start = 0
    for block in problems:
        ones = jnp.ones(block.n_samples, dtype)
        samples.append(ones if scales is None else scales[start : start + block.n_residuals : block.n_outputs])
        start += block.n_residuals
    sources = [
        _Source(block, i, found, leaves, inputs[i], samples[i], budget / len(blocks), mesh)
        for i, block in enumerate(blocks)
    ]
    return _assemble(sources) if mesh is None else assemble_rows(sources, mesh)


def _by_jacobian(differential: "Differential") -> Float[Array, "M M"]:
    matrix = differential.jacobian()
    product = _sharding.by_rows(matrix @ matrix.T, differential.mesh)
    return _sharding.by_rows((product + product.T) / 2, differential.mesh)  # symmetric to the last digit


class _Source:
    """The factors of any tile of samples of a block: held, if they fit the budget, or computed when asked for.

    With a mesh a tile has `size` samples of every device, and the budget is each device's.
    """

    def __init__(
        self,
        block: Block,
        index: int,
        plan: Plan,
        leaves: Sequence[Array],
        inputs: Array,
        scales: Array,
        budget: float,
        mesh: Mesh | None,
    ) -> None:
        devices = _sharding.count(mesh)
        self.block, self.inputs, self.mesh = block, inputs, mesh
        # Samples that are there twice get the scale, and thus the cotangents, zero.
        self.scales = scales if mesh is None else jnp.pad(scales, (0, inputs.shape[0] - scales.shape[0]))
        self.of_batch = Partial(_factors_of_batch, block, index, plan, block.program.consts, list(leaves))
        one = Partial(factors, block, index, plan, list(leaves))
        self.own, each = inputs.shape[0] // devices, _bytes_of(one, inputs, scales)
        self.n_rows = block.n_samples * block.n_outputs
        held_by_pairs = math.sqrt(budget / (4 * scales.dtype.itemsize * plan.per_pair[index]))
        per_tile = min(_TILE / block.n_outputs, held_by_pairs) / math.sqrt(devices)
        per_tile = min(per_tile, budget / (4 * each * devices))
        self.count = math.ceil(self.own / max(1, per_tile))
        self.size = math.ceil(self.own / self.count)
        self.held: Factors | None = None
        if self.own * each <= budget / 2:
            self.held = self._computed(inputs, self.scales)

    def _computed(self, inputs: Array, scales: Array) -> Factors:
        return _sharding.each_own(self.of_batch, self.mesh)(inputs, scales)

    def start(self, number: Array) -> Array:
        """Tell the first sample of a tile; the last tile overlaps the one before."""
        return jnp.minimum(number * self.size, self.own - self.size)

    def tile(self, number: Array) -> Factors:
        """Give the factors of a tile."""
        start = self.start(number)

        def cut(array: Array) -> Array:
            return _sharding.part_of_each(array, start, self.size, self.mesh)

        if self.held is not None:
            return jax.tree.map(cut, self.held)
        return self._computed(cut(self.inputs), cut(self.scales))


def _factors_of_batch(
    block: Block, index: int, plan: Plan, consts: Sequence[Any], leaves: Sequence[Array], inputs: Array, scales: Array
) -> Factors:
    """Compute the factors of some samples; `consts` are what the block's program closes over."""
    block = dataclasses.replace(block, program=block.program.replace(consts=list(consts)))
    return jax.vmap(lambda x, scale: factors(block, index, plan, leaves, x, scale))(inputs, scales)


def _bytes_of(one: Any, inputs: Array, scales: Array) -> int:
    shapes = jax.eval_shape(one, inputs[0], scales[0])
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _assemble(sources: Sequence[_Source]) -> Float[Array, "M M"]:
    """Fill the matrix tile by tile, those above the diagonal together with their mirror images."""
    rows = [source.block.n_samples * source.block.n_outputs for source in sources]
    starts = np.concatenate([[0], np.cumsum(rows)])
    matrix = jnp.zeros((int(starts[-1]), int(starts[-1])), sources[0].scales.dtype)

    for i, first in enumerate(sources):
        for j in range(i, len(sources)):

            def row(number: Array, matrix: Array, i: int = i, j: int = j) -> Array:
                first, second = sources[i], sources[j]
                mine = first.tile(number)
                top = starts[i] + first.start(number) * first.block.n_outputs

                def column(other: Array, matrix: Array) -> Array:
                    tile = contract(mine, second.tile(other)).astype(matrix.dtype)
                    if i == j:  # to the last digit
                        tile = jnp.where(other == number, (tile + tile.T) / 2, tile)
                    left = starts[j] + second.start(other) * second.block.n_outputs
                    matrix = jax.lax.dynamic_update_slice(matrix, tile, (top, left))
                    return jax.lax.dynamic_update_slice(matrix, tile.T, (left, top))

                return jax.lax.fori_loop(number if i == j else 0, second.count, column, matrix)

            matrix = jax.lax.fori_loop(0, first.count, row, matrix)
    return matrix


def gram(problem: AbstractProblem, params: PyTree, method: str = "auto") -> Float[Array, "M M"]:
    """Compute the Gram matrix D Dᵀ of the outputs' differential, the empirical neural tangent kernel, (N·Q, N·Q).

    **Arguments:**

    - `params`: a pytree whose floating-point leaves, real, are the K parameters.
    - `method`: "auto" counts operations from the shapes and takes the cheaper route for each layer; "structured" never
      forms the Jacobian of a layer whose uses it can follow; "jacobian" forms D and multiplies.

    **Returns:** a symmetric matrix; rows sample-major, as in `jacobian`.

    **Raises:** `ApplyError`, `ParameterError`, `UnknownNameError`.

    One sample is traced, and every parameter followed to its uses: products (`dot_general`), convolutions,
    multiplications and additions, through transposes, reshapes, slices, nested calls and loops of up to 64 steps. Each
    use has the Jacobian Σ_s a_s ⊗ b_s, with a what the parameter meets at place s and b the cotangent of their
    product, so that

        (D Dᵀ)_{nq,mp} = Σ_uses Σ_{s,t} ⟨a_ns, a_mt⟩ ⟨b_nqs, b_mpt⟩,

    which costs N²·(inputs + Q²·outputs) for a dense layer instead of N²Q²·inputs·outputs. Where there are many places
    it is cheaper to add up Σ_s a_s ⊗ b_s first. Parameters used in other ways get a Jacobian block of their own.

    Allocates the matrix, and the a and b of all samples or, if these would take more than half of
    `problem.memory_budget`, of two tiles of samples at a time. The result does not depend on the budget but for
    rounding. With a mesh each of d devices computes and holds the N·Q/d rows of its own samples, and is sent the a and
    b of all others; if d does not divide N·Q, the matrix is returned whole to every device.

    **Source:** derived; for dense layers it is the sum of Khatri–Rao products of Chen and Muñoz Ewald's D Dᵀ
    (arXiv 2408.01517), as used for empirical kernels (Novak and others, arXiv 2206.08720).

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((2, 8, 1), "tanh", key=jax.random.key(0))
    >>> problem = fb.Problem(apply, jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.zeros((2, 1)))
    >>> D = fb.tangent.jacobian(problem, params)
    >>> bool(jnp.allclose(fb.tangent.gram(problem, params), D @ D.T, atol=1e-5))
    True

    ```
    """
    from ._differential import checked

    _validation.check_name("method", method, METHODS)
    return _gram(checked(problem, params), method)


@eqx.filter_jit
def _gram(differential: "Differential", method: str) -> Float[Array, "M M"]:
    return gram_matrix(differential, method)
