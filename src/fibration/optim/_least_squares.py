"""The same method as an optimistix solver for least squares."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Bool, Float, Int

from .. import _validation, trees
from ..problem import AbstractProblem
from ..tangent._diagnosis import METHODS
from ..trees import PyTree
from ._minimize import DAMPING, check_damping
from ._residuals import AbstractResiduals, FunctionResiduals, ProblemResiduals
from ._step import Method, take_step


class ResidualArguments(eqx.Module):
    """The `args` by which `AdaptedLeastSquares` knows that the function is the residuals of this problem."""

    problem: AbstractProblem


def residual_function(
    problem: AbstractProblem,
) -> tuple[Callable[[PyTree, ResidualArguments], Float[Array, " M"]], ResidualArguments]:
    """Give the residuals of a problem as the function and the `args` of `optimistix.least_squares`.

    **Returns:** `fn, args` with fn(params, args) = `problem.residuals(params)`, (M,). They work with every solver;
    `AdaptedLeastSquares` recognises `args` and uses the problem's structured Gram matrix instead of a Jacobian, so that
    these `args` have to go with this `fn`. All leaves of the parameters must be floating-point.

    ```python
    >>> import jax.numpy as jnp, optimistix
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.eye(2), jnp.array([[1.0], [2.0]]))
    >>> fn, args = fb.optim.residual_function(problem)
    >>> solver = fb.optim.AdaptedLeastSquares(rtol=1e-4, atol=1e-4)
    >>> print(optimistix.least_squares(fn, solver, jnp.zeros((1, 2)), args).value.round(2))
    [[1. 2.]]

    ```
    """
    return _residuals, ResidualArguments(problem)


def _residuals(params: PyTree, args: ResidualArguments) -> Float[Array, " M"]:
    args.problem.check(params)
    return args.problem.residuals(params)


class _State(eqx.Module):
    damping: Float[Array, ""]
    rejected: Int[Array, ""]
    done: Bool[Array, ""]
    result: optimistix.RESULTS


class AdaptedLeastSquares(optimistix.AbstractLeastSquaresSolver):
    """Damped adapted steps as a solver of `optimistix.least_squares`: the method of `minimize`.

    **Arguments:**

    - `rtol`, `atol`: it ends after a step d to y with |d| < atol + rtol·|y| in the `norm`, leaf by leaf, and a change
      of |ρ| below atol + rtol·|ρ|; or, successfully, where no step lowers the cost by more than rounding.
    - `norm`: of the step divided by its tolerance; the largest entry by default.
    - `damping`, `acceleration`, `line_search`, `method`: as in `minimize`; the method is for residuals of a problem,
      see `residual_function`.

    Any function `fn(y, args)` will do: its Jacobian is computed by the cheaper of forward and reverse differentiation,
    M·K numbers, and the smaller of JJᵀ and JᵀJ factorised. `solution.stats` counts "num_steps" accepted and trials
    "rejected". A solve that finds no step although there should be one ends with `RESULTS.nonlinear_divergence`.

    **Source:** see `minimize`; the interface is optimistix's (Rader, Lyons and Kidger, arXiv 2402.09983).

    ```python
    >>> import jax.numpy as jnp, optimistix
    >>> import fibration as fb
    >>> rosenbrock = lambda y, args: jnp.array([10 * (y[1] - y[0] ** 2), 1 - y[0]])
    >>> solver = fb.optim.AdaptedLeastSquares(rtol=1e-5, atol=1e-5)
    >>> print(optimistix.least_squares(rosenbrock, solver, jnp.array([-1.2, 1.0])).value.round(3))
    [1. 1.]

    ```
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Float[Array, ""]]
    damping: float | Float[Array, ""]
    acceleration: bool
    line_search: bool
    method: str

    def __init__(
        self,
        rtol: float,
        atol: float,
        norm: Callable[[PyTree], Float[Array, ""]] = optimistix.max_norm,
        *,
        damping: float | Float[Array, ""] = DAMPING,
        acceleration: bool = True,
        line_search: bool = False,
        method: str = "auto",
    ) -> None:
        check_damping(damping)
        _validation.check_name("method", method, METHODS)
        self.rtol, self.atol, self.norm, self.damping = rtol, atol, norm, damping
        self.acceleration, self.line_search, self.method = acceleration, line_search, method

    def init(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset[object],
    ) -> _State:
        """Start with no damping known."""
        del fn, args, options, f_struct, aux_struct, tags
        dtype = jnp.result_type(*trees.coordinates(y))
        zero = jnp.zeros((), jnp.promote_types(dtype, jnp.float32))
        return _State(zero, jnp.zeros((), jnp.int32), jnp.asarray(False), optimistix.RESULTS.successful)

    def step(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: _State,
        tags: frozenset[object],
    ) -> tuple[PyTree, _State, PyTree]:
        """Take one accepted step, or end."""
        del options, tags
        residuals: AbstractResiduals
        if isinstance(args, ResidualArguments):
            nothing = jax.tree.map(lambda _: None, y)
            residuals = ProblemResiduals(args.problem, nothing, self.method)
        else:
            residuals = FunctionResiduals(lambda point: fn(point, args)[0])
        move = take_step(Method(self.acceleration, self.line_search), residuals, y, state.damping, self.damping)
        new = trees.axpy(1.0, move.step, y)
        before, after = jnp.sqrt(2 * move.before), jnp.sqrt(2 * move.cost)
        scaled = jnp.stack([
            self.norm(jnp.abs(d) / (self.atol + self.rtol * jnp.abs(p)))
            for d, p in zip(trees.coordinates(move.step), trees.coordinates(new), strict=True)
        ])  # fmt: skip
        small = jnp.all(scaled < 1) & (before - after < self.atol + self.rtol * before)
        done = move.converged | (move.accepted & small)
        stuck = ~move.accepted & ~move.converged
        results = optimistix.RESULTS
        result = results.where(stuck, results.nonlinear_divergence, results.successful)
        rejected = state.rejected + move.rejected.astype(state.rejected.dtype)
        following = _State(move.damping.astype(state.damping.dtype), rejected, done, result)
        return new, following, fn(new, args)[1]

    def terminate(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: _State,
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], optimistix.RESULTS]:
        """Tell whether the last step was the last."""
        del fn, y, args, options, tags
        return state.done, state.result

    def postprocess(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        aux: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: _State,
        tags: frozenset[object],
        result: optimistix.RESULTS,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Add the statistics."""
        del fn, args, options, tags, result
        return y, aux, {"rejected": state.rejected}
