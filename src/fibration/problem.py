"""The problem: a map from parameters to outputs, the targets it should meet, and the cost between them."""

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Num

from . import _adapters, _chunks, _sharding, _validation, trees
from .errors import ApplyError, EmptyDataError, ParameterError
from .losses import AbstractLoss, CrossEntropy, SquaredError
from .trees import PyTree

__all__ = ["AbstractProblem", "Problem", "StackedProblem", "stack"]


class AbstractProblem(eqx.Module):
    """What flows, solvers and diagnostics ask of a problem: outputs, cost and its gradient.

    `Problem` is one block of data; `StackedProblem` several blocks that share their parameters.
    """

    @abstractmethod
    def outputs(self, params: PyTree) -> Any:
        """Compute the outputs of all samples: (N, Q), or a tuple of them for several blocks."""

    @abstractmethod
    def cost(self, params: PyTree) -> Float[Array, ""]:
        """Compute the cost C(θ)."""

    @abstractmethod
    def residuals(self, params: PyTree) -> Float[Array, " m"]:
        """Compute the vector ρ with C = ½|ρ|²."""

    @abstractmethod
    def check(self, params: PyTree) -> None:
        """Raise what is wrong with these parameters for this problem; costs one abstract evaluation, no arithmetic."""

    @property
    @abstractmethod
    def n_residuals(self) -> int:
        """The number of residuals: samples times outputs, summed over the blocks."""

    @eqx.filter_jit
    def cost_and_gradient(self, params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """Compute C(θ) and ∇C(θ) in one pass.

        **Returns:** the cost () and a pytree like `params`, with `None` at leaves that are not floating-point. For
        complex parameters the gradient is ∂C/∂Re θ + i ∂C/∂Im θ, so that −∇C descends.
        """
        cost, gradient = eqx.filter_value_and_grad(self.cost)(trees.as_coordinates(params))
        return cost, jax.tree.map(jnp.conj, gradient)

    def gradient(self, params: PyTree) -> PyTree:
        """Compute ∇C(θ), a pytree like `params`; see `cost_and_gradient`."""
        return self.cost_and_gradient(params)[1]

    def n_parameters(self, params: PyTree) -> int:
        """Count the floating-point parameters K."""
        return trees.size(params)


class Problem(AbstractProblem):
    """Fit a network's outputs to targets: minimise C(θ) = (1/N) Σᵢ wᵢ ℓ(apply(θ, inputᵢ), targetᵢ).

    For the default loss, `SquaredError`, and unit weights this is C = (1/2N) Σᵢ |xᵢ − yᵢ|² (Chen and Muñoz Ewald,
    arXiv 2311.15487).

    **Arguments:**

    - `apply`: `apply(params, x)` maps the parameters, any pytree, and ONE sample x of shape (…) to outputs of shape
      (Q,), or () when Q = 1.
    - `inputs`: samples as rows, shape (N, …), real.
    - `targets`: what the loss takes: real (N, Q) for `SquaredError`, integer classes (N,) or (N, Q) for `CrossEntropy`.
    - `loss`: `SquaredError()` by default.
    - `weights`: non-negative weights of the samples, shape (N,); all one by default.
    - `allow_integer_inputs`: set it for a network that takes indices, such as one that starts with an embedding.
    - `memory_budget`: bytes that the cost, its gradient and its Hessian–vector products may take at once, about. If the
      samples together would take more, they are evaluated in chunks, one after the other, and added up; `math.inf`
      never splits them. With a mesh it is the budget of each device.
    - `mesh`: a `jax.sharding.Mesh` with Auto axes, over all of whose devices the samples are divided, those of other
      hosts included. Parameters are held by every device, and results are those of one device, to rounding. Any N will
      do. Inputs, targets and weights are arrays of all samples, the same in every process, or global arrays
      (`jax.make_array_from_process_local_data`) if the number of devices divides N.

    **Raises:** `EmptyDataError`, `ShapeError`, `IntegerDataError`, `NonFiniteDataError`, `MemoryBudgetError`, and
    `ParameterError` for another mesh. What is wrong with `apply` is found when parameters are known, by `check`, and
    raised as `ApplyError` or `ParameterError`.

    Its methods are compiled. It holds arrays, so that `jax.jit` cannot hash a bound method: in transformations of your
    own close over it, `jax.jit(lambda p: problem.cost(p))`, or pass it to an `eqx.filter_jit` function. One evaluation
    allocates the network's activations for all N samples, or for one chunk of them; the gradient about twice that.
    `outputs` and `residuals` are never split.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.eye(2), jnp.array([[1.0], [2.0]]))
    >>> w = jnp.zeros((1, 2))
    >>> print(problem.cost(w), problem.gradient(w))
    1.25 [[-0.5 -1. ]]
    >>> problem.n_residuals, problem.n_parameters(w)
    (2, 2)

    ```
    """

    apply: Callable[..., Any]
    # With a mesh, the last sample is repeated until all devices have equally many rows.
    _inputs: Num[Array, "n ..."]
    _targets: Num[Array, "n ..."]
    loss: AbstractLoss
    _weights: Float[Array, " n"] | None
    n_outputs: int = eqx.field(static=True)
    memory_budget: int | float = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)
    _repeated: int = eqx.field(static=True)

    def __init__(
        self,
        apply: Any,
        inputs: Any,
        targets: Any,
        *,
        loss: Any = None,
        weights: Any = None,
        allow_integer_inputs: bool = False,
        memory_budget: int | float = 2**30,
        mesh: Any = None,
    ) -> None:
        if not callable(apply):
            raise ApplyError(
                f"apply is {type(apply).__name__}", "a function apply(params, x)", "pass the function itself first"
            )
        loss = _validation.as_loss(SquaredError() if loss is None else loss)
        self.mesh, self.memory_budget = _sharding.as_mesh(mesh), _validation.as_budget(memory_budget)
        with _sharding.in_host_memory(self.mesh):
            inputs, targets = _validation.as_samples(inputs, targets, allow_integer_inputs)
            targets, n = loss.prepare(targets), inputs.shape[0]
            rows = [inputs, targets] + ([] if weights is None else [_validation.as_weights(weights, n)])
        self.apply, self.loss, self.n_outputs = apply, loss, loss.n_outputs(targets)
        self._inputs, self._targets, *weighted = (_sharding.place(array, self.mesh) for array in rows)
        self._weights = weighted[0] if weighted else None
        self._repeated = self._inputs.shape[0] - n

    @classmethod
    def from_equinox(cls, model: eqx.Module, inputs: Any, targets: Any, **options: Any) -> tuple["Problem", PyTree]:
        """Build a problem from an Equinox model of one sample.

        **Returns:** `(problem, params)`: `params` is `model` with its floating-point arrays only; everything else of
        the model is held in `problem.apply`. `options` go to `Problem`.

        ```python
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> import fibration as fb
        >>> model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
        >>> problem, params = fb.Problem.from_equinox(model, jnp.ones((5, 2)), jnp.zeros((5, 1)))
        >>> problem.n_parameters(params)
        33

        ```
        """
        apply, params = _adapters.from_equinox(model)
        return cls(apply, inputs, targets, **options), params

    @classmethod
    def from_flax(
        cls, module: Any, variables: Any, inputs: Any, targets: Any, **options: Any
    ) -> tuple["Problem", PyTree]:
        """Build a problem from a Flax linen module and its variables.

        **Returns:** `(problem, params)`: `params` is `variables["params"]`; the other collections are held constant.
        The module is applied to batches of one, since linen modules are written for batches. `options` go to `Problem`.

        **Raises:** `MissingExtraError` without Flax; `ParameterError` if `variables` has no "params".

        ```python
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import fibration as fb
        >>> module, inputs = nn.Dense(1), jnp.ones((5, 2))
        >>> variables = module.init(jax.random.key(0), inputs)
        >>> problem, params = fb.Problem.from_flax(module, variables, inputs, jnp.zeros((5, 1)))
        >>> problem.n_parameters(params)
        3

        ```
        """
        apply, params = _adapters.from_flax(module, variables)
        return cls(apply, inputs, targets, **options), params

    @classmethod
    def from_torch(cls, module: Any, inputs: Any, targets: Any, **options: Any) -> tuple["Problem", PyTree]:
        """Build a problem from a `torch.nn.Module`, run by JAX through torchax, in evaluation mode.

        **Returns:** `(problem, params)`: `params` is a dictionary of the module's parameters by name; its buffers are
        held constant. The module itself is not changed. `options` go to `Problem`.

        **Raises:** `MissingExtraError` without torch and torchax.

        ```python
        problem, params = fb.Problem.from_torch(torch.nn.Linear(2, 1), inputs, targets)
        ```
        """
        apply, params = _adapters.from_torch(module)
        return cls(apply, inputs, targets, **options), params

    @property
    def inputs(self) -> Num[Array, "n ..."]:
        """The samples as rows, (N, …)."""
        return self._samples(self._inputs)

    @property
    def targets(self) -> Num[Array, "n ..."]:
        """The targets, (N, …), as the loss takes them."""
        return self._samples(self._targets)

    @property
    def weights(self) -> Float[Array, " n"] | None:
        """The weights of the samples, (N,), or `None` if all are one."""
        return None if self._weights is None else self._samples(self._weights)

    def _samples(self, rows: Array) -> Array:
        """Drop repeated rows. What JAX cannot hold in equal parts then lies on every device, whole."""
        return _sharding.everywhere(rows[: self.n_samples], self.mesh) if self._repeated else rows

    @eqx.filter_jit
    def outputs(self, params: PyTree) -> Float[Array, "n q"]:
        """Compute the outputs of every sample, (N, Q)."""
        outputs = _sharding.each_own(Partial(_outputs, self.apply, params), self.mesh)(self._inputs)
        return self._samples(outputs)

    @eqx.filter_jit
    def cost(self, params: PyTree) -> Float[Array, ""]:
        """Compute the cost C(θ) = (1/N) Σᵢ wᵢ ℓᵢ, a scalar."""
        size = self._samples_per_chunk(params)
        if self.mesh is not None or size < self.n_samples:
            return self._sum(_part_of_cost, params, size)
        costs = self.loss.per_sample(self.outputs(params), self.targets)
        _validation.check_sample_costs(costs, self.n_samples)
        return jnp.mean(costs if self.weights is None else self.weights * costs)

    @eqx.filter_jit
    def cost_and_gradient(self, params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """Compute C(θ) and ∇C(θ) in one pass; see `AbstractProblem.cost_and_gradient`."""
        params = trees.as_coordinates(params)
        size = self._samples_per_chunk(params)
        if self.mesh is None and size >= self.n_samples:
            return super().cost_and_gradient(params)
        cost, gradient = self._sum(eqx.filter_value_and_grad(_part_of_cost), params, size)
        return cost, jax.tree.map(jnp.conj, gradient)

    def _samples_per_chunk(self, params: PyTree) -> int:
        """Tell how many samples each device may take at once."""
        batched = jax.vmap(self.apply, in_axes=(None, 0))
        n, *shape = self._inputs.shape
        own = jax.ShapeDtypeStruct((n // _sharding.count(self.mesh), *shape), self._inputs.dtype)
        return _chunks.samples_per_chunk(lambda inputs: batched(params, inputs), own, self.memory_budget)

    def _sum(self, part: Callable[..., Any], params: PyTree, size: int) -> Any:
        rows = [array for array in (self._inputs, self._targets, self._weights) if array is not None]
        term = Partial(part, params, self.apply, self.loss, self.n_samples)
        return _chunks.sum_over_devices(term, rows, size, self.mesh, self.n_samples)

    @eqx.filter_jit
    def residuals(self, params: PyTree) -> Float[Array, " m"]:
        """Compute ρ = √(wᵢ/N) (xᵢ − yᵢ), samples first, (N·Q,), so that C = ½|ρ|².

        **Raises:** `ParameterError` if the loss is not `SquaredError`: other costs are not sums of squares.
        """
        if type(self.loss) is not SquaredError:  # a subclass may weigh its residuals otherwise
            raise ParameterError(
                f"the loss is {type(self.loss).__name__}",
                "SquaredError, whose cost is a sum of squares",
                "use `problem.cost` and `problem.gradient`, which every loss has",
            )
        weights = jnp.ones(()) if self.weights is None else self.weights[:, None]
        scaled = jnp.sqrt(weights / self.n_samples) * (self.outputs(params) - self.targets)
        return scaled.reshape(-1)

    @property
    def n_samples(self) -> int:
        """The number N of samples."""
        return int(self._inputs.shape[0]) - self._repeated

    @property
    def n_residuals(self) -> int:
        """The number N·Q of residuals: samples times outputs."""
        return self.n_samples * self.n_outputs

    def check(self, params: PyTree) -> None:
        """Check that `apply` maps these parameters and one sample to Q outputs, by abstract evaluation.

        **Raises:** `ParameterError` without floating-point leaves, or for some on other devices than the mesh's;
        `NonFiniteDataError` for NaN or infinity among them; `ApplyError` if `apply` fails on one sample, is written for
        a batch, or returns another shape.
        """
        params = trees.as_coordinates(params)
        _validation.check_parameters(params)
        _sharding.check_devices(params, self.mesh)
        batch = jax.ShapeDtypeStruct((self.n_samples, *self._inputs.shape[1:]), self._inputs.dtype)
        hint = "pass targets with one column for each output, or change the network's last layer"
        if isinstance(self.loss, CrossEntropy) and self._targets.ndim == 1:
            hint = "pass `loss=fb.CrossEntropy(n_classes=...)` if some classes do not occur in the targets"
        _validation.check_apply(self.apply, params, batch, self.n_outputs, hint)


def _outputs(apply: Callable[..., Any], params: PyTree, inputs: Array) -> Float[Array, "c q"]:
    """Compute the outputs of a batch."""
    outputs = jax.vmap(apply, in_axes=(None, 0))(params, inputs)
    return outputs[:, None] if outputs.ndim == 1 else outputs


def _part_of_cost(
    params: PyTree, apply: Any, loss: AbstractLoss, n_samples: int, chunk: Sequence[Array], new: Bool[Array, " c"]
) -> Float[Array, ""]:
    """Compute what the `new` samples of a chunk (inputs, targets, weights) contribute to the cost."""
    inputs, targets, *weights = chunk
    costs = loss.per_sample(_outputs(apply, params, inputs), targets)
    _validation.check_sample_costs(costs, inputs.shape[0])
    return jnp.sum(jnp.where(new, costs * weights[0] if weights else costs, 0)) / n_samples


class StackedProblem(AbstractProblem):
    """Several problems over the same parameters, with cost C = Σ_b C_b; made by `stack`."""

    problems: tuple[AbstractProblem, ...]

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that samples are divided over, or `None`."""
        return next(filter(None, map(mesh_of, self.problems)), None)

    @eqx.filter_jit
    def outputs(self, params: PyTree) -> tuple[Any, ...]:
        """Compute each block's outputs: a tuple of (N_b, Q_b)."""
        return tuple(problem.outputs(params) for problem in self.problems)

    @eqx.filter_jit
    def cost(self, params: PyTree) -> Float[Array, ""]:
        """Compute the sum of the blocks' costs."""
        return jnp.sum(jnp.stack([problem.cost(params) for problem in self.problems]))

    @eqx.filter_jit
    def cost_and_gradient(self, params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """Compute the sums of the blocks' costs and gradients, each block within its own memory budget."""
        costs, gradients = zip(*(problem.cost_and_gradient(params) for problem in self.problems), strict=True)
        return jnp.sum(jnp.stack(costs)), jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *gradients)

    @eqx.filter_jit
    def residuals(self, params: PyTree) -> Float[Array, " m"]:
        """Compute the blocks' residuals one after the other, so that C = ½|ρ|²."""
        return jnp.concatenate([problem.residuals(params) for problem in self.problems])

    @property
    def n_residuals(self) -> int:
        """The number of residuals of all blocks."""
        return sum(problem.n_residuals for problem in self.problems)

    def check(self, params: PyTree) -> None:
        """Check every block; see `Problem.check`."""
        for problem in self.problems:
            problem.check(params)


def stack(problems: Sequence[AbstractProblem]) -> StackedProblem:
    """Join blocks of residuals over the same parameters, such as a differential equation's interior and boundary.

    The cost is the sum of the blocks' costs, each with its own 1/N; weigh a block by its `weights`. Blocks without a
    mesh are evaluated whole by every device of the others' mesh.

    **Raises:** `EmptyDataError` without blocks, `ParameterError` for blocks on different meshes.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> block = lambda x, y: fb.Problem(lambda w, x: w * x, jnp.array([x]), jnp.array([y]))
    >>> print(fb.stack([block(1.0, 2.0), block(3.0, 0.0)]).cost(jnp.array(1.0)))
    5.0

    ```
    """
    if not problems:
        raise EmptyDataError("stack was given no problems", "at least one problem", "pass a list of problems")
    if len(meshes := set(filter(None, map(mesh_of, problems)))) > 1:
        raise ParameterError(
            f"blocks on {len(meshes)} different meshes", "one mesh", "make the blocks with one `mesh=`"
        )
    return StackedProblem(tuple(problems))


def mesh_of(problem: AbstractProblem) -> Mesh | None:
    """Give the mesh that a problem's samples are divided over, or `None`."""
    return getattr(problem, "mesh", None)
