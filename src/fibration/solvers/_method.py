"""What the adaptive stepper asks of a method beyond diffrax's interface, and diffrax's own methods behind it."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from .. import trees
from ..trees import PyTree
from ._stepper import Spent


class Control(NamedTuple):
    """The constants of the step-size control: those of diffrax's `PIDController`, and the error estimate's order."""

    order: Any
    pcoeff: Any
    icoeff: Any
    safety: Any
    factormax: Any


class AbstractMethod(diffrax.AbstractAdaptiveSolver[Any]):
    """A diffrax solver that counts what it spends, and tells how its steps are to be controlled.

    Every solver state has a field `spent`. `interpolates`: whether the continuous extension is as accurate as the
    steps; if it is not, a saved time inside a step is computed by a shorter step.
    """

    term_structure: ClassVar[Any] = diffrax.AbstractTerm

    @property
    @abstractmethod
    def interpolates(self) -> bool:
        """Tell whether the continuous extension is as accurate as the steps."""

    @abstractmethod
    def begin(self, t0: Any, y0: PyTree, slope: PyTree) -> Any:
        """Make the state before the first step, where the field is `slope`."""

    def init(self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any) -> Any:  # noqa: ARG002
        """Evaluate the field, and begin."""
        state = self.begin(t0, y0, terms.vf(t0, y0, args))
        return state._replace(spent=state.spent.plus(Spent.one_evaluation()))

    def for_tolerance(self, rtol: float, dtype: Any) -> "AbstractMethod":  # noqa: ARG002
        """Give the method as it is to be used at this tolerance and precision."""
        return self

    @abstractmethod
    def control(self, solver_state: Any) -> Control:
        """Give the constants of the step-size control."""

    def longest_step(self, solver_state: Any) -> Real[Array, ""]:  # noqa: ARG002
        """Give the longest step that is stable whatever the tolerance."""
        return jnp.asarray(jnp.inf)

    def after_rejection(self, before: Any, after: Any) -> Any:  # noqa: ARG002
        """Give the state to try again with: `before`, and what was learned about the field at the same place."""
        return before

    def notes(self, solver_state: Any) -> dict[str, Array]:  # noqa: ARG002
        """Give numbers worth saving along with each saved time."""
        return {}

    def interpolate(self, t0: Any, t1: Any, inside: Any, t: Any) -> PyTree:
        """Evaluate the continuous extension of a step, from what the step returned for it."""
        return self.interpolation_cls(t0=t0, t1=t1, **inside).evaluate(t)

    def func(self, terms: Any, t0: Any, y0: PyTree, args: Any) -> PyTree:
        """Evaluate the field."""
        return terms.vf(t0, y0, args)

    def account(self, solver_state: Any) -> dict[str, Any]:  # noqa: ARG002
        """Tell the statistics of a finished run: "method", and others of the method's own."""
        return {"method": self.name}

    @property
    def name(self) -> str:
        """The method's name in the statistics."""
        return type(self).__name__


class AbstractMember(AbstractMethod):
    """A method that can take over from another one, and hand the work on."""

    def for_tolerance(self, rtol: float, dtype: Any) -> "AbstractMember":  # noqa: ARG002
        """Give the method as it is to be used at this tolerance and precision."""
        return self

    @abstractmethod
    def ceiling(self) -> Any:
        """Give the largest step times spectral radius that the method can take."""

    @abstractmethod
    def evaluations_at(self, z: Real[Array, ""]) -> Any:
        """Count the field evaluations of a step that is z over the spectral radius long."""

    @abstractmethod
    def stiffness(self, solver_state: Any, h: Real[Array, ""]) -> Real[Array, ""]:
        """Give the last step h times the spectral radius, as far as the method knows."""

    @abstractmethod
    def slope(self, solver_state: Any) -> PyTree:
        """Give the field at the state."""

    @abstractmethod
    def with_slope(self, solver_state: Any, slope: PyTree) -> Any:
        """Make the state after another method's step, which ended with this slope."""


class ClassicalState(NamedTuple):
    """What a classical method carries from step to step.

    `inner`: the slope at the state for a first-same-as-last method, else diffrax's own state; `stiffness`: the step
    times the spectral radius, as far as the stages tell; `longest`: the next step at most, to stay stable.
    """

    inner: PyTree
    stiffness: Real[Array, ""]
    longest: Real[Array, ""]
    spent: Spent


class Classical(AbstractMember):
    """An explicit Runge–Kutta method of diffrax, which also measures how close it is to its limit of stability.

    If the last two stages k, k' are slopes at the end of the step, at the points g, g', then |k − k'|/|g − g'| grows to
    the spectral radius where stability limits the step (Hairer and Wanner, Solving Ordinary Differential Equations II,
    section IV.2). It costs nothing.
    """

    erk: diffrax.AbstractERK

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        """The continuous extension of the method."""
        return self.erk.interpolation_cls

    @property
    def interpolates(self) -> bool:
        # The continuous extension of Dopri8 in diffrax 0.7 is 10⁴ times less accurate than its steps, which no error
        # control sees (measured on a stiff linear field); those of the lower orders stay below the tolerance.
        return isinstance(self.erk, diffrax.Tsit5 | diffrax.Dopri5 | diffrax.Bosh3)

    @property
    def name(self) -> str:
        return type(self.erk).__name__

    @property
    def tableau(self) -> diffrax.ButcherTableau:
        """The coefficients."""
        return cast("diffrax.ButcherTableau", self.erk.tableau)

    @property
    def evaluations(self) -> int:
        """Count the field evaluations of one step: the stages, less the one that a first-same-as-last method saves."""
        return self.tableau.num_stages - int(self.tableau.fsal)

    def ceiling(self) -> float:
        """Compute where |R| first exceeds one on the negative real axis, for the stability polynomial R."""
        stages = self.tableau.num_stages
        a = np.zeros((stages, stages))
        for i, row in enumerate(self.tableau.a_lower, 1):
            a[i, : len(row)] = row
        powers, v = [1.0], np.ones(stages)
        for _ in range(stages):
            powers.append(float(np.asarray(self.tableau.b_sol) @ v))
            v = a @ v
        z = -np.linspace(0.01, 50, 100_000)
        return float(-z[np.argmax(np.abs(np.polynomial.polynomial.polyval(z, powers)) > 1 + 1e-9)])

    def order(self, terms: Any) -> int:
        return cast("int", self.erk.order(terms))

    def control(self, solver_state: Any) -> Control:  # noqa: ARG002
        # An exponent lowered to 0.7 spends a tenth fewer gradients on stiff flows.
        return Control(self.erk.order(cast("Any", None)), 0.0, 0.7, 0.8, 3.0)

    def begin(self, t0: Any, y0: PyTree, slope: PyTree) -> ClassicalState:
        inner = slope if self.tableau.fsal else self.erk.init(cast("Any", None), t0, t0, y0, None)
        zero = jnp.zeros((), jnp.result_type(t0))
        return ClassicalState(inner, zero, zero + jnp.inf, Spent.nothing())

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any, solver_state: ClassicalState, made_jump: Any
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], ClassicalState, diffrax.RESULTS]:
        """Take one step, and measure its stiffness."""
        inner, _, _, (evaluations, products) = solver_state
        if self.tableau.fsal:  # diffrax's state of such a method: whether the slope is still to be found, and the slope
            inner = (jnp.asarray(False), inner)
        new, error, dense, after, result = self.erk.step(terms, t0, t1, y0, args, inner, made_jump)
        inner = cast("tuple[Any, PyTree]", after)[1] if self.tableau.fsal else after
        # At the limit of stability the estimate falls short of the error: once in fifty stiff quadratic flows the error
        # exceeded the tolerance, by up to 1.4. Twice the estimate, with a larger safety factor, costs nothing more.
        error = jax.tree.map(lambda e: 2 * e, error)
        stiffness = self._stiffness(y0, dense["k"]).astype(solver_state.stiffness.dtype)
        # Beyond the limit stiff components would grow until the error control catches them. Nearer to zero the measure
        # says nothing about the stiffest ones.
        limit = 0.95 * self.ceiling()
        near = stiffness > 0.5 * limit
        longest = jnp.where(near, (t1 - t0) * limit / jnp.where(near, stiffness, 1), jnp.inf)
        again = jnp.asarray(made_jump) & self.tableau.fsal
        spent = Spent(evaluations + self.evaluations + again, products)
        return new, error, dense, ClassicalState(inner, stiffness, longest.astype(stiffness.dtype), spent), result

    def longest_step(self, solver_state: ClassicalState) -> Real[Array, ""]:
        return solver_state.longest

    def evaluations_at(self, z: Real[Array, ""]) -> int:  # noqa: ARG002
        return self.evaluations

    def stiffness(self, solver_state: ClassicalState, h: Real[Array, ""]) -> Real[Array, ""]:  # noqa: ARG002
        return solver_state.stiffness

    def slope(self, solver_state: ClassicalState) -> PyTree:
        # Known to a first-same-as-last method, and no other one is a member of a `Switching`.
        return solver_state.inner

    def with_slope(self, solver_state: ClassicalState, slope: PyTree) -> ClassicalState:
        return solver_state._replace(inner=slope)

    def _stiffness(self, y0: PyTree, k: PyTree) -> Array:
        """Compare the last two stages, where both are slopes at the end of the step."""
        if not (len(self.tableau.c) > 1 and self.tableau.c[-1] == self.tableau.c[-2] == 1):
            return jnp.asarray(jnp.nan)
        rows = (np.append(self.tableau.a_lower[-2], 0.0), self.tableau.a_lower[-1])

        def point(row: np.ndarray) -> PyTree:
            return jax.tree.map(lambda y, ks: y + jnp.tensordot(jnp.asarray(row, ks.dtype), ks[: len(row)], 1), y0, k)

        slopes = trees.norm(jax.tree.map(lambda ks: ks[-1] - ks[-2], k))
        apart = trees.norm(trees.subtract(point(rows[1]), point(rows[0])))
        return jnp.where(apart > 0, slopes / jnp.where(apart > 0, apart, 1), 0)
