import io

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from rich.console import Console

import fibration as fb
from problems import quadratic


def test_a_study_on_a_quadratic_in_closed_form():
    hessian, start = np.diag([1.0, 4.0]), np.array([1.0, 1.0])
    study = fb.study.fidelity_study(quadratic(hessian), start, t1=6.0, fractions=(1.2, 0.1), n_times=13)
    np.testing.assert_allclose(study.stable_step_size, 0.5, rtol=1e-5)
    assert study.step_sizes == (0.05, 0.5)  # 0.6 is rounded down to whole steps within 0.5
    for descent, step, distance in zip(study.descents, study.step_sizes, study.distances(), strict=True):
        k = np.round(study.flow.times / step)[:, None]
        expected = start * ((1 - step * np.diag(hessian)) ** k - np.exp(-step * k * np.diag(hessian)))
        np.testing.assert_allclose(distance, np.linalg.norm(expected, axis=1), atol=1e-5)
        np.testing.assert_allclose(descent.observed["sharpness"], 4.0, rtol=1e-5)


def test_crossing_time_is_the_last_climb_above_the_limit():
    observed, end = {"sharpness": np.array([5.0, 3, 5, 3, 5])}, fb.Result("completed", 4.0)
    flow = fb.Trajectory(np.arange(5.0), np.zeros((5, 1)), np.zeros(5), observed, end)
    study = fb.study.FidelityStudy(flow, (), (), 0.4, {})
    assert study.crossing_time(2 / 4.0) == 4.0
    assert study.crossing_time(2 / 2.0) == 0.0
    assert study.crossing_time(2 / 6.0) is None


@pytest.mark.slow
def test_the_digits_demonstration_shows_what_the_theory_says(tmp_path):
    outcome = fb.study.run_study(fb.study.template("demo-quick"), tmp_path / "store")
    assert outcome.complete
    study = fb.study.fidelity_of(fb.study.Store(tmp_path / "store").records()[0])
    small, middle, _, large = study.distances()
    travelled = fb.fidelity.distance_from_start(study.flow)[-1]
    # Euler's method is of first order: the distances go like the step sizes while the descents are stable.
    ratio = study.step_sizes[1] / study.step_sizes[0]
    np.testing.assert_allclose(middle[1:] / small[1:], ratio, rtol=0.25)
    assert small[-1] / travelled < 0.01
    assert large[-1] > 2 * middle[-1]
    sharpness = study.flow.observed["sharpness"]
    np.testing.assert_allclose(study.stable_step_size, 2 / sharpness.max())
    # The observed sharpness at the end against the whole spectrum, by an independent route.
    inputs, targets = fb.datasets.digits(samples=200, one_hot=True)
    apply, params = fb.networks.mlp((64, 16, 10), "tanh", key=jax.random.key(0))
    problem = fb.Problem(apply, inputs - inputs.mean(axis=0), targets)
    _, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda v: problem.cost(unravel(v)))(ravel_pytree(study.flow.final_params)[0])
    np.testing.assert_allclose(sharpness[-1], np.linalg.eigvalsh(hessian)[-1], rtol=1e-4)


def test_the_progress_bar_draws_each_run_to_its_end():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    problem, start = quadratic(np.eye(2)), np.ones(2)
    with fb.study.ProgressBar(console) as bar:
        for name in ("first", "second"):
            fb.descend(problem, fb.GradientFlow(), start, step_size=0.1, steps=5, progress=bar.task(name))
    drawn = out.getvalue()
    assert "first" in drawn
    assert "second" in drawn
    assert "100 %" in drawn
    assert "5 gradients" in drawn
    single = fb.study.ProgressBar(Console(file=out, width=120))
    fb.descend(problem, fb.GradientFlow(), start, step_size=0.1, steps=5, progress=single)
    assert "running" in out.getvalue()


def test_facts_name_what_a_run_depends_on():
    facts = fb.study.machine_facts()
    assert facts["float64"] == "on"
    assert facts["jax"] == jax.__version__
    assert facts["cpu cores"] >= 1
    assert all(isinstance(missing, list) for missing in fb.study.extras().values())
