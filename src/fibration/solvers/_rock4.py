"""A stabilised method of fourth order, from tabulated coefficients."""

import importlib.resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Real

from ..trees import PyTree
from ._method import Control
from ._stabilised import AbstractStabilised, combine


class _Table(NamedTuple):
    """The coefficients of the fourth-order family, one row for each tabulated number of stages."""

    stages: np.ndarray
    interval: np.ndarray
    offset: np.ndarray
    mu: np.ndarray
    nu: np.ndarray
    kappa: np.ndarray
    tableau: np.ndarray
    error: np.ndarray


def _read_table() -> _Table:
    with (importlib.resources.files("fibration.solvers") / "rock4.npz").open("rb") as file, np.load(file) as stored:
        # Whole numbers in the narrow type, which every precision of JAX has.
        arrays = {name: stored[name] for name in _Table._fields}
        return _Table(**{name: a.astype(np.int32) if a.dtype.kind == "i" else a for name, a in arrays.items()})


_TABLE = _read_table()


class _Run(NamedTuple):
    """The stages so far: the last two points with their times, and the slopes that the end of the step needs."""

    older: PyTree
    point: PyTree
    older_c: Array
    c: Array
    before: PyTree
    finishing: PyTree
    last: PyTree


class ROCK4(AbstractStabilised):
    """A fourth-order method of the ROCK family: s stages reach h λ_max = 0.33 s².

    The stability polynomials are those of Abdulle, SIAM J. Sci. Comput. 23 (2002), orthogonal with respect to a weight
    of degree four; the coefficients were derived anew (`tools/derive_rock4.py`).
    """

    # The estimate is that of an embedded method of third order, far above the error of the fourth.
    error_scale: float | Real[Array, ""] = 0.05

    @property
    def interpolates(self) -> bool:
        # The error estimate does not see the slopes of stiff components, which the Hermite interpolant leans on.
        return False

    def control(self, solver_state: Any) -> Control:  # noqa: ARG002
        # The error estimate jumps where the number of stages changes: a proportional part damps the control.
        return Control(4, 0.4, 0.3, 0.8, 3.0)

    def order(self, terms: Any) -> int:  # noqa: ARG002
        return 4

    def error_order(self, terms: Any) -> int:  # noqa: ARG002
        return 4

    def longest(self, rtol: float, dtype: Any) -> float:
        # The last four stages undo the damping of the others: in the stiffest components rounding is multiplied by
        # about l⁴/100 over a stability interval l.
        interval = (10 * max(rtol, 1e-12) / float(jnp.finfo(dtype).eps)) ** 0.25
        cap = int(_TABLE.stages[-1]) if self.max_stages is None else self.max_stages
        allowed = _TABLE.interval[(_TABLE.stages <= cap) & (_TABLE.interval <= interval)]
        return float(allowed[-1] if len(allowed) else _TABLE.interval[0])

    def stages(self, z: Real[Array, ""]) -> Int[Array, ""]:
        return jnp.asarray(_TABLE.stages)[self._row(z)].astype(jnp.result_type(int))

    def _row(self, z: Real[Array, ""]) -> Int[Array, ""]:
        return jnp.minimum(jnp.searchsorted(jnp.asarray(_TABLE.interval, z.dtype), z), len(_TABLE.stages) - 1)

    def attempt(
        self, field: Any, t0: Array, h: Array, y0: PyTree, slope: PyTree, radius: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        real, row = h.dtype, self._row(h * radius)
        s, offset = jnp.asarray(_TABLE.stages)[row], jnp.asarray(_TABLE.offset)[row]
        mu, nu, kappa = (jnp.asarray(c, real) for c in (_TABLE.mu, _TABLE.nu, _TABLE.kappa))
        a21, a31, a32, a41, a42, a43, *b = jnp.asarray(_TABLE.tableau, real)[row]
        nodes = jnp.array([[a21, 0, 0, 0], [a31, a32, 0, 0], [a41, a42, a43, 0], b])
        weights = jnp.asarray(_TABLE.error, real)[row]

        def recur(j: Array, run: _Run, at: PyTree) -> _Run:
            m, n, k = mu[offset + j], nu[offset + j], kappa[offset + j]
            new = combine((n, run.point), (k, run.older), (m * h, at))
            return _Run(run.point, new, run.c, n * run.c + k * run.older_c + m, at, run.finishing, at)

        def finish(j: Array, run: _Run, at: PyTree) -> _Run:
            # `older` is now where the recurrence ended, and the points are that plus a sum of slopes.
            i = j - (s - 4)
            now, then = (run.point, run.c), (run.older, run.older_c)
            base, base_c = jax.tree.map(lambda g, o: jnp.where(i == 0, g, o), now, then)
            ks = jax.tree.map(lambda old, k: old.at[i].set(k), run.finishing, at)
            new = jax.tree.map(lambda g, k: g + (h * jnp.tensordot(nodes[i], k, 1)).astype(g.dtype), base, ks)
            return _Run(base, new, base_c, base_c + jnp.sum(nodes[i]), run.before, ks, at)

        def stage(j: Array, run: _Run) -> _Run:
            at = field(t0 + run.c * h, run.point)
            phases = (recur, finish, lambda _, run, at: run._replace(last=at))
            return jax.lax.switch((j >= s - 4).astype(int) + (j >= s), phases, j, run, at)

        zero = jnp.zeros((), real)
        nothing = jax.tree.map(lambda leaf: jnp.zeros((4, *leaf.shape), leaf.dtype), y0)
        start = recur(jnp.asarray(0), _Run(y0, y0, zero, zero, slope, nothing, slope), slope)
        run = jax.lax.fori_loop(1, s + 1, stage, start)  # the field stands in the program once, which compiles faster
        ks = [jax.tree.map(lambda k, i=i: k[i], run.finishing) for i in range(4)]
        error = combine(*((h * w, k) for w, k in zip(weights, (run.before, *ks, run.last), strict=True)))
        return run.point, run.last, error
