"""Sampled singular values against the density that theory predicts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._validation import check_name
from ..errors import ParameterError, ShapeError
from ..plots import Plot, Series
from ..plots._numbers import number
from ._entropy import check_beta, check_kappa, log_volume_density
from ._fibre import check_depth
from ._langevin import LangevinSample

_NODES = 120  # of Gauss and Legendre's rule; what they integrate is analytic
_REACH = 6.0  # how far from the samples, in log λ, the density is looked for
_HIGHEST, _LOWEST = 25.0, 8.0  # by how much its logarithm must have fallen there
_INVARIANT = 1e-3  # relative difference of E(X) and E(diag σ) that rounding in float32 explains


def density_plot(
    sample: LangevinSample,
    cost: Callable[..., Any],
    depth: int,
    *,
    beta: float = 1.0,
    kappa: float = 1.0,
    of: str = "singular_values",
    burn_in: float = 0.5,
    bins: int = 40,
) -> Plot:
    """Describe how often `langevin` drew which singular values of 2 × 2 matrices, against the predicted density.

    The prediction is exp(−βE(σ)) times the exponential of `log_volume_density(σ, of="singular_values")`, normalised and
    integrated over what is not shown by quadrature: nothing is fitted.

    **Arguments:**

    - `sample`, `cost`, `depth`, `beta`, `kappa`: what `langevin` returned, and what it was given. E must be a function
      of the singular values alone.
    - `of`: "singular_values", σ_1 and σ_2, or "ratio", σ_2/σ_1.
    - `burn_in`: the share of the saved samples that is left out, the first of each chain; `bins`: of the histograms,
      whose heights are drawn as circles.

    **Raises:** `ShapeError` for other matrices; `ParameterError` for a cost that depends on more than the singular
    values or whose density cannot be normalised, and for numbers that make no sense;
    `UnknownNameError`; those of `langevin`.

    **Source:** Menon and Yu, arXiv 2509.09088, for the invariant density; see `log_volume_density`.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> def cost(X):
    ...     return fb.balance.minimum_on_fibre(X, depth=2) - 1.5 * jnp.linalg.slogdet(X)[1]
    >>> options = dict(step_size=0.1, steps=100, chains=50, key=jax.random.key(0), metropolis=True)
    >>> sample = fb.balance.langevin(jnp.eye(2), cost, 2, **options)
    >>> plot = fb.balance.density_plot(sample, cost, 2, of="ratio")
    >>> predicted = plot.series[0]
    >>> round(float(jnp.trapezoid(predicted.y, predicted.x)), 2)
    1.0

    ```
    """
    check_name("of", of, ("singular_values", "ratio"))
    check_depth(depth)
    check_beta(beta)
    check_kappa(kappa)
    values = _kept(sample, burn_in, bins)
    law = _Law(cost, depth, float(beta), float(kappa), values)
    law.check_invariant(sample)
    shown: list[tuple[str, np.ndarray, Callable[[np.ndarray], np.ndarray]]]
    if of == "ratio":
        shown = [("σ₂/σ₁", values[:, 1] / values[:, 0], law.of_ratio)]
    else:
        shown = [("σ₁", values[:, 0], law.of_largest), ("σ₂", values[:, 1], law.of_smallest)]
    series: list[Series] = []
    for place, (name, drawn, predicted) in enumerate(shown):
        end = 1.0 if of == "ratio" else float(np.quantile(drawn, 0.999))
        x = np.linspace(0, end, 241)[1:-1]
        series.append(Series(f"{name}, predicted", x, predicted(x), 1 + 3 * place))
        counts, edges = np.histogram(drawn, bins, (0.0, end))
        heights = counts / (len(drawn) * (edges[1] - edges[0]))
        series.append(Series(f"{name}, sampled", (edges[1:] + edges[:-1]) / 2, heights, 1 + 3 * place, "none"))
    what = "Ratio of singular values" if of == "ratio" else "Singular values"
    return Plot(
        f"{what} of balanced chains, depth {depth}",
        f"{len(values):,} samples of the Langevin equation, β = {number(beta)}, κ = {number(kappa)}, "
        "and the density that theory predicts.",
        "σ₂/σ₁" if of == "ratio" else "singular value",
        "density",
        tuple(series),
    )


def _kept(sample: LangevinSample, burn_in: float, bins: int) -> Float[np.ndarray, "n 2"]:
    if sample.singular_values.shape[-1] != 2:
        raise ShapeError(
            f"samples of {sample.singular_values.shape[-1]} singular values",
            "two: the others are integrated out by quadrature in the plane",
            "sample 2 × 2 matrices",
        )
    if not 0 <= burn_in < 1:
        raise ParameterError(f"burn_in = {burn_in}", "a share of the samples, in [0, 1)", "pass burn_in=0.5")
    if bins < 1:
        raise ParameterError(f"bins = {bins}", "a positive number", "pass bins=40")
    first = int(burn_in * sample.singular_values.shape[1])
    return np.asarray(sample.singular_values[:, first:], float).reshape(-1, 2)


class _Law:
    """The density of σ_1 ≥ σ_2 on a plane of coordinates in which it is smooth: u = log λ_1 and r = λ_2/λ_1 in (0, 1).

    dσ_1 dσ_2 = N² σ_1² r^{N−1} du dr, and in r the density is analytic also where the measure of the σ is singular.
    """

    def __init__(
        self, cost: Callable[..., Any], depth: int, beta: float, kappa: float, sampled: Float[np.ndarray, "n 2"]
    ) -> None:
        self.cost, self.depth, self.beta, self.kappa = cost, depth, beta, kappa
        self.energies = jax.jit(jax.vmap(lambda values: cost(jnp.diag(values))))
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        self.nodes, self.weights = (nodes + 1) / 2, weights / 2
        self.shift = 0.0
        around = float(np.log(np.median(sampled[:, 0]))) / depth
        u = around + np.linspace(-_REACH, _REACH, 121)
        logs = self._log_mass(u)
        highest = float(np.max(logs))
        if not np.isfinite(highest) or logs[-1] > highest - _HIGHEST or logs[0] > highest - _LOWEST:
            raise ParameterError(
                "a cost for which exp(−βE) has no finite integral within e^±6 of the samples",
                "a cost that grows with the singular values, and not too steeply towards −∞ as they vanish",
                "add `minimum_on_fibre(X, depth)` to it, say",
            )
        seen = u[logs > highest - 40]
        self.low, self.high = float(seen[0]) - 0.1, float(seen[-1]) + 0.1
        self.shift = highest
        u, weights = self._rule(self.low)
        self.total = float(weights @ np.exp(self._log_mass(u)))

    def of_ratio(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Integrate over u at given σ_2/σ_1 = r^N."""
        r = ratio ** (1 / self.depth)
        u, weights = self._rule(self.low)
        joint = self._joint(*np.meshgrid(u, r))
        return joint @ weights / (self.total * self.depth * r ** (self.depth - 1))

    def of_largest(self, sigma: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Integrate over r at given σ_1."""
        r, u = np.meshgrid(self.nodes, np.log(sigma) / self.depth)
        return self._joint(u, r) @ self.weights / (self.total * self.depth * sigma)

    def of_smallest(self, sigma: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Integrate over u at given σ_2: λ_2 = r e^u, dr = r/λ_2 dλ_2."""
        densities: list[float] = []
        for log_scale in np.log(sigma) / self.depth:
            u, weights = self._rule(max(self.low, float(log_scale)))
            r = np.exp(log_scale - u)
            densities.append(float(weights @ (self._joint(u, r) * r)))
        return np.array(densities) / (self.total * self.depth * sigma)

    def check_invariant(self, sample: LangevinSample) -> None:
        """Raise `ParameterError` if E at a few samples is not E at their singular values."""
        last, values = jnp.asarray(sample.matrices[:5, -1]), jnp.asarray(sample.singular_values[:5, -1])
        given, expected = np.asarray(jax.vmap(self.cost)(last)), np.asarray(self.energies(values))
        if not np.allclose(given, expected, rtol=_INVARIANT, atol=_INVARIANT):
            raise ParameterError(
                f"a cost of {given[0]:.6g} at X and of {expected[0]:.6g} at diag(σ)",
                "a cost of the singular values alone",
                "compare means of samples with other costs instead",
            )

    def _rule(self, low: float) -> tuple[np.ndarray, np.ndarray]:
        width = max(self.high - low, 0.0)
        return low + width * self.nodes, width * self.weights

    def _log_mass(self, u: np.ndarray) -> np.ndarray:
        """Integrate over r, as a logarithm."""
        logs = self._log_joint(*np.meshgrid(u, self.nodes, indexing="ij"))
        highest = logs.max(axis=1, keepdims=True)
        return np.log(np.exp(logs - highest) @ self.weights) + highest[:, 0]

    def _joint(self, u: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.exp(self._log_joint(u, r))

    def _log_joint(self, u: np.ndarray, r: np.ndarray) -> np.ndarray:
        largest = np.exp(self.depth * u)
        values = np.stack([largest, largest * r**self.depth], axis=-1)
        logs = log_volume_density(values, self.depth, self.kappa, of="singular_values")
        with jax.enable_x64(True):
            energy = np.asarray(self.energies(values.reshape(-1, 2)), float).reshape(u.shape)
        jacobian = 2 * np.log(self.depth * largest) + (self.depth - 1) * np.log(r)
        return logs + jacobian - self.beta * energy - self.shift
