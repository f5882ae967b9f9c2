"""A fidelity study with a descent that diverges, and a plot, for the tests of reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from fibration import plots

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def make_study(fractions):
    problem = fb.Problem(lambda w, x: w[0] * w[1] * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.5]))
    return fb.study.fidelity_study(
        problem,
        jnp.array([1.5, 0.2]),
        t1=8.0,
        fractions=fractions,
        n_times=9,
        rtol=1e-8,
        facts={"data": "<script>alert('data')</script>", "dtype": "float64", "seed": 17},
    )


@pytest.fixture(scope="module")
def study(x64):
    # The last one is unstable: it ends at an infinite cost.
    return make_study((0.1, 0.5, 1.2, 8.0))


def a_plot(**changes):
    curve = plots.Series("curve", np.arange(4.0), np.array([0.0, 1.0, -1.0, 10.0]))
    fields = {"title": "T", "caption": "C.", "x_label": "x", "y_label": "y", "series": (curve,), **changes}
    return plots.Plot(**fields)
