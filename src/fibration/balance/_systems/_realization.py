"""Balanced realisations by the square-root algorithm."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ...errors import SingularProductError
from .._arrays import adjoint
from ._gramians import gramian_factors
from ._read import System, read_system


class BalancedRealization(NamedTuple):
    """A balanced realisation (T A T⁻¹, T B, C T⁻¹), in which W_c = W_o = diag(σ_1 … σ_r).

    - `A` (r, r), `B` (r, m), `C` (p, r); `r` is the order of a minimal realisation, `rank`.
    - `T` (r, n): the states that it keeps. Where r = n, T⁻¹ = W_c T* diag(1/σ); otherwise that is a right inverse.
    - `hsv` (n,): all Hankel singular values; those from number r + 1 on are rounding.
    """

    A: Any
    B: Any
    C: Any
    T: Any
    hsv: Any

    @property
    def rank(self) -> int:
        """The number of states that are both controllable and observable, to rounding."""
        return len(self.A)


def realization(A: Any, Bm: Any = None, C: Any = None, dt: Any = None) -> BalancedRealization:
    """Find a balanced realisation of a stable system: coordinates of the state in which both Gramians are diag(σ).

    Among all coordinates it has the lowest tr W_c + tr W_o, 2 Σσ_i. With W_c = L_c L_c*, W_o = L_o L_o* and a singular
    value decomposition L_o* L_c = U S V* it is reached by T = S^{−½} U* L_o* and T⁻¹ = L_c V S^{−½}, without an
    inversion. The dictionary: the operator from past inputs to the state and that from the state to future outputs are
    a chain of two factors, whose product is the Hankel operator and whose balanced chains are these realisations.

    **Arguments:** as of `gramians`.

    **Returns:** a named tuple `A, B, C, T, hsv`, of the type given. A system that is not minimal is brought to its
    minimal part, with the same transfer function: `rank`, the length of `A`, is then below n. The signs of the states
    are those of the decomposition.

    **Raises:** as `gramians`, and `SingularProductError` if no state is both controllable and observable, so that the
    transfer function is the constant D.

    **Source:** Laub, Heath, Paige and Ward (IEEE Trans. Automat. Control 32, 1987); Tombs and Postlethwaite (Int. J.
    Control 46, 1987) for systems that are not minimal.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> system = np.array([[-1.0, 0.0], [1.0, -2.0]]), np.array([[10.0], [0.0]]), np.array([[0.0, 0.1]])
    >>> balanced = fb.balance.realization(*system)
    >>> Wc, Wo = fb.balance.gramians(balanced.A, balanced.B, balanced.C)
    >>> print(balanced.hsv.round(6), bool(np.allclose(Wc, Wo, atol=1e-12)))
    [0.296796 0.046796] True

    ```
    """
    system = read_system(A, Bm, C, dt=dt)
    found = balance_system(system)
    if found.rank == 0:
        raise SingularProductError(
            f"a system whose Hankel singular values are at most {found.values[0]:.1e}, which is rounding",
            "a state that is controllable and observable",
            "its transfer function is constant: D is all there is",
        )
    reduced = found.truncated(system, found.rank)
    left, _ = found.projections(found.rank)
    return BalancedRealization(*map(system.back, (reduced.A, reduced.B, reduced.C, left, found.values)))


@dataclass(frozen=True)
class Balancing:
    """The Hankel singular values of a system, and the maps to and from its balanced states.

    - `values` (n,); `rank`: how many are above `noise`.
    - `onto`, `from_`: U* L_o* (n, n) and L_c V (n, n), of which T and T⁻¹ are made.
    """

    values: Float[np.ndarray, " n"]
    rank: int
    noise: float
    onto: Any
    from_: Any

    def projections(self, order: int) -> tuple[Any, Any]:
        """Compute the first rows of T (order, n) and the first columns of T⁻¹ (n, order)."""
        root = np.sqrt(self.values[:order])
        return self.onto[:order] / root[:, None], self.from_[:, :order] / root

    def truncated(self, system: System, order: int) -> System:
        """Keep the leading balanced states."""
        left, right = self.projections(order)
        return system.replaced(left @ system.A @ right, left @ system.B, system.C @ right)


def balance_system(system: System) -> Balancing:
    """Balance a stable system.

    **Raises:** `UnstableSystemError`.
    """
    factors = gramian_factors(system)
    u, values, vh = np.linalg.svd(adjoint(factors.observability) @ factors.controllability)
    onto = adjoint(factors.observability @ u) * factors.scale
    from_ = factors.controllability @ adjoint(vh) / factors.scale[:, None]
    return Balancing(values, int(np.sum(values > factors.noise)), factors.noise, onto, from_)
