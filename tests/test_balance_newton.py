"""Balanced points by the Kempf–Ness solver: Newton's method on a group, for chains and for actions of one's own."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings

import fibration as fb
from chains import chain, closed_widths, field, norm, seeds
from fibration.errors import RankLossError

B = fb.balance


@settings(max_examples=12)
@given(seeds(), closed_widths(depth_max=4, width_max=4), field())
def test_newton_finds_the_minimum_of_closed_orbits(seed, widths, which):
    Ws = chain(seed, widths, which, spread=1.0)
    X = B.end_to_end(Ws)
    values = np.linalg.svd(X, compute_uv=False)[: min(widths)]
    assume(values[-1] > 1e-3 * values[0])
    found = B.kempf_ness(Ws)
    assert found.converged, found.message
    assert found.moment_norm < 1e-13
    np.testing.assert_allclose(found.regularizer, B.minimum_on_fibre(X, len(Ws), rtol=1e-12), rtol=1e-9)
    np.testing.assert_allclose(B.end_to_end(found.params), X, atol=1e-11 * np.prod([norm([W]) for W in Ws]))


def test_newton_is_quadratic_and_meets_its_budget():
    found = B.kempf_ness(chain(0, (32,) * 7, spread=0.5))
    assert found.converged
    assert found.iterations <= 12
    assert found.history[-1] <= 1e-12
    # quadratic: the number of digits doubles at the end
    history = B.kempf_ness(chain(1, (4,) * 5, spread=1.0)).history
    digits = -np.log10(history[(history < 1e-1) & (history > 1e-11)])
    assert len(digits) >= 3
    assert np.all(digits[1:] > 1.7 * digits[:-1])


def test_newton_knows_orbits_without_a_minimum():
    found = B.kempf_ness([np.array([[2.0]]), np.array([[0.0]])])
    assert not found.converged
    assert "not closed" in found.message
    found = B.kempf_ness(chain(0, (3, 5, 5, 3)))
    assert not found.converged
    np.testing.assert_allclose(B.end_to_end(found.params), B.end_to_end(chain(0, (3, 5, 5, 3))), atol=1e-6)


def test_newton_keeps_digits_where_the_product_has_none():
    # Singular values of X down to 1e-15: its SVD has lost the smallest, the chain has not.
    rng, scale = np.random.default_rng(0), np.array([1.0, 1e-2, 1e-5])
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(4)]
    Ws = [factor * (turns[p + 1] * scale) @ turns[p].T for p, factor in enumerate((3.0, 1.0, 0.5))]
    with pytest.raises(RankLossError):
        B.balanced(Ws)
    found = B.kempf_ness(Ws, tolerance=1e-17)
    values = [np.linalg.svd(W, compute_uv=False) for W in found.params]
    np.testing.assert_allclose(values, [1.5 ** (1 / 3) * scale] * 3, rtol=1e-4)


class Torus(B.AbstractAction):
    """The rescalings of the hidden neurons of a network x ↦ V relu(U x): rows of U by c, columns of V by 1/c."""

    def infinitesimal(self, W, xi):
        return {"in": xi[:, None] * W["in"], "out": -W["out"] * xi}

    def adjoint(self, W, V):
        return jnp.sum(W["in"] * V["in"], axis=1) - jnp.sum(W["out"] * V["out"], axis=0)

    def exponential(self, xi, W):
        return {"in": jnp.exp(xi)[:, None] * W["in"], "out": W["out"] * jnp.exp(-xi)}

    def hermitian(self, xi):
        return xi


def test_an_action_of_your_own_is_balanced_too():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(6, 3)) * np.exp(2 * rng.normal(size=(6, 1))), "out": rng.normal(size=(2, 6))}
    found = B.kempf_ness(params, Torus())
    assert found.converged
    rows, columns = np.linalg.norm(found.params["in"], axis=1), np.linalg.norm(found.params["out"], axis=0)
    lengths = np.linalg.norm(params["in"], axis=1) * np.linalg.norm(params["out"], axis=0)
    np.testing.assert_allclose(rows, np.sqrt(lengths), rtol=1e-12)
    np.testing.assert_allclose(columns, np.sqrt(lengths), rtol=1e-12)
