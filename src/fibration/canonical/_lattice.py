"""Korobov lattices: their generators and the frequencies that a folded one sees for each mode."""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from ..errors import ParameterError
from ._indices import index_set

# Generators that are compared by their figure of merit, at most, and that are tried for distinct residues.
_CANDIDATES, _TRIES = 64, 256
# Operations of either of these searches.
_WORK = 2**24


@functools.lru_cache(maxsize=32)
def generator(name: str, dimension: int, degree: int, at_least: int, most: int) -> tuple[int, int]:
    """Find a prime n from `at_least` on, and the a of least P₂ for (1, a, a², …) of those that tell all modes apart.

    The lattice tells the modes of an index set apart if the residues of all mirrored multi-indices s∘k, modulo n and up
    to sign, are distinct. Where none of those drawn has this, n is doubled, up to `most`; then the one with the fewest
    coincidences is taken. P₂ = −1 + (1/n) Σ_j Πᵢ (1 + 2π²B₂({j zᵢ/n})) is the squared worst-case error over functions
    with square-integrable mixed first derivatives.

    **Raises:** `ParameterError` for more mirrored multi-indices than residues.
    """
    indices = index_set(name, dimension, degree)
    # One of s and −s, of every mode but the constant.
    mirrored_size = float(np.sum(2.0 ** np.maximum((indices != 0).sum(axis=1) - 1, 0)))
    if max(at_least, most) < 2 * mirrored_size - 1:
        raise ParameterError(
            f"a lattice of {max(at_least, most)} nodes for {len(indices)} modes, which are {mirrored_size:.0f} with "
            "their mirror images",
            f"at least {2 * mirrored_size - 1:.0f} nodes to tell these apart",
            'take fewer modes: a lower degree, or index_set="l1"',
        )
    frequencies = flips(indices)[1]
    n = _prime_from(max(at_least, 11, int(2 * mirrored_size - 1) if most > at_least else 0))
    while True:
        fewest, candidates = _least_coincident(frequencies, n)
        following = _prime_from(2 * n)
        if fewest == 0 or following > most:
            return n, min(candidates, key=lambda a: merit(n, powers(a, dimension, n)))
        n = following


def _least_coincident(frequencies: Int[np.ndarray, "S d"], n: int) -> tuple[int, list[int]]:
    """Find generators with the fewest coincidences of residues among some drawn at random."""
    found: dict[int, list[int]] = {}
    wanted = max(2, min(_CANDIDATES, _WORK // n))
    for a in _draws(n, max(8, min(_TRIES, 2 * _WORK // frequencies.size))):
        folded = _folded(frequencies, powers(a, frequencies.shape[1], n), n)
        seen = np.zeros(n // 2 + 1, bool)
        seen[folded] = True
        found.setdefault(len(folded) - int(np.count_nonzero(seen)), []).append(a)
        if len(found.get(0, ())) == wanted:
            break
    fewest = min(found)
    return fewest, found[fewest][:wanted]


def _draws(n: int, count: int) -> Iterator[int]:
    drawn = np.random.default_rng(n).integers(2, (n + 1) // 2, size=count)
    return iter(dict.fromkeys(drawn.tolist()))


def powers(a: int, dimension: int, n: int) -> list[int]:
    """List 1, a, a², … modulo n."""
    return [pow(a, power, n) for power in range(dimension)]


def merit(n: int, z: list[int]) -> float:
    """Compute P₂ of a lattice; j and n − j give the same factor, so that half of them are enough."""
    j = np.arange(1.0, (n + 1) // 2)
    product = np.ones(len(j))
    for entry in z:
        u = j * (entry / n)
        u -= np.floor(u)
        product *= 1 + 2 * np.pi**2 * (u * (u - 1) + 1 / 6)
    return float(((1 + np.pi**2 / 3) ** len(z) + 2 * product.sum()) / n - 1)


def flips(indices: Int[np.ndarray, "K d"]) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, "S d"]]:
    """List s∘k over all signs s, one of s and −s, which give the same real part; and the mode of each, ascending."""
    owners, frequencies = np.arange(len(indices)), indices
    for axis in range(1, indices.shape[1]):
        # The first non-zero entry keeps its sign.
        started = (frequencies[:, :axis] != 0).any(axis=1) & (frequencies[:, axis] != 0)
        turned = frequencies[started]
        turned[:, axis] *= -1
        owners, frequencies = np.concatenate([owners, owners[started]]), np.concatenate([frequencies, turned])
    order = np.argsort(owners, kind="stable")
    return owners[order], frequencies[order]


def mirrored(
    indices: Int[np.ndarray, "K d"], z: tuple[int, ...], n: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """List the residues of (s∘k)·z, up to sign, over all signs s, the mode of each, and √2^|k|₀ over their number."""
    owners, frequencies = flips(indices)
    counts = np.bincount(owners, minlength=len(indices))
    entries = (indices != 0).sum(axis=1)
    return owners, _folded(frequencies, z, n), (np.sqrt(2.0) ** entries / counts)[owners]


def coincident_modes(indices: Int[np.ndarray, "K d"], z: tuple[int, ...], n: int) -> int:
    """Count the modes one of whose residues is also another's: the lattice cannot tell them apart."""
    owners, residues, _ = mirrored(indices, z, n)
    shared = np.bincount(residues, minlength=n // 2 + 1)[residues] > 1
    return len(np.unique(owners[shared]))


def _folded(frequencies: Int[np.ndarray, "S d"], z: tuple[int, ...] | list[int], n: int) -> Int[np.ndarray, " S"]:
    """Compute residues modulo n, those of r and −r as one: the transform of real values has an even real part."""
    residues = frequencies @ np.asarray(z, dtype=np.int64) % n
    return np.minimum(residues, n - residues)


def _prime_from(m: int) -> int:
    return next(k for k in range(m, 2 * m + 2) if all(k % divisor for divisor in range(2, int(k**0.5) + 1)))
