"""Every test computes in float64; the doctests of `src` show JAX's default."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield
