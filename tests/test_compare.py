import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from fibration.errors import StepSizeError
from test_certificates import cost, form, symmetric, tanh_problem

VALUES = np.array([-0.2, 0.5, 2.0])


@pytest.fixture(scope="module")
def quadratic_comparison():
    with jax.enable_x64(True):
        hessian, vectors = symmetric(np.random.default_rng(5), VALUES)
        start = np.array([1.0, -0.5, 2.0])
        found = fb.fidelity.compare(
            form(hessian), start, [0.1, 0.05, 0.02, 0.01], 4.03, hessian_lipschitz=0.0, n_times=20, method="dopri8"
        )
    return found, start @ vectors


def moved(components, eta, times):
    """Descent less flow, and descent less the hessian form of the modified flow, in the eigenbasis."""
    k = np.rint(times / eta)[:, None]
    return components * ((1 - eta * VALUES) ** k - np.exp(-eta * k * VALUES))


def test_on_a_quadratic_everything_is_known(quadratic_comparison):
    found, components = quadratic_comparison
    table = found.table()
    assert list(table.step_size) == [0.01, 0.02, 0.05, 0.1]
    assert list(table.steps) == [403, 201, 80, 40]  # whole steps only
    np.testing.assert_allclose(table.time, [4.03, 4.02, 4.0, 4.0])
    for run, row in zip(found.runs, table.itertuples(), strict=True):
        eta, t = run.step_size, run.times[:, None]
        true = np.linalg.norm(moved(components, eta, run.times), axis=1)
        np.testing.assert_allclose(run.distance, true, atol=1e-7)
        first = np.linalg.norm(components * (t / 2) * VALUES**2 * np.exp(-t * VALUES), axis=1)
        np.testing.assert_allclose(run.first_order, eta * first, atol=1e-6)
        rate = -VALUES * (1 + eta / 2 * VALUES)
        modified = components * ((1 - eta * VALUES) ** np.rint(t / eta) - np.exp(rate * t))
        np.testing.assert_allclose(run.modified, np.linalg.norm(modified, axis=1), atol=1e-7)
        np.testing.assert_allclose(run.stability, eta * 2.0, rtol=1e-6)
        assert np.all(run.bound >= true * (1 - 1e-9))
        assert row.kind == "theorem"
        assert row.notes == ""
        assert row.valid_until == run.times[-1]
    assert found.solver_error < 1e-7


def test_richardsons_estimates_need_descents_alone_and_agree(quadratic_comparison):
    found, _ = quadratic_comparison
    largest = found.runs[-1]
    np.testing.assert_allclose(largest.richardson[-1], largest.distance[-1], rtol=0.03)
    assert largest.asymptotic is True
    assert 0 < largest.richardson_spread < 0.05
    # 0.05 is no whole multiple of 0.02, but it is of 0.01.
    middle = found.runs[2]
    shared = ~np.isnan(middle.richardson)
    assert shared.sum() > 5
    np.testing.assert_allclose(middle.richardson[shared][-1], middle.distance[shared][-1], rtol=0.03)
    assert found.runs[0].asymptotic is None


def test_table_figure_and_dataset_hold_the_same_numbers(quadratic_comparison):
    found, _ = quadratic_comparison
    data = found.to_xarray()
    assert data["distance"].dims == ("step_size", "stamp")
    np.testing.assert_array_equal(
        data["distance"].sel(step_size=0.1).values[: len(found.runs[-1].times)], found.runs[-1].distance
    )
    assert np.isnan(data["time"].values[:, -1]).sum() in range(4)
    np.testing.assert_array_equal(data["valid_until"], found.table().valid_until)
    figure = found.figure()
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata()[1:], found.runs[0].distance[1:])
    np.testing.assert_allclose(right.lines[0].get_ydata(), found.table().distance)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "step size 0.01" in labels
    assert "from the modified flow" in labels


@pytest.mark.slow
def test_a_network_at_step_sizes_that_share_no_times():
    problem, params = tanh_problem()
    found = fb.fidelity.compare(problem, params, [0.3, 0.13], 5.0, checks=11, n_times=10, method="dopri8")
    assert all(np.all(np.isnan(run.richardson)) for run in found.runs)
    np.testing.assert_allclose(found.table().first_order, found.table().distance, rtol=0.2)
    assert np.all(found.table().modified < 0.3 * found.table().distance)
    assert "no guarantee beyond" in found.table().notes[1]


def test_beyond_stability_it_says_so():
    problem = cost(lambda w: jnp.sum(jnp.cosh(w) - 1))
    found = fb.fidelity.compare(
        problem, np.array([0.5, 0.1]), [2.5, 1.25], 10.0, n_times=8, curvature=None, method="dopri8"
    )
    table = found.table()
    assert "over the limit 2" in table.notes[1]
    assert "oscillates" in table.notes[0]
    assert list(table.kind) == ["none", "none"]
    assert np.all(np.isinf(table.bound))
    assert found.figure().axes
    blows_up = cost(lambda w: jnp.sum(w**4))
    table = fb.fidelity.compare(
        blows_up, np.array([2.0]), [0.5, 0.01], 6.0, n_times=12, curvature=None, method="dopri8"
    ).table()
    assert "failed" in table.notes[1]
    assert table.distance[0] < 0.1


def test_in_float32_certificates_are_left_out_and_the_reason_told():
    with jax.enable_x64(False):
        hessian = np.diag([1.0, 0.5]).astype(np.float32)
        found = fb.fidelity.compare(
            form(hessian), jnp.ones(2), [1e-3, 5e-4], 0.5, n_times=5, rtol=1e-5, atol=1e-7, method="dopri8"
        )
    assert "no certificate" in found.table().notes[0] or np.all(np.isfinite(found.table().bound))


@pytest.mark.parametrize("sizes", [[], [0.0], [-0.1], [np.nan], [2.0]])
def test_step_sizes_that_make_no_descent_are_refused(sizes):
    with pytest.raises(StepSizeError):
        fb.fidelity.compare(form(np.eye(2)), np.ones(2), sizes, 1.0)
