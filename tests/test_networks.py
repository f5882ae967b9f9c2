import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.signal import correlate2d
from scipy.special import erf

from fibration import networks
from fibration.errors import ShapeError, UnknownNameError
from fibration.networks import _deep_linear

BY_HAND = {
    "tanh": np.tanh,
    "relu": lambda z: np.where(z > 0, z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
    "sin": np.sin,
    "linear": lambda z: z,
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def with_random_biases(params, seed=1):
    """Shift every parameter, since zero biases would hide how they enter."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape), params)


def dense_by_hand(layers, x, phi):
    for j, layer in enumerate(layers):
        x = np.asarray(layer["weight"]) @ x + np.asarray(layer.get("bias", 0.0))
        if j < len(layers) - 1:
            x = phi(x)
    return x


def test_every_activation_is_listed_and_tested():
    assert set(networks.ACTIVATIONS) == set(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
def test_activation_agrees_with_its_formula(name):
    z = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(networks.activation(name)(jnp.asarray(z)), BY_HAND[name](z), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 1.0)])
def test_derivative_at_the_kink_is_the_documented_one(name, slope):
    assert jax.grad(networks.activation(name))(0.0) == slope


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_agrees_with_numpy(name, bias):
    apply, params = networks.mlp((6, 5, 4, 2), name, key=jax.random.key(0), bias=bias)
    params = with_random_biases(params)
    assert [set(layer) for layer in params] == [{"weight", "bias"} if bias else {"weight"}] * 3
    x = np.random.default_rng(0).standard_normal((2, 3))
    np.testing.assert_allclose(apply(params, x), dense_by_hand(params, x.ravel(), BY_HAND[name]), rtol=1e-12)


def test_mlp_of_one_layer_is_affine():
    apply, params = networks.mlp((3, 2), key=jax.random.key(0))
    params = with_random_biases(params)
    x = np.array([1.0, -2.0, 30.0])
    np.testing.assert_allclose(apply(params, x), np.asarray(params[0]["weight"]) @ x + np.asarray(params[0]["bias"]))


@pytest.mark.parametrize(
    ("options", "variance"),
    [
        ({}, 2 / 500),
        ({"activation": "sin"}, 2 / 500),
        ({"activation": "gelu"}, 2 / 500),
        ({"activation": "linear"}, 2 / 500),
        ({"activation": "relu"}, 2 / 200),
        ({"activation": "leaky_relu"}, 2 / 200),
        ({"activation": "relu", "init": "glorot"}, 2 / 500),
        ({"init": "he"}, 2 / 200),
        ({"init": "lecun"}, 1 / 200),
    ],
)
def test_initial_weights_follow_their_law(options, variance):
    _, params = networks.mlp((200, 300), key=jax.random.key(3), **options)
    weight = np.asarray(params[0]["weight"])
    assert np.var(weight) == pytest.approx(variance, rel=5 * np.sqrt(2 / weight.size))
    assert abs(np.mean(weight)) < 5 * np.sqrt(variance / weight.size)
    assert not np.any(params[0]["bias"])


def test_convolutions_count_the_pixels_of_their_kernels():
    _, params = networks.convnet((8, 8, 40), 10, kernel=3, channels=(80,), key=jax.random.key(3))
    weight = np.asarray(params["conv"][0]["weight"])
    assert np.var(weight) == pytest.approx(2 / (9 * 40), rel=5 * np.sqrt(2 / weight.size))
    _, params = networks.convnet((8, 8, 40), 10, "tanh", kernel=3, channels=(80,), key=jax.random.key(3))
    weight = np.asarray(params["conv"][0]["weight"])
    assert np.var(weight) == pytest.approx(2 / (9 * 120), rel=5 * np.sqrt(2 / weight.size))


def builders(scale):
    key = jax.random.key(5)
    yield networks.mlp((4, 3, 2), key=key, scale=scale)[1]
    yield networks.convnet((8, 8, 1), 3, kernel=3, key=key, scale=scale)[1]
    yield networks.deep_linear((4, 3, 5), key=key, scale=scale)[1]
    yield networks.deep_linear((4, 3, 5), key=key, scale=scale, balanced=True)[1]


def test_scale_multiplies_the_weights():
    for one, three in zip(builders(1.0), builders(3.0), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, 3 * a, rtol=1e-14), one, three)


@pytest.mark.parametrize("x64", [True, False])
def test_parameters_have_the_default_float_type(x64):
    with jax.enable_x64(x64):
        dtypes = {leaf.dtype for params in builders(1.0) for leaf in jax.tree.leaves(params)}
    assert dtypes == {np.dtype(np.float64 if x64 else np.float32)}


def image_by_hand(params, image, phi, pooling, padding):
    for layer in params["conv"]:
        weight = np.asarray(layer["weight"])
        if padding == "same":
            (before, after), n = ((weight.shape[0] - 1) // 2, weight.shape[0] // 2), image.shape
            if pooling == "stride":  # with stride 2 the last window ends at the padded image's last pixel
                pads = [max((math.ceil(side / 2) - 1) * 2 + weight.shape[0] - side, 0) for side in n[:2]]
                sides = [(pad // 2, pad - pad // 2) for pad in pads]
            else:
                sides = [(before, after)] * 2
            image = np.pad(image, (*sides, (0, 0)))
        image = np.stack(
            [
                sum(correlate2d(image[..., i], weight[..., i, o], "valid") for i in range(weight.shape[2]))
                for o in range(weight.shape[3])
            ],
            axis=-1,
        )
        if pooling == "stride":
            image = image[::2, ::2]
        image = phi(image + np.asarray(layer["bias"]))
        if pooling in ("max", "mean"):
            reduce = np.max if pooling == "max" else np.mean
            rows, columns = image.shape[0] // 2, image.shape[1] // 2
            image = np.array(
                [
                    [reduce(image[2 * r : 2 * r + 2, 2 * c : 2 * c + 2], axis=(0, 1)) for c in range(columns)]
                    for r in range(rows)
                ]
            )
    return dense_by_hand(params["dense"], image.ravel(), phi)


@pytest.mark.parametrize("pooling", ["max", "mean", "stride", "none"])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dense", [(4,), ()])
def test_convnet_agrees_with_scipy(pooling, padding, dense):
    shape = (11, 14, 2)
    apply, params = networks.convnet(
        shape,
        3,
        "gelu",
        key=jax.random.key(0),
        channels=(2, 3),
        kernel=3,
        pooling=pooling,
        padding=padding,
        dense=dense,
    )
    params = with_random_biases(params)
    x = np.random.default_rng(0).standard_normal(shape)
    expected = image_by_hand(params, x, BY_HAND["gelu"], pooling, padding)
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-11)
    np.testing.assert_allclose(apply(params, x.ravel()), expected, rtol=1e-11)


def test_convnet_has_the_parameters_of_lenet():
    _, params = networks.convnet((32, 32, 1), 10, padding="valid", key=jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


@pytest.mark.parametrize("pooling", ["max", "mean", "stride"])
def test_convnet_has_right_derivatives_for_digits(pooling):
    apply, params = networks.convnet(
        (8, 8, 1), 2, "tanh", kernel=3, channels=(2, 2), dense=(3,), pooling=pooling, key=jax.random.key(0)
    )
    x = np.random.default_rng(0).uniform(size=(8, 8))
    check_grads(lambda p: apply(p, x), (params,), order=1)


def test_convnet_takes_integer_pixels():
    apply, params = networks.convnet((8, 8, 1), 2, kernel=3, key=jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 16, (8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(apply(params, pixels), apply(params, pixels.astype(float)))


@pytest.mark.parametrize("balanced", [True, False])
def test_deep_linear_applies_the_product(balanced):
    apply, matrices = networks.deep_linear((6, 3, 5, 2), key=jax.random.key(0), balanced=balanced)
    assert [w.shape for w in matrices] == [(3, 6), (5, 3), (2, 5)]
    x = np.random.default_rng(0).standard_normal((3, 2))
    np.testing.assert_allclose(apply(matrices, x), np.linalg.multi_dot(matrices[::-1]) @ x.ravel(), rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.1, 1.0, 7.0]),
)
def test_balanced_matrices_are_balanced(widths, seed, scale):
    with jax.enable_x64(True):
        _, matrices = networks.deep_linear(widths, key=jax.random.key(seed), scale=scale, balanced=True)
    matrices = [np.asarray(w) for w in matrices]
    assert [w.shape for w in matrices] == list(zip(widths[1:], widths[:-1], strict=True))
    for before, after in itertools.pairwise(matrices):
        size = np.linalg.norm(before) ** 2
        np.testing.assert_allclose(after.T @ after, before @ before.T, rtol=0, atol=1e-13 * size)
    # The layers share singular values, whose n-th powers are those of the end-to-end matrix, of the largest rank.
    rank, depth = min(widths), len(matrices)
    end_to_end = matrices[0] if depth == 1 else np.linalg.multi_dot(matrices[::-1])
    of_product = np.linalg.svd(end_to_end, compute_uv=False)[:rank]
    of_first = np.linalg.svd(matrices[0], compute_uv=False)
    np.testing.assert_allclose(of_product, of_first[:rank] ** depth, rtol=0, atol=1e-12 * of_product[0])
    np.testing.assert_allclose(of_first[rank:], 0, atol=1e-12 * of_first[0])
    assert of_product[-1] > 0


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("widths", [(3, 4, 2), (2, 2, 5, 3), (4, 3)])
def test_end_to_end_matrix_has_the_documented_size(balanced, widths):
    def squared_norm(key):
        _, matrices = networks.deep_linear(widths, key=key, scale=0.7, balanced=balanced)
        product = matrices[0]
        for matrix in matrices[1:]:
            product = matrix @ product
        return jnp.sum(product**2)

    draws = np.asarray(jax.vmap(squared_norm)(jax.random.split(jax.random.key(0), 4000)))
    expected = 0.7 ** (2 * (len(widths) - 1)) * widths[-1]
    assert abs(draws.mean() - expected) < 5 * draws.std() / np.sqrt(draws.size)


def test_unbalanced_entries_have_the_documented_variance():
    _, (first, second) = networks.deep_linear((100, 300, 200), key=jax.random.key(0), scale=2.0)
    assert np.var(first) == pytest.approx(4 / 100, rel=5 * np.sqrt(2 / first.size))
    assert np.var(second) == pytest.approx(4 / 300, rel=5 * np.sqrt(2 / second.size))


def test_a_bottleneck_keeps_the_leading_singular_values():
    # One layer is the Gaussian draw itself; the first key of the split is that of the draw.
    key = jax.random.key(0)
    _, matrices = networks.deep_linear((5, 2, 4), key=key, balanced=True)
    draw = np.asarray(jax.random.normal(jax.random.split(key, 2)[0], (4, 5))) / np.sqrt(5)
    left, values, right = np.linalg.svd(draw)
    truncated = left[:, :2] @ np.diag(values[:2]) @ right[:2]
    np.testing.assert_allclose(matrices[1] @ matrices[0], truncated, atol=1e-14)


def test_random_frames_are_uniformly_distributed():
    # For the uniform distribution on frames E[Q] = 0 and E[Q_ij²] = 1/d; LAPACK's sign convention would give Q_11 < 0.
    frames = jax.vmap(lambda key: _deep_linear._random_frame(key, 4, 2))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(np.mean(frames, axis=0), 0, atol=5 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(np.mean(frames**2, axis=0), 0.25, atol=5 * 0.25 / np.sqrt(4000))


BUILDS = {
    "mlp": lambda key: networks.mlp([4, 3, 2], "relu", key=key),
    "convnet": lambda key: networks.convnet([4, 4, 1], 2, kernel=3, channels=[1], dense=[3], key=key),
    "deep_linear": lambda key: networks.deep_linear([4, 3, 2], key=key),
}


@pytest.mark.parametrize("name", BUILDS)
def test_the_same_architecture_compiles_once(name):
    traces = []

    @eqx.filter_jit
    def outputs(apply, params, x):
        traces.append(name)
        return apply(params, x)

    x = jnp.ones((4, 4) if name == "convnet" else 4)
    first, second = BUILDS[name](jax.random.key(0)), BUILDS[name](jax.random.key(1))
    assert first[0] is not second[0]
    assert first[0] == second[0]
    assert hash(first[0]) == hash(second[0])
    assert not np.allclose(outputs(*first, x), outputs(*second, x))
    assert len(traces) == 1


def test_other_architectures_are_not_equal():
    key = jax.random.key(0)
    functions = [
        networks.mlp((4, 3, 2), key=key)[0],
        networks.mlp((4, 3, 2), "relu", key=key)[0],
        networks.mlp((4, 5, 2), key=key)[0],
        networks.deep_linear((4, 3, 2), key=key)[0],
        networks.deep_linear((4, 4, 2), key=key)[0],
        networks.convnet((8, 8, 1), 2, kernel=3, key=key)[0],
        networks.convnet((8, 8, 1), 2, kernel=3, pooling="mean", key=key)[0],
    ]
    assert len(set(functions)) == len(functions)
    with pytest.raises(AttributeError):
        functions[0].activation = "relu"


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: networks.mlp((3,), key=KEY),
        lambda: networks.mlp((), key=KEY),
        lambda: networks.mlp((3, 0, 2), key=KEY),
        lambda: networks.mlp((3, -1), key=KEY),
        lambda: networks.deep_linear((3,), key=KEY),
        lambda: networks.deep_linear((0, 3), key=KEY, balanced=True),
        lambda: networks.convnet((8, 8), 10, key=KEY),
        lambda: networks.convnet((8, 8, 0), 10, kernel=3, key=KEY),
        lambda: networks.convnet((8, 8, 1), 0, kernel=3, key=KEY),
        lambda: networks.convnet((8, 8, 1), 10, kernel=0, key=KEY),
        lambda: networks.convnet((8, 8, 1), 10, channels=(), kernel=3, key=KEY),
        lambda: networks.convnet((8, 8, 1), 10, dense=(0,), kernel=3, key=KEY),
        lambda: networks.convnet((8, 8, 1), 10, key=KEY),  # the second convolution meets 4×4 pixels
        lambda: networks.convnet((8, 8, 1), 10, kernel=3, padding="valid", key=KEY),  # nothing left to pool
        lambda: networks.convnet((16, 2, 1), 10, kernel=3, key=KEY),
    ],
)
def test_bad_sizes_raise(build):
    with pytest.raises(ShapeError):
        build()


def test_an_image_too_small_names_the_layer_and_a_way_out():
    with pytest.raises(ShapeError, match=r"convolution 2 .* 4 pixels with kernel=5.*smaller kernel"):
        networks.convnet((8, 8, 1), 10, key=KEY)


@pytest.mark.parametrize("shape", [(2, 4), (5, 4), ()])
def test_a_vector_of_another_size_raises(shape):
    for apply, params in (networks.mlp((4, 2), key=KEY), networks.deep_linear((4, 2), key=KEY)):
        with pytest.raises(ShapeError, match="4 entries"):
            apply(params, jnp.ones(shape))


@pytest.mark.parametrize("shape", [(3, 8, 6), (8, 6), (1, 8, 6, 3), (8, 6, 1)])
def test_an_image_of_another_shape_raises(shape):
    apply, params = networks.convnet((8, 6, 3), 2, kernel=3, channels=(2,), key=KEY)
    with pytest.raises(ShapeError, match="channels last"):
        apply(params, jnp.ones(shape))


@pytest.mark.parametrize(
    ("build", "nearest"),
    [
        (lambda: networks.activation("Tanh"), "activation='tanh'"),
        (lambda: networks.mlp((2, 1), "lekyrelu", key=KEY), "activation='leaky_relu'"),
        (lambda: networks.mlp((2, 1), init="xavier_glorot", key=KEY), "init='glorot'"),
        (lambda: networks.convnet((8, 8, 1), 2, pooling="maximum", kernel=3, key=KEY), "pooling='max'"),
        (lambda: networks.convnet((8, 8, 1), 2, padding="SAME", kernel=3, key=KEY), "padding='"),
        (lambda: networks.convnet((8, 8, 1), 2, "rel", kernel=3, key=KEY), "activation='relu'"),
    ],
)
def test_unknown_names_raise_and_name_the_nearest(build, nearest):
    with pytest.raises(UnknownNameError, match="one of") as caught:
        build()
    assert nearest in caught.value.fix


def test_unknown_activation_lists_all_names():
    with pytest.raises(UnknownNameError) as caught:
        networks.activation("swish")
    assert all(name in caught.value.needed for name in networks.ACTIVATIONS)
