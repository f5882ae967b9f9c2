import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.fidelity._growth import Defect, bump, grow, phi1, phi2
from fibration.fidelity._measured import Spectrum, sampled_lipschitz
from problems import cost, form, symmetric

FLOW = fb.GradientFlow()
GROW = jax.jit(grow)


# The scalar side


@pytest.mark.parametrize("z", [-40.0, -3.0, -1.0, -0.999, -1e-3, 0.0, 1e-9, 0.3, 0.999, 1.0, 5.0, 20.0])
def test_phi_functions_against_quadrature(z):
    for function, weight in ((phi1, lambda r: 1.0), (phi2, lambda r: 1 - r), (bump, lambda r: r * (1 - r))):
        # Around the largest value of the integrand, so that nothing of it is missed.
        peak = 1.0 if z > 0 else 0.0
        points = [abs(peak - min(0.5, 4 / max(abs(z), 1)))]
        expected = scipy.integrate.quad(lambda r, w=weight: np.exp(z * r) * w(r), 0, 1, points=points, epsabs=0)[0]
        np.testing.assert_allclose(function(np.asarray(z)), expected, rtol=1e-12)
        np.testing.assert_allclose(function(jnp.asarray(z)), expected, rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-3, 3), st.floats(0, 5), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 2),
    st.floats(0.01, 1),
)  # fmt: skip
def test_one_step_bounds_the_inequality_it_stands_for(lowest, lipschitz, error, middle, end, curvature, length):
    defect = Defect(*map(jnp.asarray, (length, middle, end, curvature)))
    bound, highest, _, holds = GROW(
        jnp.asarray(error), defect, jnp.asarray(lowest), jnp.asarray(-jnp.inf), jnp.asarray(lipschitz)
    )
    half, peak, start = length / 2, error, error
    for before, after in ((0.0, middle), (middle, end)):  # the reference would step across the kink at the middle

        def slope(u, e, before=before, after=after):
            delta = before + (after - before) * u / half + curvature * u * (half - u) / 2
            return -lowest * e + 0.5 * lipschitz * e**2 + delta

        solution = scipy.integrate.solve_ivp(
            slope, (0, half), [start], rtol=1e-9, atol=1e-12, max_step=length / 20, events=[lambda u, e: e[0] - 1e6]
        )
        peak, start = max(peak, solution.y[0].max()), solution.y[0, -1]
    if holds:
        assert start <= bound * (1 + 1e-7) + 1e-10
        assert peak <= highest * (1 + 1e-7) + 1e-10
    else:
        assert error + defect.total() > 0


def test_one_step_without_curvature_terms_is_exact():
    length, lowest = 0.3, -0.7
    defect = Defect(*map(jnp.asarray, (length, 0.1, 0.2, 0.0)))
    bound, _, _, holds = GROW(jnp.asarray(0.5), defect, jnp.asarray(lowest), jnp.asarray(-jnp.inf), jnp.asarray(0.0))
    exact = (
        np.exp(0.7 * length) * 0.5
        + scipy.integrate.quad(lambda u: np.exp(0.7 * (length - u)) * 0.2 * u / length, 0, length)[0]
    )
    assert holds
    np.testing.assert_allclose(bound, exact, rtol=1e-14)


# What is measured


def test_sampled_lipschitz_constant_of_a_cubic_is_found():
    rng = np.random.default_rng(0)
    tensor = rng.normal(size=(4, 4, 4))
    tensor = sum(tensor.transpose(p) for p in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]) / 6
    problem = cost(lambda w: jnp.einsum("ijk,i,j,k->", tensor, w, w, w) / 6)
    found = sampled_lipschitz(problem, [jnp.ones(4)])
    directions = rng.normal(size=(200_000, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    values = np.abs(np.einsum("ijk,ni,nj,nk->n", tensor, directions, directions, directions))
    assert values.max() <= found.value / 2 * (1 + 1e-6)
    assert values.max() > 0.98 * found.value / 2
    assert found.status == "sampled"


@pytest.mark.parametrize("dense_limit", [100, 0])
def test_spectrum_ends_enclose_the_hessians(dense_limit):
    rng = np.random.default_rng(1)
    values = np.sort(rng.normal(size=12))
    hessian, _ = symmetric(rng, values)
    spectrum = Spectrum(form(hessian), [jnp.ones(12)], dense_limit=dense_limit, tolerance=1e-6)
    lower, upper = spectrum.look(0)
    assert lower <= values[0] + 1e-14
    assert upper >= values[-1] - 1e-14
    np.testing.assert_allclose([lower, upper], values[[0, -1]], atol=1e-5)
    assert spectrum.assumption.status == ("proven" if dense_limit else "sampled")
