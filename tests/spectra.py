"""Spectra computed densely, shared by the tests of curvature."""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree


def dense_hessian(problem, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda v: problem.cost(unravel(v)))(flat))


def check_pairs(found, matrix, k, which, slack):
    """Residuals are those of the vectors, vectors are orthonormal, and eigenvalues lie where the residuals say."""
    values = np.linalg.eigvalsh(matrix)
    scale = np.max(np.abs(values))
    for end, name in enumerate(("smallest", "largest")):
        ritz = np.asarray(getattr(found, name))
        if which not in ("both", name):
            assert np.all(np.isnan(ritz))
            continue
        vectors = np.asarray(found.vectors)[end]
        residuals = np.linalg.norm(matrix @ vectors.T - vectors.T * ritz, axis=0)
        np.testing.assert_allclose(residuals, found.residuals[end], atol=slack * scale)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=slack * 100)
        for value, residual in zip(ritz, np.asarray(found.residuals[end]), strict=True):
            assert np.min(np.abs(values - value)) <= residual + slack * scale
    if which != "largest":
        assert found.smallest[0] >= values[0] - slack * scale
        assert np.all(np.diff(found.smallest) >= 0)
    if which != "smallest":
        assert found.largest[0] <= values[-1] + slack * scale
        assert np.all(np.diff(found.largest) <= 0)
