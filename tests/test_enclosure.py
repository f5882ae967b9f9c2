import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fibration as fb
from fibration.errors import (
    CertificateError,
    PrecisionError,
)
from problems import cost, deep_linear_problem, form, tanh_problem, true_distance

FLOW = fb.GradientFlow()


@pytest.mark.parametrize("rtol", [1e-12, 1e-5])
def test_the_enclosure_holds_whatever_the_solvers_accuracy(rtol):
    problem, params = tanh_problem()
    descent = fb.descend(problem, FLOW, params, step_size=0.05, steps=100, save_every=5)
    found = fb.fidelity.enclose(problem, descent, rtol=rtol, atol=1e-2 * rtol)
    true = true_distance(problem, params, descent)
    assert np.all((found.lower <= true) & (true <= found.upper))
    assert found.kind == "conditional"
    width = np.max(found.error)
    assert width < (1e-6 if rtol < 1e-9 else 0.1) * true[-1] if np.isfinite(width) else rtol > 1e-9


@pytest.mark.slow
def test_the_enclosure_holds_out_longer_than_the_certificate():
    problem, params = tanh_problem()
    descent = fb.descend(problem, FLOW, params, step_size=0.05, steps=400, save_every=4)
    certificate = fb.fidelity.certify(problem, descent)
    found = fb.fidelity.enclose(problem, descent)
    assert certificate.valid_until < 5
    assert found.valid_until == 20
    assert found.error[-1] < 1e-3 * found.distance[-1]
    assert "±" in found.message


@pytest.mark.slow
def test_an_enclosure_on_tubes_and_what_it_refuses():
    problem, params = deep_linear_problem()
    descent = fb.descend(problem, FLOW, params, step_size=0.01, steps=100, save_every=5)
    found = fb.fidelity.enclose(problem, descent, "tube")
    true = true_distance(problem, params, descent)
    assert np.all((found.lower <= true) & (true <= found.upper))
    assert found.error[-1] < 1e-4 * true[-1]
    adam = fb.descend(problem, optax.adam(0.1), params, steps=3)
    with pytest.raises(CertificateError, match="optax"):
        fb.fidelity.enclose(problem, adam)
    with jax.enable_x64(False):
        single = fb.descend(form(np.eye(2, dtype=np.float32)), FLOW, jnp.ones(2), step_size=0.1, steps=3)
        with pytest.raises(PrecisionError, match="float64"):
            fb.fidelity.enclose(form(np.eye(2, dtype=np.float32)), single)


def test_a_flow_that_slides_along_a_kink_has_no_enclosure(monkeypatch):
    monkeypatch.setattr("fibration.fidelity._enclosure.MOST_STEPS", 3000)
    slide = cost(lambda w: 0.5 * jnp.sum(w**2) + jnp.abs(w[0] - 0.5) + w[1])
    descent = fb.descend(slide, FLOW, np.array([1.0, 1.0]), step_size=0.05, steps=40)
    with pytest.raises(CertificateError, match="kink"):
        fb.fidelity.enclose(slide, descent)
