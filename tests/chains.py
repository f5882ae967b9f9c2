"""Random chains of matrices, shared by the tests."""

import numpy as np
from hypothesis import strategies as st


def chain(seed, widths, field="real", spread=0.5):
    """Gaussian matrices whose sizes differ by factors of about e^spread."""
    rng = np.random.default_rng(seed)

    def draw(rows, columns):
        W = rng.normal(size=(rows, columns))
        return W + 1j * rng.normal(size=W.shape) if field == "complex" else W

    pairs = zip(widths[1:], widths[:-1], strict=True)
    return [draw(m, n) / np.sqrt(n) * np.exp(spread * rng.normal()) for m, n in pairs]


def unitary(rng, n, field="real"):
    """A random orthogonal or unitary matrix."""
    A = rng.normal(size=(n, n))
    return np.linalg.qr(A + 1j * rng.normal(size=(n, n)) if field == "complex" else A)[0]


def norm(matrices):
    """The Frobenius norm of all matrices together."""
    return np.sqrt(sum(np.linalg.norm(W) ** 2 for W in matrices))


def distance(Ws, Vs):
    return norm([W - V for W, V in zip(Ws, Vs, strict=True)])


def closed_widths(depth_max=5, width_max=6):
    """Widths for which random chains lie on closed orbits: of two neighbours one is as narrow as the narrowest."""

    def build(widths):
        waist = min(widths)
        for p in range(1, len(widths)):
            if widths[p - 1] > waist:
                widths[p] = waist
        return tuple(widths)

    return st.lists(st.integers(1, width_max), min_size=3, max_size=depth_max + 1).map(build)


def field():
    return st.sampled_from(["real", "complex"])


def seeds():
    return st.integers(0, 2**32 - 1)
