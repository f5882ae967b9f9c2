"""The Kempf–Ness solver: Newton's method for the shortest parameters on an orbit, for any action."""

import dataclasses
from dataclasses import dataclass, field

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import StepSizeError
from ..trees import PyTree
from ._action import AbstractAction, ChainAction, solve_generator
from ._arrays import in_float64, largest, like, read_chain

_INNER = 1e-10  # relative residual of the equations for a Newton step
_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_HALVINGS = 40
_STALLED = 0.9  # a step that leaves more of the moment map than this, and shortens nothing, has met rounding
_ROUNDING = 1e-15  # of the length
_SMALL = 1e-2  # entries of the last step's generator, if the minimum is attained
_FAR = 40.0  # entries of log g beyond which it is taken not to be
_NO_MINIMUM = (
    "the group elements grow and grow: the orbit is not closed and its lowest length not attained, or the scales are "
    "so far apart that the parts should be brought to similar sizes first"
)


@dataclass(frozen=True, eq=False)
class KempfNess:
    """What `kempf_ness` found.

    - `params`: the balanced parameters; `moment_norm`: |μ| there, relative to |W|²; `regularizer`: ½|W|².
    - `converged`: whether |μ| ≤ tolerance·|W|², or is as small as rounding lets it be; `message`: why not, if so.
    - `iterations`; `history` (iterations + 1,): |μ| before each iteration and at the end.
    """

    params: PyTree = field(repr=False)
    moment_norm: float
    regularizer: float
    converged: bool
    iterations: int
    history: Float[np.ndarray, " n"]
    message: str


class _Iterate(eqx.Module):
    params: PyTree
    length: Float[Array, ""]  # ½|W|²
    moment: Float[Array, ""]  # |μ|
    step: Float[Array, ""]  # the share of the Newton step that was taken
    generator: PyTree  # what was exponentiated


def kempf_ness(
    params: PyTree,
    action: AbstractAction | None = None,
    *,
    tolerance: float = 1e-14,
    max_iterations: int = 100,
) -> KempfNess:
    """Find the shortest parameters of an orbit, where the moment map vanishes, by geodesic Newton steps.

    W ← exp(−ξ/2)·W with herm(L_W* L_W ξ) = μ: along geodesics of the group s ↦ ½|exp(sξ)·W|² is convex, with second
    derivative 2|L ξ|², so that the step, shortened until it decreases the length, leads to the minimum, at last with
    quadratic convergence (derived; the theorem of Kempf and Ness says that a minimum exists if and only if the orbit is
    closed). No product of matrices is formed, so that ill-conditioned chains keep their digits: it is the solver for
    what has no closed form.

    **Arguments:**

    - `params`: what the group acts on; for the default action a chain of matrices, W_1 first.
    - `action`: an `AbstractAction`; that of chains by default.
    - `tolerance`: |μ| ≤ tolerance·|W|² ends the iteration; so does rounding.

    **Returns:** a `KempfNess`, computed in float64, with parameters of the types they were given in.

    **Raises:** `StepSizeError` for a tolerance or a number of iterations that is not positive; for chains the errors
    of `end_to_end`. An orbit that is not closed raises nothing: the result says that it did not converge.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> found = fb.balance.kempf_ness([np.array([[100.0]]), np.array([[0.01]])])
    >>> found.converged, [round(W.item(), 12) for W in found.params]
    (True, [1.0, 1.0])

    ```
    """
    if not (tolerance > 0 and max_iterations > 0):
        raise StepSizeError(
            f"tolerance = {tolerance}, max_iterations = {max_iterations}", "positive numbers", "leave them out"
        )
    given = read_chain(params) if action is None else params
    action = ChainAction() if action is None else action
    with jax.enable_x64(True):
        start = in_float64(given)
        _validation.check_parameters(start)
        # The action is linear: in units of the largest entry no square overflows or vanishes.
        unit = largest(start)
        found = _iterate(action, trees.scale(1 / unit, start), tolerance, max_iterations)
        params = like(given, trees.scale(unit, found.params))
        return dataclasses.replace(
            found, params=params, regularizer=found.regularizer * unit**2, history=found.history * unit**2
        )


def _iterate(action: AbstractAction, params: PyTree, tolerance: float, max_iterations: int) -> KempfNess:
    here, message = begin(action, params), ""
    history, last, travelled = [float(here.moment)], 0.0, 0.0
    while float(here.moment) > tolerance * 2 * float(here.length):
        if len(history) > max_iterations:
            message = f"the limit of {max_iterations} iterations was reached"
            break
        there = newton_step(action, here.params, here.length)
        no_shorter = float(there.length) >= (1 - _ROUNDING) * float(here.length)
        stalled = no_shorter and float(there.moment) > _STALLED * float(here.moment)
        if float(there.step) == 0 or stalled or not np.isfinite(float(there.moment)):
            break
        here = there
        history.append(float(here.moment))
        last = max(float(jnp.max(jnp.abs(x), initial=0.0)) for x in jax.tree.leaves(here.generator))
        travelled += last
        if travelled > _FAR:
            break
    relative = float(here.moment) / max(2 * float(here.length), np.finfo(float).tiny)
    # |μ| is made of sums of products of entries: |W|² times the machine epsilon is its rounding.
    balanced = relative <= max(tolerance, 100 * np.finfo(float).eps)
    if travelled > _FAR or (balanced and last > _SMALL):
        message = _NO_MINIMUM
    elif not balanced and not message:
        message = (
            f"steps no longer lower |μ|, which is {relative:.1e} of |W|²: too ill-conditioned, or not a closed orbit"
        )
    return KempfNess(
        here.params, relative, float(here.length), not message, len(history) - 1, np.array(history), message
    )


def _length(params: PyTree) -> Float[Array, ""]:
    return trees.dot(params, params) / 2


@eqx.filter_jit
def begin(action: AbstractAction, params: PyTree) -> _Iterate:
    """Look at parameters, before any step."""
    return _Iterate(params, _length(params), trees.norm(action.moment_map(params)), jnp.ones(()), None)


@eqx.filter_jit
def newton_step(action: AbstractAction, params: PyTree, length: Array) -> _Iterate:
    """Take one Newton step, halved until it lowers the length by its share of what the slope promises."""
    mu = action.moment_map(params)
    xi = action.hermitian(
        solve_generator(action, params, mu, symmetric=True, rtol=max(_INNER, 8 * float(jnp.finfo(length.dtype).eps)))
    )
    slope = trees.dot(xi, mu) / 2
    # Near the minimum the decrease drowns in the rounding of the length itself.
    slack = 8 * jnp.finfo(length.dtype).eps * length

    def reached(step: Array) -> PyTree:
        return action.exponential(trees.scale(-step / 2, xi), params)

    def too_long(carry: tuple[Array, Array]) -> Array:
        step, halvings = carry
        good = _length(reached(step)) <= length - _SUFFICIENT * step * slope + slack
        return ~good & (halvings < _HALVINGS)

    step, halvings = jax.lax.while_loop(
        too_long, lambda carry: (carry[0] / 2, carry[1] + 1), (jnp.ones(()), jnp.zeros((), jnp.int32))
    )
    step = jnp.where(halvings < _HALVINGS, step, 0.0)
    new = reached(step)
    return _Iterate(new, _length(new), trees.norm(action.moment_map(new)), step, trees.scale(-step / 2, xi))
