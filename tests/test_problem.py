import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.errors import (
    ApplyError,
    EmptyDataError,
    IntegerDataError,
    NonFiniteDataError,
    ParameterError,
    ShapeError,
)
from problems import digits_problem

X, Y = np.arange(12.0).reshape(6, 2), np.ones((6, 3))


def linear(params, x):
    return params["w"] @ x


PARAMS = {"w": np.zeros((3, 2))}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(["squared", "entropy"]))
def test_gradient_agrees_with_finite_differences(seed, kind):
    rng = np.random.default_rng(seed)
    apply, params = fb.networks.mlp((3, 4, 2), "tanh", key=jax.random.key(seed % 1000))
    if kind == "squared":
        problem = fb.Problem(apply, rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), weights=rng.uniform(size=5))
    else:
        problem = fb.Problem(apply, rng.normal(size=(5, 3)), np.array([0, 1, 1, 0, 1]), loss=fb.CrossEntropy())
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    direction = rng.normal(size=flat.size)
    h = 1e-5
    difference = (problem.cost(unravel(flat + h * direction)) - problem.cost(unravel(flat - h * direction))) / (2 * h)
    slope = jax.flatten_util.ravel_pytree(problem.gradient(params))[0] @ direction
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-9)


def test_gradient_of_complex_parameters_descends():
    # C = ½|Re(a w)|² + ½|Im(a w)|² = ½|a|²|w|², so ∇C = |a|² w in the convention of the docstring.
    a = 2.0 - 1.0j
    problem = fb.Problem(
        lambda w, x: jnp.stack([jnp.real(a * w), jnp.imag(a * w)]) * x[0], np.ones((1, 1)), np.zeros((1, 2))
    )
    w = jnp.array(0.3 + 0.7j)
    np.testing.assert_allclose(problem.gradient(w), abs(a) ** 2 * w, rtol=1e-12)
    run = fb.integrate(problem, fb.GradientFlow(), w, t1=1.0, rtol=1e-9, times=[1.0])
    np.testing.assert_allclose(run.params[-1], w * np.exp(-(abs(a) ** 2)), rtol=1e-7)


def test_leaves_that_are_not_floating_point_are_held_constant():
    params = {"w": jnp.ones(2), "index": jnp.array(1), "activation": jnp.tanh, "nothing": None}
    problem = fb.Problem(lambda p, x: p["activation"](p["w"][p["index"]] * x), np.ones((4, 1)), np.zeros((4, 1)))
    gradient = problem.gradient(params)
    assert gradient["index"] is None
    assert problem.n_parameters(params) == 2
    run = fb.descend(problem, fb.GradientFlow(), params, step_size=0.1, steps=3)
    assert run.params["activation"] is jnp.tanh
    assert int(run.params["index"]) == 1
    assert run.params["w"].shape == (4, 2)
    assert np.all(run.params["w"][:, 0] == 1)  # the other entry gets no gradient
    assert run.costs[-1] < run.costs[0]
    assert np.isfinite(float(problem.cost(run.final_params)))


def test_scalar_outputs_and_vector_targets_are_one_output():
    problem = fb.Problem(lambda w, x: w @ x, X, np.arange(6.0))
    problem.check(jnp.ones(2))
    assert problem.outputs(jnp.ones(2)).shape == (6, 1)
    np.testing.assert_allclose(problem.outputs(jnp.ones(2))[:, 0], X.sum(axis=1))


def test_stack_adds_costs_and_joins_residuals():
    a = fb.Problem(linear, X, Y)
    b = fb.Problem(lambda p, x: p["w"][0] * x, X[:2], np.zeros((2, 2)), weights=np.array([1.0, 5.0]))
    both = fb.stack([a, b])
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))}
    np.testing.assert_allclose(both.cost(params), a.cost(params) + b.cost(params), rtol=1e-14)
    rho = both.residuals(params)
    assert rho.shape == (both.n_residuals,) == (6 * 3 + 2 * 2,)
    np.testing.assert_allclose(0.5 * np.sum(np.square(rho)), both.cost(params), rtol=1e-13)
    np.testing.assert_allclose(
        both.gradient(params)["w"], a.gradient(params)["w"] + b.gradient(params)["w"], rtol=1e-12
    )
    assert [o.shape for o in both.outputs(params)] == [(6, 3), (2, 2)]
    run = fb.integrate(both, fb.GradientFlow(), params, t1=1.0)
    assert run.costs[-1] < run.costs[0]
    with pytest.raises(EmptyDataError):
        fb.stack([])
    with pytest.raises(ApplyError):
        both.check({"w": jnp.zeros((2, 2))})


def test_equal_architectures_compile_once():
    first, params = digits_problem(samples=20)
    second, _ = digits_problem(samples=20)
    seen = []

    class Spy(fb.GradientFlow):
        def __call__(self, problem, params, time=0.0):
            seen.append(1)
            return super().__call__(problem, params, time)

    fb.descend(first, Spy(), params, step_size=0.01, steps=2)
    traces = len(seen)
    fb.descend(second, Spy(), params, step_size=0.02, steps=3)
    # Only the abstract check of the velocity, which is traced by design, runs again.
    assert traces > 1
    assert len(seen) - traces <= 1


BAD = [
    (lambda: fb.Problem(linear, X, Y[:5]), ShapeError, "6 samples and targets 5"),
    (lambda: fb.Problem(linear, X, np.array(1.0)), ShapeError, "first axis"),
    (lambda: fb.Problem(linear, [[1.0], [1.0, 2.0]], Y[:2]), ShapeError, "inputs cannot become an array"),
    (lambda: fb.Problem(linear, X[:0], Y[:0]), EmptyDataError, "at least one sample"),
    (lambda: fb.Problem(linear, X.astype(int), Y), IntegerDataError, "allow_integer_inputs"),
    (lambda: fb.Problem(linear, X, Y.astype(int)), IntegerDataError, "one_hot"),
    (lambda: fb.Problem(linear, np.where(X == 5, np.nan, X), Y), NonFiniteDataError, r"index \(2, 1\)"),
    (lambda: fb.Problem(linear, X, np.where(Y > 0, np.inf, Y)), NonFiniteDataError, "18 values"),
    (lambda: fb.Problem(linear, X, Y, weights=np.ones(5)), ShapeError, r"shape \(6,\)"),
    (lambda: fb.Problem(linear, X, Y, weights=-np.ones(6)), ParameterError, "negative"),
    (lambda: fb.Problem("linear", X, Y), ApplyError, "str"),
    (lambda: fb.Problem(linear, X, Y).check({"w": np.zeros((3, 5))}), ApplyError, "call `apply"),
    (lambda: fb.Problem(linear, X, Y).check({"w": np.zeros((4, 2))}), ApplyError, r"shape \(4,\)"),
    (lambda: fb.Problem(linear, X, Y).check({"w": np.zeros((3, 2), int)}), ParameterError, "int64"),
    (lambda: fb.Problem(linear, X, Y).check({}), ParameterError, "none"),
    (lambda: fb.Problem(linear, X, Y).check({"w": np.full((3, 2), np.nan)}), NonFiniteDataError, "'w'"),
    (lambda: fb.Problem(lambda p, x: None, X, Y).check(PARAMS), ApplyError, "no array"),
    (lambda: fb.Problem(lambda p, x: jnp.einsum("ij,nj->ni", p["w"], x), X, Y).check(PARAMS), ApplyError, "ONE sample"),
    (lambda: fb.Problem(lambda p, x: p["w"], X, Y).check(PARAMS), ApplyError, r"shape \(3, 2\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named_and_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert all([caught.value.given, caught.value.needed, caught.value.fix])


def test_an_integer_input_that_was_asked_for():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    tokens = np.array([0, 3, 3, 4])
    problem = fb.Problem(lambda p, x: p[x], tokens, np.zeros((4, 2)), allow_integer_inputs=True)
    np.testing.assert_allclose(problem.outputs(table), np.asarray(table)[tokens])


def test_the_network_stays_usable_inside_transformations():
    problem, params = digits_problem(samples=10)

    @eqx.filter_jit
    def minibatch_cost(rows):
        return fb.Problem(problem.apply, problem.inputs[rows], problem.targets[rows]).cost(params)

    rows = jnp.array([1, 4, 7])
    expected = np.sum((problem.outputs(params) - problem.targets)[rows] ** 2) / 6
    np.testing.assert_allclose(minibatch_cost(rows), expected, rtol=1e-12)
