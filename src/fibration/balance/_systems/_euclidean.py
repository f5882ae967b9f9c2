"""Realisations with the smallest matrices: balancing (A, B, C) itself, not its Gramians."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ...errors import RankLossError
from .._action import AbstractAction, sylvester
from .._arrays import adjoint
from .._kempf_ness import KempfNess, kempf_ness
from ._gramians import equilibrium
from ._read import read_system


class StateAction(AbstractAction):
    """The action (T A T⁻¹, T B, C T⁻¹) of changes of the state's coordinates on systems [A, B, C].

    L ξ = ([ξ, A], ξ B, −C ξ) and L* V = V_A A* − A* V_A + V_B B* − C* V_C, so that
    μ = A A* − A* A + B B* − C* C.
    """

    def infinitesimal(self, W: Any, xi: Any) -> Any:
        """Compute ([ξ, A], ξ B, −C ξ)."""
        A, B, C = W
        return [xi @ A - A @ xi, xi @ B, -C @ xi]

    def adjoint(self, W: Any, V: Any) -> Any:
        """Compute V_A A* − A* V_A + V_B B* − C* V_C."""
        (A, B, C), (a, b, c) = W, V
        return a @ adjoint(A) - adjoint(A) @ a + b @ adjoint(B) - adjoint(C) @ c

    def exponential(self, xi: Any, W: Any) -> Any:
        """Compute (e^ξ A e^{−ξ}, e^ξ B, C e^{−ξ}), from the eigenvalues of ξ."""
        A, B, C = W
        values, vectors = jnp.linalg.eigh(xi)
        grow, shrink = ((vectors * jnp.exp(sign * values)) @ adjoint(vectors) for sign in (1, -1))
        return [grow @ A @ shrink, grow @ B, C @ shrink]

    def precondition(self, W: Any, xi: Any, symmetric: bool) -> Any:
        """Solve ξ (A A* + B B*) + (A* A + C* C) ξ = R, which is L*L without A ξ A* + A* ξ A."""
        A, B, C = W
        return sylvester(A @ adjoint(A) + B @ adjoint(B), adjoint(A) @ A + adjoint(C) @ C, xi, symmetric)


def euclidean_realization(
    A: Any, Bm: Any = None, C: Any = None, dt: Any = None, *, tolerance: float = 1e-14, max_iterations: int = 100
) -> KempfNess:
    """Find the realisation (T A T⁻¹, T B, C T⁻¹) of a system with the lowest ‖A‖² + ‖B‖² + ‖C‖².

    There A A* + B B* = A* A + C* C. A minimal system has one, unique up to unitary coordinates, and no formula for it:
    Newton steps along geodesics of the group find it (`kempf_ness`). Small matrices are good to compute with in few
    digits, and nothing is asked of the poles, which may be unstable or marginal.

    **Arguments:** the system as of `gramians`, where `dt` only matters for what is returned; `tolerance`,
    `max_iterations` as of `kempf_ness`.

    **Returns:** a `KempfNess`, computed in float64, whose `params` are the realisation, a system of the kind that was
    given, or a `LinearSystem` if that were matrices. It says whether it converged.

    **Raises:** `RankLossError` if the lowest value is not attained since some states are uncontrollable or
    unobservable, with their numbers; `ShapeError`, `NonFiniteDataError`, `ParameterError`, `StepSizeError`.

    **Source:** Helmke and Moore, Optimization and Dynamical Systems (1994), chapter 8, for the problem and its
    gradient flow; the Newton steps are derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> found = fb.balance.euclidean_realization(np.array([[2.0]]), np.array([[100.0]]), np.array([[0.01]]))
    >>> tuple(round(found.params[k].item(), 12) for k in range(3))
    (2.0, 1.0, 1.0)

    ```
    """
    system = read_system(A, Bm, C, dt=dt)
    d = equilibrium(system)  # states in units far apart would cost digits
    start = [d[:, None] * system.A / d, d[:, None] * system.B, system.C / d]
    found = kempf_ness(start, StateAction(), tolerance=tolerance, max_iterations=max_iterations)
    if not found.converged:
        n, controllable = len(system.A), reachable(system.A, system.B)
        observable = reachable(adjoint(system.A), adjoint(system.C))
        if min(controllable, observable) < n:
            raise RankLossError(
                f"the orbit is not closed: of {n} states {controllable} are controllable and {observable} observable",
                "a minimal system: otherwise the lowest value is approached by ever larger coordinates, not attained",
                "reduce it to its minimal part first: `realization` does so for stable systems",
            )
    return dataclasses.replace(found, params=system.rebuild([*found.params, system.D]))


def reachable(A: Shaped[np.ndarray, "n n"], B: Shaped[np.ndarray, "n m"]) -> int:
    """Count the directions that B, A B, A² B, … reach, to rounding, by an orthonormal basis of one after the other."""
    n = len(A)
    basis, block, size = np.zeros((n, 0), A.dtype), B, np.linalg.norm(B)
    while block.shape[1] and basis.shape[1] < n:
        for _ in range(2):  # once more for orthogonality to rounding
            block = block - basis @ (adjoint(basis) @ block)
        u, s, _ = np.linalg.svd(block, full_matrices=False)
        new = u[:, s > n * np.finfo(float).eps * size]
        basis, block, size = np.concatenate([basis, new], axis=1), A @ new, np.linalg.norm(A)
    return min(basis.shape[1], n)
