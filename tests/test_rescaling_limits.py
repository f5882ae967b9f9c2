"""Networks that once were rescaled wrongly, reported wrongly, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from fibration.errors import ParameterError, PrecisionError
from optional import optional

B = fb.balance
relu = jax.nn.relu


def normal(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


INDEX = jnp.array([0, 1, 2, 3, 4, 5, 6, 20])


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: p[2] @ jnp.take(relu(p[0] @ x), INDEX, mode="fill", fill_value=9),
        lambda p, x: p[2] @ relu(jnp.take(p[0], INDEX, axis=0, mode="fill", fill_value=1.0) @ x),
        lambda p, x: p[2] @ relu(jnp.take(p[0], INDEX, axis=0, mode="fill", fill_value=0.0) @ x),
        lambda p, x: (
            p[2]
            @ (jnp.take(relu(p[0] @ x), INDEX, mode="fill", fill_value=1.0) + relu(p[1] @ jnp.concatenate([x, x[:3]])))
        ),
        lambda p, x: p[2] @ jnp.take(relu(p[0] @ x), jnp.argmax(x) * 4 * jnp.ones(8, int), mode="fill", fill_value=1.0),
        lambda p, x: p[2] @ relu(jnp.take(p[0].T, jnp.argmax(x) * 3, axis=0, mode="fill", fill_value=1.0)),
        lambda p, x: p[2] @ relu(jnp.take(p[0], INDEX[:-1], axis=0) @ x).repeat(2)[:8],
        lambda p, x: p[2] @ jnp.take(relu(p[0] @ x), jnp.argmax(x) + jnp.arange(8), mode="clip"),
    ],
)
def test_lookups_beyond_the_end(apply):
    params, x = normal((8, 5), (8, 8), (3, 8)), jnp.asarray(np.random.default_rng(1).normal(size=5))
    action = B.rescaling(apply, params, x)
    away = action.exponential(jnp.asarray(np.random.default_rng(2).normal(size=action.n_units)), params)
    for seed in range(5):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=5))
        np.testing.assert_allclose(
            apply(away, x), apply(params, x), atol=1e-12 * float(jnp.abs(apply(params, x)).max())
        )


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: p[1] @ (1 / jnp.abs(p[0] @ x)),
        lambda p, x: p[1] @ relu(p[0] @ x) * (jnp.argmax(p[0] @ x) + 1.0),
        lambda p, x: relu(p[0] @ x)[:1],
    ],
)
def test_scales_without_a_best_value_are_left_alone(apply):
    params = normal((8, 5), (3, 8))
    (_, new), report = B.network((apply, params), jnp.ones(5))
    assert report.converged
    assert not report.units.dead.any()
    assert report.change < 1e-14
    for before, after in zip(params, new, strict=True):
        assert 0.2 < float(jnp.linalg.norm(after) / jnp.linalg.norm(before)) < 5


def test_units_that_are_only_compared_are_not_dead():
    params = normal((8, 5), (8, 5), (3, 8))
    _, report = B.network((lambda p, x: p[2] @ (relu(p[1] @ x) * (p[0] @ x > 0)), params), jnp.ones(5))
    assert report.skipped["0"] == "a size that does not matter, or only grows"
    assert len(report.units) == 8
    assert not report.units.dead.any()


def test_overflow_is_told():
    def apply(p, x):
        return p[1] @ relu(p[0] @ x) - p[2] @ relu(p[0] @ x)

    params = [jnp.full((1, 1), 1e3), jnp.full((20000, 1), 6e4), jnp.full((20000, 1), 6e4)]
    with pytest.raises(PrecisionError, match="0 balanced is beyond the range of float16"):
        B.network((apply, [W.astype(jnp.float16) for W in params]), jnp.full((1,), 1e-4, jnp.float16))
    for scales in ((1e90, 1, 1e-90), (1e100, 1e-100, 1e100), (1e-160, 1e-160, 1e-160)):
        apply, params = fb.networks.mlp((5, 8, 8, 3), "relu", key=jax.random.key(0), bias=False)
        params = [{"weight": scale * layer["weight"]} for scale, layer in zip(scales, params, strict=True)]
        with pytest.raises(PrecisionError, match="do not fit into float64"):
            B.network((apply, params))


def test_pytrees_go_in_and_come_out():
    params = {"W": normal((6, 4), (3, 6)), "key": jax.random.key(0), "empty": jnp.zeros((0, 3))}

    def apply(p, x):
        hidden = relu(p["W"][0] @ x["a"]) + p["empty"].sum()
        return {"out": p["W"][1] @ hidden, "size": (hidden * 0.0).sum(), "token": x["token"]}

    x = {"a": np.ones(4), "token": np.array(3)}
    (_, new), report = B.network((apply, params), x)
    assert len(report.units) == 6
    assert report.change < 1e-14
    np.testing.assert_allclose(apply(new, x)["out"], apply(params, x)["out"], rtol=1e-12)
    _, report = B.network((lambda p, x: (p[1] @ relu(p[0] * x), x), normal((4,), (2, 4))), 2.0)
    assert report.change < 1e-14
    _, report = B.network(
        (lambda p, x: p[1] @ relu(p[0] @ x[0]) + x[1], normal((4, 3), (2, 4))), (np.ones(3), np.ones(2))
    )
    assert len(report.units) == 4


def test_pooling_over_channels():
    def apply(p, x):
        image = relu(jax.vmap(lambda column: p[0] @ column, 1, 1)(x))
        window = {"window_dimensions": (1, 2), "window_strides": (1, 2), "padding": ((2, 0), (1, 1))}
        return p[1] @ jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, **window)[2:].sum(1)

    _, report = B.network((apply, normal((4, 3), (2, 4))), jnp.ones((3, 6)))
    assert report.change < 1e-14
    assert len(report.units) == 1  # the window moves along the channels too


def test_torch_modules_that_names_do_not_describe():
    torch = optional("torch", "torch")
    optional("torchax", "torch", load=False)
    nn = torch.nn
    for strange in (nn.Tanh(), nn.BatchNorm1d(5), nn.LayerNorm(5), nn.ChannelShuffle(1)):
        module = nn.Sequential(nn.Linear(3, 5), strange, nn.ReLU(), nn.Linear(5, 2))
        with pytest.raises(ParameterError, match=type(strange).__name__):
            B.network(module, ["0", "3"])
    with pytest.raises(ParameterError, match="belong to no layer"):
        B.network(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 2)), ["0", "3"])
    grouped = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, groups=2))
    with pytest.raises(ParameterError, match="which torchax gets wrong"):
        B.network(grouped, np.ones((4, 8, 8)))
