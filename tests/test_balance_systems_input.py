"""Linear systems: the objects and types of arrays that come in and go out, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from fibration.balance import _systems as S
from fibration.errors import (
    FibrationError,
    NonFiniteDataError,
    ParameterError,
    ShapeError,
    UnknownNameError,
    UnstableSystemError,
)
from linear_systems import random_system


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_scipy_objects(rng):
    A, B, C = random_system(rng, 5)
    D = rng.normal(size=(3, 2))
    reduced, bound = S.truncate(scipy.signal.StateSpace(A, B, C, D), order=2)
    expected = S.truncate(A, B, C, D, order=2)
    assert isinstance(reduced, scipy.signal.StateSpace)
    assert isinstance(reduced, scipy.signal.lti)
    np.testing.assert_array_equal(reduced.A, expected.system.A)
    assert bound == expected.error_bound
    A, B, C = random_system(rng, 5, discrete=True)
    system = scipy.signal.dlti(A, B, C, D, dt=0.1)
    reduced, _ = S.truncate(system, tolerance=1.0)
    assert isinstance(reduced, scipy.signal.dlti)
    assert reduced.dt == 0.1
    np.testing.assert_array_equal(S.gramians(system)[0], S.gramians(A, B, C, dt=0.1)[0])
    np.testing.assert_array_equal(S.realization(system).A, S.realization(A, B, C, dt=0.1).A)
    again = S.truncate(S.LinearSystem(A, B, C, D, 0.1), tolerance=1.0).system
    assert isinstance(again, S.LinearSystem)
    np.testing.assert_array_equal(again.A, reduced.A)


def test_kinds_and_types_of_arrays(rng):
    system = random_system(rng, 4)
    for dtype in (np.float32, np.float16, jnp.bfloat16):
        rounded = [M.astype(dtype) for M in system]
        found = S.realization(*rounded)
        exact = S.realization(*(M.astype(float) for M in rounded))
        assert all(isinstance(M, np.ndarray) and M.dtype == dtype for M in found)
        np.testing.assert_array_equal(found.hsv, exact.hsv.astype(dtype))
    found = S.truncate(*map(jnp.asarray, system), order=2)
    assert isinstance(found.system.A, jax.Array)
    np.testing.assert_allclose(found.system.A, S.truncate(*system, order=2).system.A, rtol=1e-14)
    values = S.hankel_singular_values(*(jnp.asarray(M, jnp.complex64) for M in system))
    assert isinstance(values, jax.Array)
    assert values.dtype == jnp.float32
    integers = S.gramians(np.array([[-1]]), np.array([[2]]), np.array([[4]]))
    np.testing.assert_allclose(integers, [[[2.0]], [[8.0]]], rtol=1e-15)


# Bad input

a, b, c = np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2))
BAD = {
    "A not square": (lambda: S.gramians(np.ones((2, 3)), b, c), ShapeError, r"\(2, 3\)"),
    "B too short": (lambda: S.gramians(a, np.ones((3, 1)), c), ShapeError, r"\(3, 1\)"),
    "B a vector": (lambda: S.gramians(a, np.ones(2), c), ShapeError, "B has shape"),
    "D of another shape": (lambda: S.truncate(a, b, c, np.ones((2, 2)), order=1), ShapeError, "D of shape"),
    "no C": (lambda: S.gramians(a, b), ShapeError, "without C"),
    "only A": (lambda: S.gramians(a), ShapeError, "one argument, of type ndarray"),
    "transfer function": (lambda: S.gramians(scipy.signal.TransferFunction([1], [1, 1])), ShapeError, "to_ss|attrib"),
    "D beside an object": (lambda: S.truncate(S.LinearSystem(a, b, c, None), D=1, order=1), ParameterError, "D or dt"),
    "NaN": (lambda: S.realization(a * np.nan, b, c), NonFiniteDataError, "A holds"),
    "infinite C": (lambda: S.realization(a, b, c / 0.0), NonFiniteDataError, "C holds"),
    "integrator": (lambda: S.gramians(a * [[1], [0]], b, c), UnstableSystemError, r"1 marginal pole \(0\)"),
    "oscillator": (
        lambda: S.truncate(np.array([[0.0, 1], [-1, 0]]), b, c, order=1, unstable="split"),
        UnstableSystemError,
        r"2 marginal poles .*imaginary axis",
    ),
    "delay sum": (lambda: S.gramians(np.eye(2), b, c, dt=1), UnstableSystemError, "on the unit circle"),
    "unstable": (lambda: S.gramians(-a, b, c), UnstableSystemError, r"2 unstable poles \("),
    "continuous read as discrete": (lambda: S.gramians(a * 2, b, c, dt=1), UnstableSystemError, "unit circle"),
    "neither": (lambda: S.truncate(a, b, c), ParameterError, "order = None and tolerance = None"),
    "both": (lambda: S.truncate(a, b, c, order=1, tolerance=1.0), ParameterError, "one of the two"),
    "order too high": (lambda: S.truncate(a, b, c, order=3), ParameterError, "0, 1, 2"),
    "order negative": (lambda: S.truncate(a, b, c, order=-1), ParameterError, "0, 1, 2"),
    "order not whole": (lambda: S.truncate(a, b, c, order=1.5), ParameterError, "whole number"),
    "tolerance negative": (lambda: S.truncate(a, b, c, tolerance=-1.0), ParameterError, "tolerance"),
    "tolerance NaN": (lambda: S.truncate(a, b, c, tolerance=np.nan), ParameterError, "tolerance"),
    "tolerance text": (lambda: S.truncate(a, b, c, tolerance="small"), ParameterError, "a number"),
    "dt negative": (lambda: S.gramians(a, b, c, dt=-0.1), ParameterError, "dt = -0.1"),
    "dt NaN": (lambda: S.gramians(a, b, c, dt=np.nan), ParameterError, "dt = nan"),
    "dt text": (lambda: S.gramians(a, b, c, dt="continuous"), ParameterError, "dt = 'continuous'"),
    "dt False": (lambda: S.gramians(a, b, c, dt=False), ParameterError, "dt = False"),
    "unstable misspelt": (lambda: S.truncate(a, b, c, order=1, unstable="spilt"), UnknownNameError, "'split'"),
    "traced": (lambda: jax.jit(S.hankel_singular_values)(a, b, c), ParameterError, "JAX transformation"),
    "nothing reachable": (lambda: S.realization(a, 0 * b, c), FibrationError, "D is all there is"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert caught.value.given
    assert caught.value.fix


def test_without_a_reachable_state_the_constant_is_left():
    D = np.array([[3.0]])
    found = S.truncate(a, 0 * b, c, D, order=0)
    assert (found.system.A.shape, found.error_bound) == ((0, 0), 0.0)
    assert np.array_equal(found.system.D, D)
    apart = S.truncate(np.diag([-1.0, 2.0]), np.array([[0.0], [1.0]]), c, D, order=1, unstable="split")
    assert (apart.kept, apart.unstable, apart.error_bound) == (0, 1, 0.0)
    np.testing.assert_allclose(apart.system.A, [[2.0]])
