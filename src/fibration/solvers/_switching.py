"""Several methods in one: a classical one while accuracy limits its steps, a stabilised one where stability would."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from ..trees import PyTree
from ._method import AbstractMember, AbstractMethod, Control, Spent

PATIENCE = 5  # steps in a row that must ask for the first change


class SwitchingState(NamedTuple):
    """The members' states, and which of them is at work.

    `active`: the number of the member at work; `up`, `down`: how many steps in a row have asked for the next or the
    previous one; `short`: whether the previous one could have taken the last step; `rejected`: steps since the last
    accepted one; `steps` (n,): accepted by each; `switches`, and the time of the first.
    """

    active: Int[Array, ""]
    up: Int[Array, ""]
    down: Int[Array, ""]
    short: Bool[Array, ""]
    rejected: Int[Array, ""]
    members: tuple[Any, ...]
    spent: Spent
    steps: Int[Array, " n"]
    switches: Int[Array, ""]
    first_switch: Real[Array, ""]


class Switching(AbstractMethod):
    """Methods in the order of the stiffness that they can take; the work goes to the one that is cheapest.

    A member hands on to the next one when its steps stay close to the longest that it can take stably: then stability,
    not accuracy, keeps them short. It hands back to the previous one when a unit of time costs it more evaluations than
    the previous one spends at its own limit, which is the most that that one can spend.
    """

    members: tuple[AbstractMember, ...]
    interpolation_cls = None  # pyright: ignore[reportAssignmentType]

    @property
    def interpolates(self) -> bool:
        return all(member.interpolates for member in self.members)

    def begin(self, t0: Any, y0: PyTree, slope: PyTree) -> SwitchingState:
        zero = jnp.zeros((), jnp.result_type(int))
        return SwitchingState(
            active=zero,
            up=zero,
            down=zero,
            short=jnp.asarray(False),
            rejected=zero,
            members=tuple(member.begin(t0, y0, slope) for member in self.members),
            spent=Spent.nothing(),
            steps=jnp.zeros(len(self.members), zero.dtype),
            switches=zero,
            first_switch=jnp.full((), jnp.nan, jnp.result_type(t0)),
        )

    def for_tolerance(self, rtol: float, dtype: Any) -> "Switching":
        """Keep the members that this tolerance and precision leave cheaper than those before them."""
        kept: list[AbstractMember] = []
        for member in (member.for_tolerance(rtol, dtype) for member in self.members):
            if not kept or _price(member) < min(map(_price, kept)):
                kept.append(member)
        return Switching(tuple(kept))

    def control(self, solver_state: SwitchingState) -> Control:
        columns = zip(*(member.control(None) for member in self.members), strict=True)
        return Control(*(jnp.asarray(column)[solver_state.active] for column in columns))

    def longest_step(self, solver_state: SwitchingState) -> Real[Array, ""]:
        longest = [m.longest_step(s) for m, s in zip(self.members, solver_state.members, strict=True)]
        return jnp.stack(longest)[solver_state.active]

    def after_rejection(self, before: SwitchingState, after: SwitchingState) -> SwitchingState:
        """Hand back after a few rejections in a row, if the previous member could have taken a step as long."""
        triples = zip(self.members, before.members, after.members, strict=True)
        members = tuple(member.after_rejection(b, a) for member, b, a in triples)
        back = after.short & (before.rejected + 1 >= 2 * PATIENCE)
        return before._replace(
            active=before.active - back,
            up=jnp.where(back, 0, before.up),
            rejected=jnp.where(back, 0, before.rejected + 1),
            switches=before.switches + back,
            members=members,
        )

    def notes(self, solver_state: SwitchingState) -> dict[str, Array]:
        radii = [
            m.notes(s).get("spectral_radius", jnp.asarray(jnp.nan))
            for m, s in zip(self.members, solver_state.members, strict=True)
        ]
        return {"spectral_radius": jnp.stack(radii)[solver_state.active]}

    def account(self, solver_state: SwitchingState) -> dict[str, Any]:
        names = [member.name for member in self.members]
        counts = dict(zip(names, map(int, solver_state.steps), strict=True))
        used = [name for name, count in counts.items() if count] or names[:1]
        switched = {"switches": int(solver_state.switches), "first_switch": float(solver_state.first_switch)}
        return {"method": " → ".join(used), "steps_by_method": counts} | (switched if len(used) > 1 else {})

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any, solver_state: SwitchingState, made_jump: Any
    ) -> tuple[PyTree, PyTree, Any, SwitchingState, diffrax.RESULTS]:
        """Take one step with the member at work, and see whether it asks for another one."""
        states, h = solver_state.members, t1 - t0
        ceilings = jnp.stack([jnp.asarray(m.ceiling(), jnp.result_type(h)) for m in self.members])
        prices = jnp.stack([jnp.asarray(_price(m), jnp.result_type(h)) for m in self.members])

        def step_of(i: int) -> tuple[Any, ...]:
            return self.members[i].step(terms, t0, t1, y0, args, states[i], made_jump)

        insides = [jax.eval_shape(lambda i=i: step_of(i)[2]) for i in range(len(states))] if self.interpolates else []
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), insides)

        def branch(i: int) -> tuple[Any, ...]:
            new, error, inside, after, _ = step_of(i)
            slope = self.members[i].slope(after)
            others = [m.with_slope(s, slope) for m, s in zip(self.members, states, strict=True)]
            z = self.members[i].stiffness(after, h)
            # A margin lest two members take turns.
            up = z > 0.85 * ceilings[i] if i + 1 < len(states) else jnp.asarray(False)
            down = self.members[i].evaluations_at(z) > 1.25 * prices[i - 1] * z if i else jnp.asarray(False)
            short = z < ceilings[i - 1] if i else jnp.asarray(False)
            dense = [inside if j == i else nothing[j] for j in range(len(nothing))]
            members = tuple(after if j == i else other for j, other in enumerate(others))
            return new, error, dense, members, up, down, short, after.spent.less(states[i].spent)

        branches = [lambda i=i: branch(i) for i in range(len(states))]
        new, error, dense, members, up, down, short, spent = jax.lax.switch(solver_state.active, branches)
        up, down = jnp.where(up, solver_state.up + 1, 0), jnp.where(down, solver_state.down + 1, 0)
        # After each change more steps must agree on the next one, so that two members cannot take turns for long.
        patience = PATIENCE * (1 + solver_state.switches)
        change = (up >= patience).astype(int) - (down >= patience)
        state = SwitchingState(
            active=solver_state.active + change,
            up=jnp.where(change == 0, up, 0),
            down=jnp.where(change == 0, down, 0),
            short=short,
            rejected=jnp.zeros_like(solver_state.rejected),
            members=members,
            spent=solver_state.spent.plus(spent),
            steps=solver_state.steps.at[solver_state.active].add(1),
            switches=solver_state.switches + (change != 0),
            first_switch=jnp.where((change != 0) & (solver_state.switches == 0), t1, solver_state.first_switch),
        )
        return new, error, {"dense": dense, "active": solver_state.active}, state, diffrax.RESULTS.successful

    def interpolate(self, t0: Any, t1: Any, inside: Any, t: Any) -> PyTree:
        """Evaluate the continuous extension of the member that took the step."""
        branches = [
            lambda member=member, dense=dense: member.interpolate(t0, t1, dense, t)
            for member, dense in zip(self.members, inside["dense"], strict=True)
        ]
        return jax.lax.switch(inside["active"], branches)


def _price(member: AbstractMember) -> Any:
    """Count the evaluations that a member spends on a unit of time times spectral radius, at its longest step."""
    ceiling = jnp.asarray(member.ceiling())
    return member.evaluations_at(ceiling) / ceiling
