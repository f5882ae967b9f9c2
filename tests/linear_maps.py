"""Problems that are linear in their parameters, with a given matrix as their differential."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import fibration as fb
from fibration.tangent._differential import Differential
from fibration.tangent._minimum_norm import factorize


def inner(w, x):  # one function for all, so that they share what was compiled
    return x @ w


def linear(matrix, dtype=np.float64, **options):
    """A problem whose differential is the matrix, with one output for each sample, and its parameters."""
    matrix = np.asarray(matrix, dtype)
    return fb.Problem(inner, matrix, np.zeros((len(matrix), 1), dtype), **options), jnp.zeros(matrix.shape[1], dtype)


def with_singular_values(m, k, sigma, seed=0):
    """A random matrix (m, k) with the given singular values, the others zero."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (m, k))
    r = len(sigma)
    return (u[:, :r] * sigma) @ v[:, :r].T


def exact_solution(matrix, rhs):
    """Solve with a matrix of full rank in fifty digits: the minimum-norm or the least-squares solution."""
    with mpmath.workdps(50):
        a, b = (np.vectorize(mpmath.mpf)(np.asarray(part, float)) for part in (matrix, rhs))
        if a.shape[0] <= a.shape[1]:
            z = mpmath.lu_solve(mpmath.matrix((a @ a.T).tolist()), mpmath.matrix(b.tolist()))
            return np.array([float(entry) for entry in a.T @ np.array(list(z))])
        return np.array(
            [float(x) for x in mpmath.lu_solve(mpmath.matrix((a.T @ a).tolist()), mpmath.matrix((a.T @ b).tolist()))]
        )


@eqx.filter_jit
def pseudoinverse(problem, params, damping, method):
    """Every column of Dᵀ(DDᵀ + λ)⁻¹ by a solve."""
    factor = factorize(Differential(problem, params), method=method)
    return jax.vmap(lambda rhs: factor.solve(rhs, damping))(jnp.eye(problem.n_residuals, dtype=params.dtype)).T
