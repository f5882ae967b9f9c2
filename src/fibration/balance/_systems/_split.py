"""A system as the sum of its stable and its unstable part."""

from typing import Any

import numpy as np
import scipy.linalg

from ._poles import check_not_marginal
from ._read import System


def split(system: System) -> tuple[System | None, System | None]:
    """Write a transfer function as D plus a strictly stable part plus an unstable part; a part without states is None.

    An ordered Schur form A = Q [A₁ N; 0 A₂] Q* has the stable poles in A₁, and I + [0 X; 0 0] with A₁X − XA₂ = −N
    removes N (derived).

    **Raises:** `UnstableSystemError` for marginal poles.
    """
    real = np.isrealobj(system.A)
    order = "iuc" if system.discrete else "lhp"
    form: Any = scipy.linalg.schur(system.A, output="real" if real else "complex", sort=order)
    T, Q, n = form
    poles = scipy.linalg.eigvals(system.A) if real else np.diag(T)
    check_not_marginal(poles, system.A, system.discrete)
    if n in (0, len(T)):
        return (system, None) if n else (None, system)
    X = scipy.linalg.solve_sylvester(T[:n, :n], -T[n:, n:], -T[:n, n:])
    B, C = Q.conj().T @ system.B, system.C @ Q
    stable = system.replaced(T[:n, :n], B[:n] - X @ B[n:], C[:, :n])
    return stable, system.replaced(T[n:, n:], B[n:], C[:, :n] @ X + C[:, n:])


def joined(first: System, second: System) -> System:
    """Add the transfer functions of two systems with the same D, which counts once."""
    return first.replaced(
        scipy.linalg.block_diag(first.A, second.A),
        np.concatenate([first.B, second.B]),
        np.concatenate([first.C, second.C], axis=1),
    )
