"""The Runge–Kutta–Chebyshev method of second order."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Real

from ..trees import PyTree
from ._method import Control
from ._stabilised import AbstractStabilised, combine


class RKC2(AbstractStabilised):
    """The Runge–Kutta–Chebyshev method of second order: s stages reach h λ_max = 0.65 (s² − 1).

    Sommeijer, Shampine and Verwer, J. Comput. Appl. Math. 88 (1997), equations (2.1) to (2.10). Five states of memory,
    whatever the number of stages; the continuous extension is the cubic Hermite interpolant.
    """

    @property
    def interpolates(self) -> bool:
        return True

    def control(self, solver_state: Any) -> Control:  # noqa: ARG002
        return Control(3, 0.0, 0.7, 0.8, 10.0)

    def order(self, terms: Any) -> int:  # noqa: ARG002
        return 2

    def error_order(self, terms: Any) -> int:  # noqa: ARG002
        return 3

    def longest(self, rtol: float, dtype: Any) -> float:
        # Rounding leaves 1.6 z eps in the error estimate (measured), in proportion to s² as in Verwer, Hundsdorfer and
        # Sommeijer, Numer. Math. 57 (1990); above the tolerance no step would ever be accepted.
        z = self._rounding_budget(rtol, dtype) / (1.6 * self.strictness(rtol, dtype))
        return min(z, ((2000 if self.max_stages is None else self.max_stages) ** 2 - 1) / 1.54)

    def strictness(self, rtol: float, dtype: Any) -> float:
        # Errors of order h³ a step add up to order h², that is to rtol^(2/3): the estimate makes up for it, as far as
        # rounding lets it. Measured on quadratic costs with stiffness 1 to 10⁷.
        return min(4.0 * (1e-3 / max(rtol, 1e-12)) ** 0.5, self._rounding_budget(rtol, dtype))

    def _rounding_budget(self, rtol: float, dtype: Any) -> float:
        return 0.3 * max(rtol, 1e-12) / float(jnp.finfo(dtype).eps)

    def stages(self, z: Real[Array, ""]) -> Int[Array, ""]:
        return jnp.maximum(2, 1 + jnp.floor(jnp.sqrt(1 + 1.54 * z))).astype(jnp.result_type(int))

    def attempt(
        self, field: Any, t0: Array, h: Array, y0: PyTree, slope: PyTree, radius: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        s, real = self.stages(h * radius), h.dtype
        size = s.astype(real)
        w0 = 1 + 2 / (13 * size**2)
        # T_s', T_s'' at w0 = cosh x, from T_s(cosh x) = cosh(s x); x from w0 − 1, which w0 itself knows too coarsely.
        x = 2 * jnp.arcsinh(1 / (13**0.5 * size))
        sinh, angle = jnp.sinh(x), size * x
        w1 = jnp.sinh(angle) * sinh**2 / (jnp.cosh(angle) * size * sinh - w0 * jnp.sinh(angle))
        b2 = 1 / (2 * w0) ** 2
        first = combine((1, y0), (h * b2 * w1, slope))

        # Chebyshev polynomials and their first two derivatives at w0, of degrees j − 1 and j. The last round evaluates
        # the field at the new state, and its update is thrown away: so the field is compiled once.
        def stage(_: Array, carry: Any) -> Any:
            older, old, (t2, d2, e2, b_2), (t1, d1, e1, b_1), c2, c1, _ = carry
            t = 2 * w0 * t1 - t2
            d = 2 * w0 * d1 - d2 + 2 * t1
            e = 2 * w0 * e1 - e2 + 4 * d1
            b = e / d**2
            mu, nu = 2 * w0 * b / b_1, -b / b_2
            step, a = mu * w1 / w0, 1 - b_1 * t1
            at = field(t0 + c1 * h, old)
            new = combine((1 - mu - nu, y0), (mu, old), (nu, older), (step * h, at), (-step * a * h, slope))
            c = mu * c1 + nu * c2 + step * (1 - a)
            return old, new, (t1, d1, e1, b_1), (t, d, e, b), c1, c, at

        one, zero = jnp.ones((), real), jnp.zeros((), real)
        start = (y0, first, (one, zero, zero, b2), (w0, one, zero, b2), zero, b2 * w1, slope)
        new, *_, new_slope = jax.lax.fori_loop(2, s + 2, stage, start)
        error = combine((0.8, y0), (-0.8, new), (0.4 * h, slope), (0.4 * h, new_slope))
        return new, new_slope, error
