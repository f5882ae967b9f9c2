"""Every test computes in float64; the doctests of `src` show JAX's default."""

import hypothesis
import jax
import pytest

# No test is timed: machines are shared, and first calls compile.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield
