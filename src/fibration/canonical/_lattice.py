"""Korobov lattices: their generators and the frequencies that a folded one sees for each mode."""

import functools

import numpy as np
from jaxtyping import Float, Int

_CANDIDATES = 16


@functools.lru_cache(maxsize=32)
def generator(dimension: int, at_least: int) -> tuple[int, int]:
    """Find the first prime n from `at_least` on, and the a of least P₂ for (1, a, a², …) among some drawn at random.

    P₂ = −1 + (1/n) Σ_j Πᵢ (1 + 2π²B₂({j zᵢ/n})) is the squared worst-case error over functions with square-integrable
    mixed first derivatives. Takes `_CANDIDATES`·n·d operations.
    """
    n = next(m for m in range(max(at_least, 11), 2 * at_least + 20) if _is_prime(m))
    rng = np.random.default_rng(n)
    candidates = rng.choice(np.arange(2, (n + 1) // 2), size=min(_CANDIDATES, (n - 3) // 2), replace=False)
    best = min((int(a) for a in candidates), key=lambda a: merit(n, [pow(a, i, n) for i in range(dimension)]))
    return n, best


def merit(n: int, z: list[int]) -> float:
    """Compute P₂ of a lattice; j and n − j give the same factor, so that half of them are enough."""
    j = np.arange(1, (n + 1) // 2, dtype=np.int64)
    u = np.arange(n) / n
    factor = 1 + 2 * np.pi**2 * (u * u - u + 1 / 6)
    product = np.ones(len(j))
    for entry in z:
        product *= factor[j * entry % n]
    return float((factor[0] ** len(z) + 2 * product.sum()) / n - 1)


def mirrored(
    indices: Int[np.ndarray, "K d"], z: Int[np.ndarray, " d"], n: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """List the residues (s∘k)·z mod n over all signs s, the mode of each, and √2^|k|₀ over their number."""
    owners, residues = np.arange(len(indices)), indices[:, 0] * z[0]
    for axis in range(1, indices.shape[1]):
        # The first non-zero entry keeps its sign: s and −s give the same real part.
        started = (indices[owners, :axis] != 0).any(axis=1) & (indices[owners, axis] != 0)
        step = indices[owners, axis] * z[axis]
        owners = np.concatenate([owners, owners[started]])
        residues = np.concatenate([residues + step, (residues - step)[started]]) % n
    order = np.argsort(owners, kind="stable")
    owners, residues = owners[order], residues[order] % n
    counts = np.bincount(owners, minlength=len(indices))
    entries = (indices != 0).sum(axis=1)
    return owners, residues, (np.sqrt(2.0) ** entries / counts)[owners]


def _is_prime(m: int) -> bool:
    return m > 1 and all(m % divisor for divisor in range(2, int(m**0.5) + 1))
