"""What the gallery of canonical space shares: shallow networks, their data, and rows that compare two numbers."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sin": jnp.sin}


@dataclass(frozen=True)
class Shallow:
    """x ↦ V φ(Ux + c) + b; equal ones share their compiled programs."""

    activation: str = "tanh"

    def __call__(self, params, x):
        hidden = ACTIVATIONS[self.activation](params["weight"] @ x + params["bias"])
        return params["out"] @ hidden + params["offset"]


class Lazy(eqx.Module):
    """α(f(w, x) − f(w₀, x)): a network whose parameters need not move far."""

    network: Shallow = eqx.field(static=True)
    alpha: float = eqx.field(static=True)
    start: Any

    def __call__(self, params, x):
        return self.alpha * (self.network(params, x) - self.network(self.start, x))


@dataclass(frozen=True)
class Several:
    """Networks of one output side by side, as the outputs of one: descent on their costs' sum descends on each."""

    network: Shallow

    def __call__(self, params, x):
        return jax.vmap(self.network, (0, None))(params, x)[:, 0]


def shallow(width, d=1, q=1, *, init="spread", scale=8.0, activation="tanh", seed=0):
    """Draw a network with one hidden layer.

    "spread": U is scale·N(0, 1) and the units bend all over the unit box; "standard": U and c are N(0, 1).
    """
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(width, d))
    if init == "spread":
        weight *= scale
        bias = -np.sum(weight * rng.uniform(size=(width, d)), axis=1)
    else:
        bias = rng.normal(size=width)
    out = rng.normal(size=(q, width)) / np.sqrt(width)
    params = {"weight": weight, "bias": bias, "out": out, "offset": np.zeros(q)}
    return Shallow(activation), jax.tree.map(jnp.asarray, params)


def points(n=8):
    return np.linspace(0.05, 0.95, n)[:, None]


def wave(apply, n=8, *, normalised=False):
    """sin 9x at n equidistant points of the unit interval; normalised to mean 0 and mean square ½."""
    y = np.sin(9 * points(n))
    return fb.Problem(apply, points(n), (y - y.mean()) / (np.sqrt(2) * y.std()) if normalised else y)


def unit(d, degree, **options):
    return fb.canonical.Basis([(0, 1)] * d, degree, **options)


def sharpness(problem, params):
    return float(fb.curvature.extreme_eigenvalues(problem, params, which="largest").largest[0])


def row(what, ours, spec, agrees):
    """One number, or several, beside the specification's; `agrees`: in kind, by the test where the row is made."""
    return {"what": what, "ours": _plain(ours), "spec": _plain(spec), "agrees": bool(agrees)}


def _plain(value):
    """Make numbers that JSON can hold, to seven digits."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.7g}") if np.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value


def alike(ours, spec, factor=10.0):
    """Whether numbers are of one order of magnitude: within `factor` of each other, or both zero."""
    ours, spec = np.abs(np.asarray(ours, float)), np.abs(np.asarray(spec, float))
    return bool(np.all((ours <= factor * spec) & (spec <= factor * ours)))


def same_fractions(ours, spec, draws, spec_draws=None):
    """Whether fractions of independent draws differ by no more than three standard deviations, each."""
    ours, spec = np.asarray(ours, float), np.asarray(spec, float)
    n, m = draws, spec_draws or draws
    p = (n * ours + m * spec) / (n + m)
    return bool(np.all(np.abs(ours - spec) <= 3 * np.sqrt(p * (1 - p) * (1 / n + 1 / m)) + 1e-12))


def shown(value):
    """Write a number, or several, for a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " / ".join(shown(part) for part in value)
    if isinstance(value, float):
        return f"{value:.7g}" if 1 < abs(value) < 10 else f"{value:.3g}"
    return str(value)
