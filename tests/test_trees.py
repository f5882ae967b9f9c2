import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from fibration import trees

shapes = st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(shapes, st.booleans(), st.integers(0, 2**31 - 1))
def test_operations_agree_with_the_ravelled_vector(shapes, is_complex, seed):
    rng = np.random.default_rng(seed)

    def draw():
        parts = [rng.normal(size=s) + (1j * rng.normal(size=s) if is_complex else 0) for s in shapes]
        return {f"leaf{i}": jnp.asarray(p) for i, p in enumerate(parts)}

    a, b = draw(), draw()
    x, y = (np.asarray(ravel_pytree(t)[0]) for t in (a, b))
    assert trees.size(a) == x.size
    np.testing.assert_allclose(trees.dot(a, b), np.real(np.vdot(x, y)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(trees.norm(a), np.linalg.norm(x), rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(trees.axpy(-0.3, a, b))[0], y - 0.3 * x, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ravel_pytree(trees.scale(2.5, a))[0], 2.5 * x, rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(trees.subtract(a, b))[0], x - y, rtol=1e-12, atol=1e-14)


def test_other_leaves_are_no_coordinates():
    tree = {"w": jnp.array([3.0, 4.0]), "steps": jnp.array([7]), "activation": jnp.tanh, "none": None}
    assert trees.size(tree) == 2
    assert float(trees.norm(tree)) == 5.0


def test_all_finite_sees_a_single_nan_and_a_single_infinity():
    good = [jnp.ones((3, 3)), jnp.zeros(2)]
    assert bool(trees.all_finite(good))
    assert not bool(trees.all_finite([good[0].at[1, 2].set(jnp.nan), good[1]]))
    assert not bool(trees.all_finite([good[0], good[1].at[1].set(-jnp.inf)]))


def test_axpy_keeps_the_dtype_of_the_start():
    start, direction = {"w": jnp.ones(2, jnp.float32)}, {"w": jnp.ones(2, jnp.float64)}
    assert trees.axpy(0.1, direction, start)["w"].dtype == jnp.float32


def test_random_like_gives_leaves_of_one_shape_different_numbers():
    draw = trees.random_like(jax.random.key(0), [jnp.zeros(1000), jnp.zeros(1000)])
    assert abs(np.corrcoef(draw[0], draw[1])[0, 1]) < 0.1
    assert abs(float(jnp.std(draw[0])) - 1) < 0.1
