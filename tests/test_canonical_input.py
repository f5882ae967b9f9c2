"""What canonical coordinates refuse, by name: wrong input, and values that a transformation of JAX hides."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from canonical_line import LINE, PLANE, affine, small_problem
from fibration import canonical as C
from fibration.canonical import Basis, quadrature
from fibration.errors import (
    ApplyError,
    EmptyDataError,
    MemoryBudgetError,
    NonFiniteDataError,
    ParameterError,
    PrecisionError,
    ShapeError,
    UnknownNameError,
)

# Transformations of JAX.


def test_what_looks_at_values_says_so_when_it_is_traced():
    apply, problem = affine, small_problem()
    calls = [
        (lambda w: C.coordinates(apply, w, LINE), "quadrature"),
        (lambda w: C.disparity(apply, w, LINE), "quadrature"),
        (lambda w: C.disparity_operator(apply, w, LINE).mv(jnp.ones((4, 1))), "quadrature"),
        (lambda w: C.stall_index(problem, w, LINE), "quadrature"),
        (lambda w: C.speeds(apply, w, LINE), "quadrature"),
        (lambda w: C.resolve(apply, w, LINE).theta, "outside"),
        (lambda w: C.rank_report(apply, w, LINE, rule=quadrature(LINE)), "outside"),
        (lambda w: C.breakpoints(apply, w, LINE), "outside"),
        (lambda w: C.lazy_certificate(problem, w), "outside"),
        (lambda w: C.exact_spectrum(apply, w, LINE), "outside"),
        (lambda w: C.convexity(problem, w, LINE), "outside"),
    ]
    for call, fix in calls:
        with pytest.raises(ParameterError, match=f"inside a JAX transformation.*{fix}"):
            jax.jit(call)(1.0)
    slopes = jax.grad(lambda w: C.coordinates(apply, w, LINE, rule=quadrature(LINE))[0, 0])(1.0)
    assert slopes == pytest.approx(0.5)


# Wrong input, by name.

BAD = {
    "degree": ([lambda v=v: Basis((0, 1), v) for v in ("3", np.nan, np.inf, None, [3], -1, 1.5)], ParameterError),
    "mend_degree": ([lambda v=v: Basis((0, 1), v) for v in (1e30, 3 * 10**8, 2 * 10**7)], MemoryBudgetError),
    "index_set": ([lambda: Basis((0, 1), 3, index_set=["l1"])], UnknownNameError),
    "box|bound": (
        [lambda v=v: Basis(v, 3) for v in ("x", [(0, 1), (0,)], None, (0, 1j), ["0", "1"])],
        ShapeError,
    ),
    "box's side": ([lambda v=v: Basis(v, 3) for v in ((-1e308, 1e308), (0, np.nan))], NonFiniteDataError),
    "theta": (
        [
            lambda: LINE.synthesise(np.ones(3), np.ones((1, 1))),
            lambda: LINE.energy([1.0, 2.0]),
            lambda: C.projected_cost(small_problem(), "abc", LINE),
            lambda: C.projected_cost(small_problem(), None, LINE),
            lambda: C.projected_gradient(small_problem(), np.ones((4, 2)), LINE),
        ],
        ShapeError,
    ),
    "complex": (
        [
            lambda: C.projected_cost(small_problem(), 1j * np.ones(4), LINE),
            lambda: C.fit(LINE, np.ones((2, 1)), 1j * np.ones(2)),
        ],
        ParameterError,
    ),
    "basis is 3": (
        [
            lambda: C.coordinates(affine, 1.0, 3),
            lambda: C.resolve(affine, 1.0, 3),
            lambda: C.breakpoints(affine, 1.0, 3),
            lambda: C.disparity_operator(affine, 1.0, 3),
            lambda: C.projected_cost(small_problem(), np.ones(4), 3),
            lambda: C.fit(3, np.ones((2, 1)), np.ones(2)),
            lambda: C.observer(3),
            lambda: C.exact_spectrum(affine, 1.0, 3),
            lambda: C.convexity(small_problem(), 1.0, 3),
            lambda: quadrature(3),
        ],
        ParameterError,
    ),
    "rule is 'gauss'": (
        [lambda: C.disparity(affine, 1.0, LINE, rule="gauss"), lambda: C.observer(LINE, rule="gauss")],
        ParameterError,
    ),
    "nodes": ([lambda v=v: quadrature(LINE, nodes=v) for v in ("5", 5.5, np.nan, 0)], ParameterError),
    "breakpoints": (
        [lambda: quadrature(LINE, breakpoints="x"), lambda: quadrature(PLANE, breakpoints=[0.5])],
        ParameterError,
    ),
    "breakpoints hold": ([lambda: quadrature(LINE, breakpoints=[np.nan])], NonFiniteDataError),
    "at most 2048 Gauss": ([lambda: quadrature(LINE, "gauss", nodes=100_000)], MemoryBudgetError),
    "lattice of 300000000": ([lambda: quadrature(Basis([(0, 1)] * 4, 1), nodes=3 * 10**8)], MemoryBudgetError),
    "tolerance": ([lambda: C.resolve(affine, 1.0, LINE, tolerance="x")], ParameterError),
    "draws": ([lambda v=v: C.lazy_certificate(small_problem(), 1.0, draws=v) for v in (0, 2.5)], ParameterError),
    "lines|points|length": (
        [
            lambda k=k, v=v: C.convexity(small_problem(), 1.0, LINE, **{k: v})
            for k, v in (("lines", 0), ("points", 2), ("length", 0))
        ],
        ParameterError,
    ),
    "widths|seeds|scale|activations": (
        [
            lambda: C.singularity_probability(4),
            lambda: C.singularity_probability([4], seeds=[0, 1]),
            lambda: C.singularity_probability([4], scales=[]),
            lambda: C.singularity_probability([4], scales=[np.nan]),
            lambda: C.singularity_probability([4], activations="tanh"),
        ],
        ParameterError,
    ),
    "scale = 1e": ([lambda: C.singularity_probability([4], scales=[1e7])], MemoryBudgetError),
    "width": ([lambda v=v: C.relu_singularity(v, 3) for v in (2.5, -1)], ParameterError),
    "times": (
        [
            lambda: C.settling_times(np.ones((3, 1)), np.ones(1), np.ones(2)),
            lambda: C.settling_times([], [], []),
            lambda: C.settling_times("x", np.ones(1), np.ones(2)),
        ],
        ShapeError,
    ),
    "has shape": (
        [
            lambda: C.spectrum_plot([0, 1], [1.0, 2.0]),
            lambda: C.spectrum_plot([], np.ones((0, 3))),
            lambda: C.frequency_plot([0, 1], np.ones((2, 3)), np.ones(2), [0, 1, 2]),
            lambda: C.frequency_plot([0, 1], np.ones((2, 3)), np.ones(3), [0, 1]),
        ],
        ShapeError,
    ),
    "found is": ([lambda: C.landscape_plots(3), lambda: C.singularity_plot(None, "relu", 1.0)], ParameterError),
    "no samples": ([lambda: C.fit(LINE, np.ones((0, 1)), np.ones(0))], EmptyDataError),
    r"shape \(0,\)": ([lambda: C.disparity(lambda w, x: w * x[:0], 1.0, LINE)], ApplyError),
    "digits|nodes is": (
        [
            lambda k=k, v=v: C.exact_spectrum(affine, 1.0, LINE, **{k: v})
            for k, v in (("digits", 0), ("digits", -3), ("digits", "6"), ("nodes", 0))
        ],
        ParameterError,
    ),
    "no real value": ([lambda: C.exact_spectrum(lambda w, x: x / w, 0.0, LINE, nodes=2)], PrecisionError),
    "doubling": ([lambda: C.exact_spectrum(lambda w, x: jax.nn.relu(x - w), 0.3, LINE, nodes=4)], PrecisionError),
    "one class": (
        [lambda: C.rank_report(affine, 1.0, LINE, fb.Problem(affine, [[0.5]], [0], loss=fb.CrossEntropy(n_classes=1)))],
        ParameterError,
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_named(text):
    calls, error = BAD[text]
    for call in calls:
        with pytest.raises(error, match=re.sub("^mend_", "", text)):
            call()


def test_whole_numbers_of_any_type_are_taken():
    assert Basis((0, 1), np.array(3)).degree == Basis((0, 1), 3.0).degree == 3


def test_errors_say_what_helps():
    with pytest.raises(ShapeError) as said:
        Basis("x", 3)
    assert "samples" not in str(said.value)
    with pytest.raises(ParameterError) as said:
        quadrature(PLANE, breakpoints=[0.5])
    assert "gauss" not in str(said.value)
