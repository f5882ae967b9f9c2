"""Stabilised explicit Runge–Kutta methods: many stages a step, spent on stability instead of order.

A gradient flow is stiff, with a real spectrum. s stages of these methods stay stable over a step h up to h λ_max ∝ s²,
where classical explicit methods reach h λ_max ∝ s. They need neither Jacobian nor linear solves, only the spectral
radius of the linearisation, which a few Jacobian–vector products tell.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from .. import trees
from ..trees import PyTree
from ._method import AbstractMember
from ._spectral_radius import SpectralRadius, estimate_radius
from ._stepper import Spent


class StabilisedState(NamedTuple):
    """What a stabilised method carries from step to step.

    `slope`: the field at the state; `spectrum`: the latest estimate of the spectral radius; `age`: steps since.
    """

    slope: PyTree
    spectrum: SpectralRadius
    age: Int[Array, ""]
    spent: Spent


def _is_none(leaf: Any) -> bool:
    return leaf is None


class _Attempt(NamedTuple):
    spectrum: SpectralRadius
    age: Int[Array, ""]
    spent: Spent
    new: PyTree
    new_slope: PyTree
    error: PyTree
    tried: Int[Array, ""]
    suspect: Bool[Array, ""]


class AbstractStabilised(AbstractMember):
    """A stabilised explicit Runge–Kutta method, for fields whose linearisation has a mostly real, negative spectrum.

    Each step takes as many stages as its length times the spectral radius asks for. The radius is estimated by power
    iteration from the last eigenvector, every `refresh` steps, and again when a step's error estimate exceeds the
    distance that it moved, which is what too small a radius looks like. `max_stages`: by default as many as rounding
    allows. `bound`: the largest step times radius, which `integrate` sets from the tolerance; longer steps are refused.
    `error_scale`: a factor on the error estimate, which `integrate` sets too.
    """

    refresh: int = 20
    max_stages: int | None = None
    bound: Real[Array, ""] | None = None
    error_scale: float | Real[Array, ""] = 1.0

    interpolation_cls: ClassVar[Any] = diffrax.ThirdOrderHermitePolynomialInterpolation

    @abstractmethod
    def longest(self, rtol: float, dtype: Any) -> float:
        """Give the largest step times spectral radius whose rounding errors stay below the tolerance."""

    def for_tolerance(self, rtol: float, dtype: Any) -> "AbstractStabilised":
        """Bound the steps by what rounding allows at this tolerance."""
        fields = (self.longest(rtol, dtype), self.strictness(rtol, dtype))
        return eqx.tree_at(
            lambda m: (m.bound, m.error_scale), self, tuple(jnp.asarray(x, dtype) for x in fields), is_leaf=_is_none
        )

    def strictness(self, rtol: float, dtype: Any) -> Any:  # noqa: ARG002
        """Give the factor on the error estimate that keeps the error at the end of a flow within this tolerance."""
        return self.error_scale

    def _bound(self, dtype: Any) -> Array:
        # Within diffrax the tolerance is not known.
        return jnp.asarray(self.longest(1e-6, dtype) if self.bound is None else self.bound, dtype)

    @abstractmethod
    def stages(self, z: Real[Array, ""]) -> Int[Array, ""]:
        """Count the stages for a step times spectral radius z, which are the field evaluations of the step."""

    @abstractmethod
    def attempt(
        self, field: Any, t0: Array, h: Array, y0: PyTree, slope: PyTree, radius: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Take one step; return the new state, its slope and the error estimate."""

    def begin(self, t0: Any, y0: PyTree, slope: PyTree) -> StabilisedState:  # noqa: ARG002
        """Leave the spectral radius to the first step."""
        age = jnp.asarray(self.refresh, jnp.result_type(int))
        return StabilisedState(slope, SpectralRadius.unknown(y0), age, Spent.nothing())

    def ceiling(self) -> Any:
        return 0.8 * self._bound(jnp.result_type(float))

    def evaluations_at(self, z: Real[Array, ""]) -> Int[Array, ""]:
        return self.stages(z)

    def stiffness(self, solver_state: StabilisedState, h: Real[Array, ""]) -> Real[Array, ""]:
        return h * solver_state.spectrum.radius

    def slope(self, solver_state: StabilisedState) -> PyTree:
        return solver_state.slope

    def with_slope(self, solver_state: StabilisedState, slope: PyTree) -> StabilisedState:
        # The spectral radius is to be estimated again.
        return solver_state._replace(slope=slope, age=jnp.full_like(solver_state.age, self.refresh))

    def longest_step(self, solver_state: StabilisedState) -> Real[Array, ""]:
        """Give the longest step that the largest number of stages allows at the radius known."""
        radius = solver_state.spectrum.radius
        # A little less, since a new radius may be a little larger.
        return jnp.where(radius > 0, 0.8 * self._bound(radius.dtype) / jnp.where(radius > 0, radius, 1), jnp.inf)

    def after_rejection(self, before: StabilisedState, after: StabilisedState) -> StabilisedState:
        """Keep the radius that the rejected step estimated."""
        return before._replace(spectrum=after.spectrum, age=after.age - 1)

    def notes(self, solver_state: StabilisedState) -> dict[str, Array]:
        """Give the spectral radius as last estimated."""
        radius = solver_state.spectrum.radius
        return {"spectral_radius": jnp.where(radius > 0, radius, jnp.nan)}

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any, solver_state: StabilisedState, made_jump: Any
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], StabilisedState, diffrax.RESULTS]:
        """Take one step, a second time if the spectral radius turns out to have been too small."""

        def field(t: Any, y: PyTree) -> PyTree:
            return terms.vf(t, y, args)

        slope, spectrum, age, spent = solver_state
        jump = jnp.asarray(made_jump)
        slope = jax.lax.cond(jump, lambda: field(t0, y0), lambda: slope)
        spent = Spent(spent.evaluations + jump, spent.products)
        h = jnp.asarray(t1 - t0)
        longest = self._bound(h.dtype)

        def attempt(last: _Attempt) -> _Attempt:
            stale = last.suspect | (last.age >= self.refresh)
            spectrum, products = jax.lax.cond(
                stale,
                lambda: estimate_radius(lambda y: field(t0, y), y0, last.spectrum),
                lambda: (last.spectrum, jnp.zeros_like(last.age)),
            )
            z = h * spectrum.radius
            radius = jnp.minimum(z, longest) / h
            new, new_slope, error = self.attempt(field, t0, h, y0, slope, radius)
            error = combine((self.error_scale, error))
            # A step that would need too many stages was not stable, whatever its error estimate says.
            error = jax.tree.map(lambda e: jnp.where(z <= longest, e, jnp.inf), error)
            age = jnp.where(stale, 0, last.age)
            garbage = ~(trees.norm(error) <= trees.norm(trees.subtract(new, y0)))
            evaluations = last.spent.evaluations + self.stages(radius * h)
            spent = Spent(evaluations, last.spent.products + products)
            return _Attempt(spectrum, age, spent, new, new_slope, error, last.tried + 1, garbage & (age > 0))

        no = jnp.asarray(False)
        first = _Attempt(spectrum, age, spent, y0, y0, y0, jnp.zeros((), jnp.int32), no)
        last = jax.lax.while_loop(lambda a: (a.tried == 0) | (a.suspect & (a.tried < 2)), attempt, first)
        dense = {"y0": y0, "y1": last.new, "k0": combine((h, slope)), "k1": combine((h, last.new_slope))}
        state = StabilisedState(last.new_slope, last.spectrum, last.age + 1, last.spent)
        return last.new, last.error, dense, state, diffrax.RESULTS.successful


def combine(*terms: tuple[Any, PyTree]) -> PyTree:
    """Sum coefficient times pytree, leaf by leaf and each in its own type."""

    def add(*leaves: Array) -> Array:
        real = jnp.real(leaves[0]).dtype
        parts = [jnp.asarray(c).astype(real) * leaf for (c, _), leaf in zip(terms, leaves, strict=True)]
        return sum(parts[1:], parts[0])

    return jax.tree.map(add, *(tree for _, tree in terms))
