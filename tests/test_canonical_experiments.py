"""Experiments on random networks, high precision, and what plots show."""

import jax
import jax.numpy as jnp
import matplotlib.colors
import mpmath
import numpy as np
import pytest
import xarray as xr

import fibration as fb
from canonical_networks import random_problem, spread
from fibration.canonical import Basis
from fibration.errors import MemoryBudgetError, ParameterError, PrecisionError, UnknownNameError

LAW = {8: 0.8916, 16: 0.4050, 24: 0.1150, 32: 0.0252, 64: 1.8e-5}


def test_the_law_of_relu_networks():
    """The exact probabilities of spec 001, 4.5 (K = 10)."""
    for width, expected in LAW.items():
        assert fb.canonical.relu_singularity(width, 10) == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_fractions_follow_the_law_and_the_table():
    found = fb.canonical.singularity_probability([8, 16, 24], seeds=300, degree=9, scales=[1.0], activations=["relu"])
    counted = found.fraction.sel(level="eps").values.ravel()
    spread_of = np.sqrt(found.relu_law.values * (1 - found.relu_law.values) / 300)
    assert np.all(np.abs(counted - found.relu_law.values) < 4 * spread_of)
    tanh = fb.canonical.singularity_probability([4, 32], seeds=20, scales=[1.0, 8.0], activations=["tanh"])
    fraction = tanh.fraction.sel(activation="tanh")
    assert np.all(fraction.sel(width=4) == 1)  # M = 13 < K = 16
    assert fraction.sel(scale=8.0, width=32, level="1e-08") == 0
    assert fraction.sel(scale=1.0, width=32, level="1e-08") == 1
    assert tanh.median_ratio.sel(scale=1.0, width=32) < 1e-9
    assert 1e-5 < tanh.median_ratio.sel(scale=8.0, width=32) < 1e-2


def test_the_cost_is_convex_in_coordinates_and_not_in_parameters():
    apply, params = spread(10)
    for loss in (None, fb.CrossEntropy(n_classes=3)):
        q = 1 if loss is None else 3
        apply, params = spread(10, 1, q)
        found = fb.canonical.convexity(random_problem(apply, params, 1, 12, q, loss=loss), params, Basis([(0, 1)], 7))
        assert float(found.canonical_defect.max()) < 1e-13
        assert float(found.literal_defect.max()) > 1e-3
        plots = fb.canonical.landscape_plots(found)
        assert [len(plot.series) for plot in plots] == [6, 6]
        # As drawn: on a linear axis, on which a convex cost is a convex curve.
        assert not any(plot.x_log or plot.y_log for plot in plots)
        assert min(np.diff(line.y, 2).min() for line in plots[0].series) > -1e-12
        assert min(np.diff(line.y, 2).min() for line in plots[1].series) < -1e-3


def test_high_precision_tells_nearly_singular_from_singular():
    """Five standard tanh units, M = K = 16: float64 sees a singular matrix, sixty digits do not (spec 001, 4.5)."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=5)) for name in ("u", "c", "a")} | {"b": jnp.zeros(())}
    apply = lambda p, x: p["a"] @ jnp.tanh(p["u"] * x[0] + p["c"]) + p["b"]  # noqa: E731
    basis = Basis([(0, 1)], 15)
    found = fb.canonical.exact_spectrum(apply, params, basis, nodes=64)
    rough = fb.canonical.rank_report(apply, params, basis)
    assert rough.canonical.ranks["eps"] < 16
    assert not found.singular
    assert 0 < found.singular_values[-1] < 1e-13
    np.testing.assert_allclose(found.singular_values[:8], rough.canonical.singular_values[:8], rtol=1e-6, atol=1e-15)
    # A copied unit makes it singular in any precision.
    copied = {name: value.at[1].set(value[0]) if value.ndim else value for name, value in params.items()}
    assert fb.canonical.exact_spectrum(apply, copied, basis, nodes=64).singular


def test_high_precision_against_quadrature_by_mpmath():
    apply = lambda w, x: w[0] * jnp.tanh(w[1] * x[0] + w[2])  # noqa: E731
    w = [0.7, 2.5, -0.4]
    found = fb.canonical.exact_spectrum(apply, jnp.array(w), Basis([(0, 1)], 2), digits=40, nodes=60)
    a, u, c = (mpmath.mpf(v) for v in w)
    rows = [
        lambda x: mpmath.tanh(u * x + c),
        lambda x: a * x * mpmath.sech(u * x + c) ** 2,
        lambda x: a * mpmath.sech(u * x + c) ** 2,
    ]
    modes = [lambda x: mpmath.mpf(1), *(lambda x, k=k: mpmath.sqrt(2) * mpmath.cos(mpmath.pi * k * x) for k in (1, 2))]
    with mpmath.workdps(40):
        H = mpmath.matrix([[mpmath.quad(lambda x, r=r, e=e: r(x) * e(x), [0, 0.5, 1]) for e in modes] for r in rows])
        sigma = mpmath.svd_r(H, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, [float(s) for s in sigma], rtol=1e-15)


def test_spectral_bias_is_measured():
    apply, params = spread(40)
    basis = Basis([(0, 1)], 6)
    speeds = fb.canonical.speeds(apply, params, basis)
    H = np.asarray(fb.canonical.disparity(apply, params, basis))
    np.testing.assert_allclose(speeds[:, 0], np.diag(H.T @ H) / np.linalg.norm(H, 2) ** 2, rtol=1e-10)
    times = np.arange(5.0)
    theta = np.array([[1.0, 1.0], [0.5, 0.05], [0.05, 0.5], [0.01, 0.05], [0.0, 0.05]])
    np.testing.assert_array_equal(fb.canonical.settling_times(theta, np.zeros(2), times), [2.0, 3.0])
    assert np.isinf(fb.canonical.settling_times(theta[:1], np.zeros(2), times[:1])).all()


def test_plots_hold_what_they_are_given():
    times, values = np.arange(4.0), np.abs(np.random.default_rng(0).normal(size=(4, 9)))
    assert len(fb.canonical.spectrum_plot(times, values).series) == 9
    degrees = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3])
    plot = fb.canonical.frequency_plot(times, values, np.zeros(9), degrees)
    np.testing.assert_allclose(plot.series[1].y, np.linalg.norm(values[:, 1:3], axis=1))
    found = fb.canonical.singularity_probability([4, 8], seeds=3, scales=[1.0], activations=["relu"])
    assert fb.canonical.singularity_plot(found, "relu", 1.0).series[0].name == "exact law"


@pytest.fixture
def fractions():
    """Two activations, three scales and four widths, all fractions and ratios different; K = 16, M = 3·width + 1."""
    shape, widths = (2, 3, 4), [2, 4, 8, 16]
    fraction = np.linspace(0, 1, 72).reshape(*shape, 3)
    return xr.Dataset(
        {
            "fraction": (("activation", "scale", "width", "level"), fraction),
            "median_ratio": (("activation", "scale", "width"), 10.0 ** -np.arange(24).reshape(shape)),
            "parameters": ("width", [3 * width + 1 for width in widths]),
            "relu_law": ("width", np.ones(4)),
        },
        coords={
            "activation": ["tanh", "relu"],
            "scale": [1.0, 4.0, 8.0],
            "width": widths,
            "level": ["eps", "1e-08", "1e-04"],
        },
        attrs={"modes": 16, "seeds": 5},
    )


def drawn(axes):
    return np.asarray(axes.images[0].get_array()), [text.get_text() for text in axes.texts]


def test_what_is_left_out_is_an_axis_of_the_heat_map(fractions):
    everything = fractions.fraction.values
    values, texts = drawn(fb.canonical.singularity_plot(fractions, "relu").axes[0])
    np.testing.assert_array_equal(values, everything[1, :, :, 1])
    assert texts[:2] == [f"{everything[1, 0, 0, 1]:.2f}", "1e-12"]
    figure = fb.canonical.singularity_plot(fractions, scale=4.0, level="eps")
    np.testing.assert_array_equal(drawn(figure.axes[0])[0], everything[:, 1, :, 0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["tanh", "relu"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "4", "8", "16"]
    assert "eps" in figure.axes[-1].get_ylabel()
    both = fb.canonical.singularity_plot(fractions, level="1e-04")
    assert [axes.get_title(loc="left") for axes in both.axes[:2]] == ["tanh", "relu"]
    for place, axes in enumerate(both.axes[:2]):
        np.testing.assert_array_equal(drawn(axes)[0], everything[place, :, :, 2])
        # Between 13 and 25 parameters, for 16 modes.
        assert {float(line.get_xdata()[0]) for line in axes.lines} == {1.5}
    assert both.axes[0].get_yticklabels()[0].get_text() == "1, standard"
    assert len(fb.canonical.singularity_plot(fractions, "tanh", 4.0).series) == 3


def test_heat_maps_can_be_read_without_colours(fractions):
    """The scale's luminance rises all along, and what is written in a cell has a contrast of 4 at least (WCAG)."""
    axes = fb.canonical.singularity_plot(fractions, "tanh").axes[0]
    image = axes.images[0]

    def luminance(colours):
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        return linear[..., :3] @ [0.2126, 0.7152, 0.0722]

    assert image.get_clim() == (0, 1)
    assert np.all(np.diff(luminance(image.cmap(np.linspace(0, 1, 64)))) > 0)
    cells = luminance(image.to_rgba(image.get_array(), norm=True)).ravel()
    for text, cell in zip(axes.texts[::2], cells, strict=True):
        ink = luminance(np.array(matplotlib.colors.to_rgb(text.get_color())))
        assert (max(ink, cell) + 0.05) / (min(ink, cell) + 0.05) > 4


def small():
    return fb.canonical.singularity_probability([4], seeds=1, scales=[1.0], activations=["relu"])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fb.canonical.singularity_probability([4], activations=["elu"]), UnknownNameError, "relu"),
        (lambda: fb.canonical.singularity_probability([], seeds=3), ParameterError, "at least 1"),
        (lambda: fb.canonical.singularity_plot(small(), "elu"), UnknownNameError, "relu"),
        (lambda: fb.canonical.singularity_plot(small(), "relu", 3.0), ParameterError, r"one of \[1.0\]"),
        (lambda: fb.canonical.singularity_plot(small(), level="1e-3"), UnknownNameError, "1e-08"),
        (lambda: fb.canonical.exact_spectrum(*spread(20), Basis([(0, 1)], 3)), MemoryBudgetError, "at most 40"),
        (lambda: fb.canonical.exact_spectrum(*spread(2), Basis([(0, 1)], 3, "fourier")), ParameterError, "cosine"),
        (lambda: fb.canonical.exact_spectrum(*spread(2, 1, 2), Basis([(0, 1)], 3)), ParameterError, "one output"),
        (
            lambda: fb.canonical.exact_spectrum(
                lambda w, x: w * jax.scipy.special.bessel_jn(x[0], v=2)[0], jnp.ones(()), Basis([(0, 1)], 2)
            ),
            PrecisionError,
            "mpmath",
        ),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
