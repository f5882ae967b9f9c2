"""The saved times of a run, on the host: their memory is set aside before the first step."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from .. import _sharding
from ..errors import MemoryBudgetError
from ..problem import AbstractProblem, mesh_of
from ..trees import PyTree
from ._observe import Observation
from ._options import Options
from ._trajectory import Result, Trajectory


class Record:
    """Times, states and costs saved so far, and the observers that look at them.

    `n_saved`: how many times the run will save at most, the stop's own included; `constant`: the leaves of the
    parameters that are no coordinates; `problem`: `None` for a bare field.
    """

    def __init__(
        self,
        state: PyTree,
        n_saved: int,
        *,
        constant: PyTree,
        problem: AbstractProblem | None,
        observation: Observation | None,
        options: Options,
    ) -> None:
        check_budget(state, n_saved, options)
        leaves = jax.tree.leaves(state)
        rows = n_saved if options.save == "all" else 1
        self.structure = jax.tree.structure(state)
        self.constant, self.problem, self.observation, self.options = constant, problem, observation, options
        self.times = np.zeros(n_saved)
        self.costs = None if problem is None else np.zeros(n_saved)
        self.leaves = [np.zeros((rows, *leaf.shape), leaf.dtype) for leaf in leaves]
        self.noted: dict[str, list[np.ndarray]] = {}
        self.n = 0

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the problem's samples are divided over, or `None`."""
        return None if self.problem is None else mesh_of(self.problem)

    def extend(self, times: Float[np.ndarray, " k"], states: PyTree, notes: Mapping[str, Array]) -> None:
        """Add saved times: `states` is a pytree with a leading axis of at least k rows, as are the method's notes."""
        count = len(times)
        costs = None if self.problem is None else _costs(self.problem, self.constant, states, jnp.asarray(count))
        host = [_sharding.on_host(leaf) for leaf in jax.tree.leaves(states)]
        new = slice(self.n, self.n + count)
        for target, source in zip(self.leaves, host, strict=True):
            if self.options.save == "all":
                target[new] = source[:count]
            else:
                target[0] = source[count - 1]
        self.times[new] = times
        if self.costs is not None and costs is not None:
            self.costs[new] = _sharding.on_host(costs)[:count]
        for name, values in notes.items():
            self.noted.setdefault(name, []).extend(np.asarray(values[:count]))
        self.n += count
        if self.observation is not None:
            for row, time in enumerate(times):
                state = jax.tree.unflatten(self.structure, [jnp.asarray(source[row]) for source in host])
                self.observation.record(eqx.combine(state, self.constant), float(time))

    def drop_after_infinite_cost(self, seen: int) -> bool:
        """Drop what follows the first cost that is not finite, from row `seen` on; tell whether there was one."""
        bad = [] if self.costs is None else np.flatnonzero(~np.isfinite(self.costs[seen : self.n]))
        if len(bad):
            self.n = seen + int(bad[0]) + 1
            if self.observation is not None:
                self.observation.values = {name: v[: self.n] for name, v in self.observation.values.items()}
        return len(bad) > 0

    def notes(self) -> dict[str, list[float]]:
        """What the method noted at each saved time, T numbers each."""
        return {name: [float(value) for value in values[: self.n]] for name, values in self.noted.items()}

    @property
    def last_cost(self) -> float | None:
        """The cost at the last saved time."""
        return float(self.costs[self.n - 1]) if self.costs is not None and self.n else None

    def trajectory(self, result: Result, stats: Mapping[str, Any]) -> Trajectory:
        """Make the trajectory of what was saved and observed so far."""
        count = self.n
        observed: dict[str, np.ndarray] = {}
        if self.observation is not None:
            # An observer that raised at the last saved time has one value less.
            count = min([count, *(len(v) for v in self.observation.values.values())])
            observed = self.observation.stacked(count)
        rows = count if self.options.save == "all" else min(count, 1)
        params = eqx.combine(jax.tree.unflatten(self.structure, [leaf[:rows] for leaf in self.leaves]), self.constant)
        costs = None if self.costs is None else self.costs[:count]
        return Trajectory(self.times[:count], params, costs, observed, result, stats)


def check_budget(state: PyTree, n_saved: int, options: Options) -> None:
    """Check that what a run saves fits in the memory budget, before anything is set aside or computed.

    Counted are the parameters at the saved times (at one of them with `save="last"`), the times and the costs; what
    observers return is not known beforehand, and comes on top.
    """
    bytes_each = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    needed = (n_saved if options.save == "all" else 1) * bytes_each + 16 * n_saved
    if needed > options.memory_budget:
        raise MemoryBudgetError(
            f"{n_saved:,} saved times with parameters of {bytes_each:,} bytes make {needed:,} bytes",
            f"at most {options.memory_budget:,} bytes (Options.memory_budget)",
            'save fewer times (`times=`, `save_every=`), or pass `options=fb.Options(save="last")`',
        )


@eqx.filter_jit
def _costs(problem: AbstractProblem, constant: PyTree, states: PyTree, count: Int[Array, ""]) -> Float[Array, " slots"]:
    """Compute the costs of the first `count` states, one after the other."""
    slots = jax.tree.leaves(states)[0].shape[0]

    def one(row: Array, costs: Array) -> Array:
        state = jax.tree.map(lambda leaf: leaf[row], states)
        return costs.at[row].set(problem.cost(eqx.combine(state, constant)).astype(costs.dtype))

    return jax.lax.fori_loop(0, count, one, jnp.zeros(slots, jnp.result_type(float)))
