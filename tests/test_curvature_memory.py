"""Samples in chunks: the same numbers, within the memory budget."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from fibration import _chunks
from fibration.curvature import hvp
from fibration.errors import MemoryBudgetError

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def temporary_bytes(function, problem, *arguments):
    """What XLA allocates beside arguments and result; the data are arguments, as inside a run."""
    arrays, static = eqx.partition(problem, eqx.is_array)
    compiled = jax.jit(lambda a, *rest: function(eqx.combine(a, static), *rest)).lower(arrays, *arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def blocks(n, budget):
    apply, params = fb.networks.mlp((5, 7, 3), "tanh", key=KEY)
    inputs, weights = RNG.normal(size=(n, 5)), RNG.uniform(size=n)
    square = fb.Problem(apply, inputs, RNG.normal(size=(n, 3)), memory_budget=budget)
    entropy = fb.Problem(
        apply, inputs, RNG.integers(0, 3, n), loss=fb.CrossEntropy(n_classes=3), weights=weights, memory_budget=budget
    )
    return {"square": square, "entropy": entropy, "stack": fb.stack([square, entropy])}, params


def with_budget(problem, budget):
    def change(block):
        if not isinstance(block, fb.Problem):
            return block
        options = {"loss": block.loss, "weights": block.weights, "memory_budget": budget}
        return fb.Problem(block.apply, block.inputs, block.targets, **options)

    return jax.tree.map(change, problem, is_leaf=lambda node: isinstance(node, fb.Problem))


def budget_for(problem, params, size):
    """The budget that makes chunks of `size` samples."""
    batched = jax.vmap(problem.apply, in_axes=(None, 0))
    one, two = (_chunks._traced_bytes(lambda x: batched(params, x), problem.inputs, n) for n in (1, 2))
    return float(_chunks._COPIES * size * (two - one))


@pytest.mark.parametrize("kind", ["square", "entropy", "stack"])
@pytest.mark.parametrize("size", [1, 4, 22])
def test_chunks_change_nothing_but_rounding(kind, size):
    problems, params = blocks(23, math.inf)  # 23 is prime: the last chunk overlaps the one before
    whole, vector = problems[kind], fb.trees.random_like(jax.random.key(1), params)
    budget = budget_for(problems["square"], params, size)
    chunked = with_budget(whole, budget)
    block = chunked.problems[0] if kind == "stack" else chunked
    assert block._samples_per_chunk(params) == size
    cost, gradient = chunked.cost_and_gradient(params)
    np.testing.assert_allclose(cost, whole.cost(params), rtol=1e-14)
    np.testing.assert_allclose(chunked.cost(params), whole.cost(params), rtol=1e-14)
    pairs = [
        (gradient, whole.gradient(params)),
        (eqx.filter_grad(chunked.cost)(params), whole.gradient(params)),
        (hvp(chunked, params, vector), hvp(whole, params, vector)),
    ]
    for ours, theirs in pairs:
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_one_sample_and_scalar_outputs_and_other_leaves():
    params = {"w": jnp.array([1.0, -2.0]), "power": 2, "activation": jnp.tanh, "nothing": None}
    inputs, targets = RNG.normal(size=(7, 2)), RNG.normal(size=7)

    def apply(p, x):
        return p["activation"](p["w"] @ x) ** p["power"]

    for n in (1, 7):
        whole, chunked = (fb.Problem(apply, inputs[:n], targets[:n], memory_budget=b) for b in (math.inf, 1.0))
        assert chunked._samples_per_chunk(params) == 1
        gradient = chunked.gradient(params)
        np.testing.assert_allclose(gradient["w"], whole.gradient(params)["w"], rtol=1e-12)
        assert gradient["power"] is None
        assert gradient["nothing"] is None
        np.testing.assert_allclose(chunked.cost(params), whole.cost(params), rtol=1e-13)
    run, reference = (fb.descend(p, fb.GradientFlow(), params, step_size=0.1, steps=5) for p in (chunked, whole))
    np.testing.assert_allclose(run.params["w"], reference.params["w"], rtol=1e-12)


def test_complex_parameters_in_chunks():
    def apply(w, x):
        return jnp.stack([jnp.real(w * x), jnp.imag(w * x)])

    inputs, targets = RNG.normal(size=9), RNG.normal(size=(9, 2))
    whole, chunked = (fb.Problem(apply, inputs, targets, memory_budget=b) for b in (math.inf, 200.0))
    assert chunked._samples_per_chunk(jnp.array(1j)) < 9
    np.testing.assert_allclose(chunked.gradient(jnp.array(0.3 + 1j)), whole.gradient(jnp.array(0.3 + 1j)), rtol=1e-13)


def test_an_infinite_cost_stays_infinite_in_chunks():
    chunked = fb.Problem(lambda w, x: w * x, np.array([1.0, 1e200, 1.0]), np.zeros(3), memory_budget=1.0)
    assert chunked.cost(jnp.array(1.0)) == np.inf


def test_a_budget_must_be_positive():
    for budget in (0, -1.0, math.nan):
        with pytest.raises(MemoryBudgetError, match="memory_budget"):
            fb.Problem(lambda w, x: w * x, np.ones(3), np.zeros(3), memory_budget=budget)


def networks():
    n, rng = 600, np.random.default_rng(1)
    flat, images, targets = rng.normal(size=(n, 64)), rng.normal(size=(n, 8, 8, 1)), rng.normal(size=(n, 10))
    yield "tanh", fb.networks.mlp((64, 120, 80, 10), "tanh", key=KEY), flat, targets
    yield "linear", fb.networks.deep_linear((64, 120, 80, 10), key=KEY), flat, targets
    yield "recurrent", (recurrent, 0.1 * jax.random.normal(KEY, (30, 30))), flat[:, :30], targets
    yield "conv", fb.networks.convnet((8, 8, 1), 10, kernel=3, key=KEY), images, targets


def recurrent(w, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(w @ h + x), None), x, None, length=20)[0][:10]


@pytest.mark.parametrize("name", ["tanh", "linear", "recurrent", "conv"])
def test_what_xla_allocates_stays_within_the_budget(name):
    (apply, params), inputs, targets = next(rest for first, *rest in networks() if first == name)
    whole = fb.Problem(apply, inputs, targets, memory_budget=math.inf)
    vector = fb.trees.random_like(KEY, params)

    def gradient(problem, p):
        return problem.gradient(p)

    def reverse(problem, p, v):
        return jax.vjp(problem.gradient, p)[1](v)

    needed = temporary_bytes(hvp, whole, params, vector)
    assert needed <= 2.5 * temporary_bytes(gradient, whole, params)
    parameters = 8 * fb.trees.size(params)
    budget = max(needed / 6, 2.0 * parameters)
    chunked = with_budget(whole, budget)
    assert chunked._samples_per_chunk(params) < 600
    assert temporary_bytes(gradient, chunked, params) <= budget + 4 * parameters
    assert temporary_bytes(hvp, chunked, params, vector) <= budget + 4 * parameters
    if name != "conv":  # its reverse product takes a minute to compile
        assert temporary_bytes(reverse, chunked, params, vector) <= 2 * budget + 4 * parameters


def test_a_product_costs_at_most_three_gradients():
    problem, params = next((fb.Problem(pair[0], x, y), pair[1]) for name, pair, x, y in networks() if name == "tanh")
    arrays, static = eqx.partition(problem, eqx.is_array)

    def operations(function, *arguments):
        compiled = jax.jit(lambda a, *rest: function(eqx.combine(a, static), *rest)).lower(arrays, *arguments).compile()
        return compiled.cost_analysis()["flops"]

    assert operations(hvp, params, params) <= 3 * operations(lambda problem, p: problem.gradient(p), params)
