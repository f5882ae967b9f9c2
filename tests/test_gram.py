"""The structured Gram matrix is J Jᵀ, whatever the network, the budget and the number of devices."""

import os
import subprocess
import sys

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from architectures import ARCHITECTURES
from fibration.tangent._differential import Differential
from fibration.tangent._plan import plan, trace


def _dense(problem, params):
    """The Jacobian by `jacrev` of all outputs together, one leaf after the other."""
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(state)

    def outputs(vector):
        values = problem.outputs(eqx.combine(unravel(vector), constant))
        return jnp.concatenate([value.reshape(-1) for value in (values if isinstance(values, tuple) else (values,))])

    return jax.jacrev(outputs)(flat)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gram_of_every_architecture(name):
    problem, params = ARCHITECTURES[name]()
    jacobian = _dense(problem, params)
    np.testing.assert_allclose(fb.tangent.jacobian(problem, params), jacobian, atol=1e-12 * np.max(np.abs(jacobian)))
    expected = np.asarray(jacobian @ jacobian.T)
    for method in ("auto", "structured"):
        found = fb.tangent.gram(problem, params, method)
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.max(np.abs(expected)))
        np.testing.assert_array_equal(found, found.T)


def test_gram_by_way_of_the_jacobian():
    problem, params = ARCHITECTURES["stacked_blocks"]()
    jacobian = _dense(problem, params)
    np.testing.assert_allclose(fb.tangent.gram(problem, params, "jacobian"), jacobian @ jacobian.T, rtol=1e-12)


# What is left to a Jacobian block of its own: everything else is contracted from its uses.
_OWN = {
    "laplacian_forward": {"['w']"},  # of three directions it has as many entries as the weights
    "laplacian_reverse": {"['v']", "['w']"},
    "stacked_blocks": {"['v']", "['w']"},
    "long_loop": {"['w']"},
    "recurrent": {"['start']"},
    "custom_rules": {"['u']"},
    "unused_and_odd": {f"['{name}']" for name in ("a", "c", "d", "down", "e", "embedding", "g", "up", "w")},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_which_parameters_are_followed(name):
    problem, params = ARCHITECTURES[name]()
    differential = Differential(problem, params)
    leaves = jax.tree.leaves(differential.params)
    blocks = [trace(block, differential.params, differential.constant) for block in differential.blocks]
    found = plan(blocks, [block.inputs for block in differential.blocks], leaves, None)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(differential.params)]
    assert {paths[leaf] for leaf in found.own} == _OWN.get(name, set())


def test_dense_layers_take_the_biases_along():
    problem, params = ARCHITECTURES["mlp"]()
    differential = Differential(problem, params)
    blocks = [trace(problem, differential.params, differential.constant)]
    found = plan(blocks, [problem.inputs], jax.tree.leaves(differential.params), None)
    assert [group.bias is not None for group in found.groups] == [True, True, True]
    assert set(found.routes) == {"pairs"}


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("mlp", 1),
        ("mlp", 3_000),
        ("convnet", 1),
        ("stacked_blocks", 1),
        ("stacked_blocks", 30_000),
        ("unused_and_odd", 1),
    ],
)
def test_the_memory_budget_does_not_change_the_gram(name, budget):
    problem, params = ARCHITECTURES[name]()
    expected = fb.tangent.gram(problem, params)

    def smaller(block):
        return fb.Problem(block.apply, block.inputs, block.targets, weights=block.weights, memory_budget=budget)

    if isinstance(problem, fb.StackedProblem):
        small = fb.stack([smaller(block) for block in problem.problems])
    else:
        small = smaller(problem)
    found = fb.tangent.gram(small, params)
    np.testing.assert_allclose(found, expected, atol=1e-13 * np.max(np.abs(expected)))


def test_tiles_that_do_not_divide_the_samples():
    apply, params = fb.networks.mlp((2, 7, 3), "tanh", key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (601, 2))
    problem = fb.Problem(apply, inputs, jnp.zeros((601, 3)))  # 1,803 rows: six tiles, the last overlapping
    jacobian = np.asarray(fb.tangent.jacobian(problem, params))
    expected = jacobian @ jacobian.T
    np.testing.assert_allclose(fb.tangent.gram(problem, params), expected, atol=1e-12 * np.max(expected))


@hypothesis.settings(max_examples=5)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 7),
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    budget=st.sampled_from([1, 2**30]),
    activation=st.sampled_from(["tanh", "relu", "gelu"]),
)
def test_gram_of_random_networks(seed, samples, widths, budget, activation):
    apply, params = fb.networks.mlp(tuple(widths), activation, key=jax.random.key(seed))
    inputs = jax.random.normal(jax.random.key(seed + 1), (samples, widths[0]))
    problem = fb.Problem(apply, inputs, jnp.zeros((samples, widths[-1])), memory_budget=budget)
    jacobian = np.asarray(fb.tangent.jacobian(problem, params))
    expected = jacobian @ jacobian.T
    for method in ("auto", "structured"):
        found = fb.tangent.gram(problem, params, method)
        np.testing.assert_allclose(found, expected, atol=1e-12 * max(1, np.max(expected)))


def test_scaled_rows_are_those_of_the_residuals():
    problem, params = ARCHITECTURES["stacked_blocks"]()
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(state)
    jacobian = jax.jacrev(lambda v: problem.residuals(eqx.combine(unravel(v), constant)))(flat)
    differential = Differential(problem, params, scaled=True)
    np.testing.assert_allclose(differential.jacobian(), jacobian, atol=1e-13 * np.max(np.abs(jacobian)))
    expected = jacobian @ jacobian.T
    np.testing.assert_allclose(differential.gram(), expected, atol=1e-13 * np.max(np.abs(expected)))


def test_the_operator_is_the_jacobian():
    problem, params = ARCHITECTURES["attention"]()
    jacobian = fb.tangent.jacobian(problem, params)
    operator = fb.tangent.operator(problem, params)
    tangent = fb.trees.random_like(jax.random.key(0), params)
    product = operator.mv(tangent)
    np.testing.assert_allclose(product.ravel(), jacobian @ ravel_pytree(tangent)[0], atol=1e-12)
    cotangent = jax.random.normal(jax.random.key(1), product.shape)
    back = operator.transpose().mv(cotangent)
    np.testing.assert_allclose(ravel_pytree(back)[0], jacobian.T @ cotangent.ravel(), atol=1e-12)
    np.testing.assert_allclose(operator.as_matrix(), jacobian, atol=1e-12)


def test_relu_at_its_kink_keeps_its_rule():
    problem = fb.Problem(lambda p, x: p["v"] @ jax.nn.relu(p["w"] @ x), jnp.zeros((2, 2)), jnp.zeros((2, 1)))
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones((1, 3))}
    np.testing.assert_array_equal(fb.tangent.gram(problem, params), jnp.zeros((2, 2)))


def test_gram_in_float32_and_within_transformations():
    problem, params = ARCHITECTURES["mlp"]()
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    low = fb.Problem(problem.apply, problem.inputs.astype(jnp.float32), problem.targets.astype(jnp.float32))
    found, expected = fb.tangent.gram(low, single), fb.tangent.gram(problem, params)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.max(np.abs(expected)))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    both = jax.vmap(lambda p: fb.tangent.gram(problem, p))(many)
    np.testing.assert_allclose(both[0], expected, atol=1e-14 * np.max(np.abs(expected)))


def test_bad_input():
    problem, params = ARCHITECTURES["mlp"]()
    with pytest.raises(fb.errors.UnknownNameError, match="structured"):
        fb.tangent.gram(problem, params, "structred")
    batched = fb.Problem(lambda p, x: x @ p, jnp.ones((4, 3)), jnp.zeros((4, 3)))
    with pytest.raises(fb.errors.ApplyError):
        fb.tangent.gram(batched, jnp.ones((4, 4)))
    by_batch = fb.Problem(lambda p, x: jax.vmap(lambda z: p @ z)(x), jnp.ones((4, 3)), jnp.zeros((4, 2)))
    with pytest.raises(fb.errors.ApplyError, match="ONE sample"):
        fb.tangent.gram(by_batch, jnp.ones((2, 3)))
    complex_weights = fb.Problem(lambda p, x: jnp.real(p @ x), jnp.ones((4, 3)), jnp.zeros((4, 2)))
    with pytest.raises(fb.errors.ParameterError, match="complex"):
        fb.tangent.gram(complex_weights, jnp.ones((2, 3), complex))


_DEVICES = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, equinox as eqx
import fibration as fb
from jax.sharding import AxisType, NamedSharding, PartitionSpec

apply, params = fb.networks.mlp((3, 8, 2), "tanh", key=jax.random.key(0))
inputs = jax.random.normal(jax.random.key(1), (24, 3))
targets = jnp.sin(inputs @ jnp.ones((3, 2)))
mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(AxisType.Auto,))
put = lambda array: jax.device_put(array, NamedSharding(mesh, PartitionSpec("samples")))
params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
problem = fb.Problem(apply, put(inputs), put(targets))
v, info = fb.tangent.minimum_norm(problem, params, problem.outputs(params))
step = fb.AdaptedFlow(damping=1e-6)(problem, params)
result = fb.optim.minimize(problem, params, steps=3)
flat = lambda tree: np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])
np.savez(OUT, gram=fb.tangent.gram(problem, params), lift=flat(v), step=flat(step), costs=result.costs)
"""


@pytest.mark.slow
def test_one_two_and_eight_devices_agree(tmp_path):
    found = []
    for count in (1, 2, 8):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        script = _DEVICES.replace("OUT", repr(str(tmp_path / f"{count}.npz")))
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-2000:]
        found.append(np.load(tmp_path / f"{count}.npz"))
    for other in found[1:]:
        for name in ("gram", "lift", "step", "costs"):
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-9, atol=1e-12)
