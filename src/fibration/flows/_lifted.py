"""What the adapted flows share: the horizontal lift θ' = D⁺v of a wanted output velocity v."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import trees
from .._validation import check_name
from ..errors import UnknownNameError
from ..problem import AbstractProblem
from ..tangent._diagnosis import METHODS, UNKNOWN, Diagnosis
from ..tangent._differential import Differential
from ..tangent._factor import Factor
from ..tangent._minimum_norm import factorize
from ..trees import PyTree
from ._damping import as_damping, settled
from ._flow import AbstractFlow, Time

RESCUE = 1e-2  # where `on_rank_loss="damp"` sets in, relative to the smallest singular value at the start


class Start(eqx.Module):
    """What a flow remembers of where its run started.

    `damping`: λ, or `None` for none; `rank`, `sigma_max`, `sigma_min`: of the differential there; `outputs` (M,).
    """

    damping: Float[Array, ""] | None
    rank: Int[Array, ""]
    sigma_max: Float[Array, ""]
    sigma_min: Float[Array, ""]
    outputs: Float[Array, " M"]


class AbstractLiftedFlow(AbstractFlow):
    """A flow θ' = D⁺v: the parameters' shortest velocity that gives the outputs the velocity v, as far as any does."""

    # Factorisations of matrices of lower rank have no derivatives, though the lift has.
    difference_quotients: ClassVar[bool] = True

    damping: Any
    method: str = eqx.field(static=True)
    on_rank_loss: str = eqx.field(static=True)
    start: Start | None

    def __init__(self, damping: Any, method: str, on_rank_loss: str) -> None:
        if on_rank_loss not in ("stop", "damp"):
            raise UnknownNameError(
                f"on_rank_loss = {on_rank_loss!r}", '"stop" or "damp"', 'leave it at "stop" to see where rank is lost'
            )
        check_name("method", method, METHODS)
        self.damping, self.method, self.on_rank_loss, self.start = as_damping(damping), method, on_rank_loss, None

    @property
    def stiff(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether rates may be large: not where full rank and no damping leave the outputs those of v alone."""
        undamped = self.start is not None and self.start.damping is None and self.on_rank_loss == "stop"
        return not (undamped and self.start is not None and int(self.start.rank) == self.start.outputs.size)

    @abstractmethod
    def output_velocity(self, problem: AbstractProblem, outputs: Float[Array, " M"], time: Time) -> Float[Array, " M"]:
        """Compute the velocity v that the outputs are to have."""

    def differential(self, problem: AbstractProblem, params: PyTree) -> Differential:
        """Give the differential that is lifted by."""
        return Differential(problem, params)

    @eqx.filter_jit
    def lifted(self, problem: AbstractProblem, params: PyTree, time: Time) -> PyTree:
        """Compute D⁺v, damped as the flow is."""
        factor = factorize(self.differential(problem, params), method=self.method)
        velocity = self.output_velocity(problem, factor.value, time)
        return factor.solve(velocity, self._strength(factor, velocity))

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:
        """Compute D⁺v; one factorisation of the differential."""
        return self.lifted(problem, params, time)

    def diagnosis(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> Diagnosis:
        """Solve without damping, and tell what that found out about the differential."""
        factor = factorize(self.differential(problem, params), method=self.method)
        return factor.diagnosed(self.output_velocity(problem, factor.value, time))[1]

    def _strength(self, factor: Factor, velocity: Float[Array, " M"]) -> Any:
        """Give λ: as the run's start settled it, or as if it started here."""
        if self.start is None:
            damping = settled(self.damping, factor.differential.shape)
            return 0.0 if damping is None else damping.strength(factor.sigma_max)
        if self.start.damping is not None:
            return self.start.damping
        if self.on_rank_loss == "stop":
            return 0.0
        found = factor.diagnosed(velocity)[1]
        floor = RESCUE * self.start.sigma_min
        sigma = jnp.where((found.rank != UNKNOWN) & (found.rank < self.start.rank), 0, found.sigma_min)
        return floor**2 * jnp.exp(-((sigma / floor) ** 2))

    def prepare(self, problem: AbstractProblem, params: PyTree) -> "AbstractLiftedFlow":
        """Bind the flow to a run's start: damping, rank, outputs; and warn of what is known beforehand."""
        from ._start_checks import warn

        bound, found = self.bound(problem, params)
        warn(bound, problem, params, found)
        return bound

    def bound(self, problem: AbstractProblem, params: PyTree) -> tuple["AbstractLiftedFlow", Diagnosis]:
        """Bind the flow to a run's start, and give the diagnosis there."""
        params = trees.as_coordinates(params)
        damping = settled(self.damping, self.differential(problem, params).shape)
        outputs, found = _diagnose(self, problem, params)
        strength = None if damping is None else damping.strength(found.sigma_max)
        start = Start(strength, jnp.asarray(found.rank), found.sigma_max, found.sigma_min, outputs)
        return eqx.tree_at(lambda flow: flow.start, self, start, is_leaf=lambda leaf: leaf is None), found

    def conditions(self, problem: AbstractProblem) -> Mapping[str, Callable[..., Any]]:  # noqa: ARG002
        """Stop where the differential loses rank that it had at the start, unless damping carries the flow across."""
        if self.start is None or self.start.damping is not None or self.on_rank_loss == "damp":
            return {}
        from ._events import RankLost

        return {"rank_loss": RankLost(self)}

    def explain(
        self, problem: AbstractProblem, start: PyTree, params: PyTree, time: float, code: str
    ) -> tuple[str, str]:
        """Tell lost rank from parameters that run off to infinity, and name the samples."""
        from ._events import ended

        return ended(self, problem, start, params, time, code)


@eqx.filter_jit
def _diagnose(flow: AbstractLiftedFlow, problem: AbstractProblem, params: PyTree) -> tuple[Array, Diagnosis]:
    differential = flow.differential(problem, params)
    return differential.outputs(differential.params), flow.diagnosis(problem, params)
