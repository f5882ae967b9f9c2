"""Linear systems for tests, and slow but sure ways to compute what is asked of them."""

import mpmath
import numpy as np


def random_system(rng, n, m=2, p=3, *, discrete=False, field="real", margin=0.2):
    """A random stable system (A, B, C)."""

    def draw(*shape):
        real = rng.normal(size=shape)
        return real + 1j * rng.normal(size=shape) if field == "complex" else real

    A, B, C = draw(n, n) / n**0.5, draw(n, m), draw(p, n)
    poles = np.linalg.eigvals(A)
    A = A * (1 - margin) / np.abs(poles).max() if discrete else A - (poles.real.max() + margin) * np.eye(n)
    return A, B, C


def transfer(A, B, C, s, D=0.0):
    """C (s I − A)⁻¹ B + D."""
    return C @ np.linalg.solve(s * np.eye(len(A)) - A, B) + D


def frequencies(rng, discrete, count=7):
    """Points on the boundary of stability."""
    omega = rng.uniform(0, np.pi, count) if discrete else 10 ** rng.uniform(-2, 2, count)
    return np.exp(1j * omega) if discrete else 1j * omega


def difference(first, second):
    """The system whose transfer function is the difference of two."""
    (A, B, C), (a, b, c) = first, second
    zero = np.zeros((len(A), len(a)))
    return np.block([[A, zero], [zero.T, a]]), np.concatenate([B, b]), np.concatenate([C, -c], axis=1)


def infinity_norm(A, B, C, discrete=False):
    """max over frequencies of the largest singular value of C (s I − A)⁻¹ B, by bisection on Hamiltonian matrices."""
    if discrete:  # z = (1 + s)/(1 − s) maps the imaginary axis to the unit circle, and adds a feedthrough
        inverse = np.linalg.inv(np.eye(len(A)) + A)
        D = -C @ inverse @ B
        A, B, C = inverse @ (A - np.eye(len(A))), 2**0.5 * inverse @ B, 2**0.5 * C @ inverse
    else:
        D = np.zeros((C.shape[0], B.shape[1]))
    at_grid = [np.linalg.norm(transfer(A, B, C, 1j * w, D), 2) for w in np.append(np.logspace(-4, 4, 400), 0)]
    low = max(at_grid) * (1 - 1e-12)
    high = 2 * low
    while high - low > 1e-12 * high:
        gamma = (low + high) / 2
        R = np.linalg.inv(gamma**2 * np.eye(D.shape[1]) - D.conj().T @ D)
        F = A + B @ R @ D.conj().T @ C
        corner = C.conj().T @ (np.eye(len(D)) + D @ R @ D.conj().T) @ C
        hamiltonian = np.block([[F, B @ R @ B.conj().T], [-corner, -F.conj().T]])
        values = np.linalg.eigvals(hamiltonian)
        crosses = np.any(np.abs(values.real) < 1e-9 * (1 + np.abs(values).max()))
        low, high = (gamma, high) if crosses else (low, gamma)
    return low


def exact_hankel_values(A, B, C, discrete=False):
    """Hankel singular values in 50 digits, from Kronecker products."""
    with mpmath.workdps(50):
        n = len(A)
        a, b, c = (mpmath.matrix(M.tolist()) for M in (A, B, C))

        def solve(a, q):
            K = mpmath.zeros(n * n)
            for i in range(n):
                for j in range(n):
                    if discrete:
                        for k in range(n):
                            for m in range(n):
                                K[i * n + j, k * n + m] += a[i, k] * a[j, m]
                        K[i * n + j, i * n + j] -= 1
                    else:
                        for k in range(n):
                            K[i * n + j, k * n + j] += a[i, k]
                            K[i * n + j, i * n + k] += a[j, k]
            x = mpmath.lu_solve(K, -mpmath.matrix([q[i, j] for i in range(n) for j in range(n)]))
            return mpmath.matrix([[x[i * n + j] for j in range(n)] for i in range(n)])

        L = mpmath.cholesky(solve(a, b * b.T))
        M = L.T * solve(a.T, c.T * c) * L
        values = mpmath.eigsy((M + M.T) / 2, eigvals_only=True)
        return np.array(sorted((float(mpmath.sqrt(value)) for value in values), reverse=True))
