"""Every test computes in float64; the doctests of `src` show JAX's default."""

import hypothesis
import jax
import pytest

# What these modules assert is shown with its values, as in a test.
pytest.register_assert_rewrite("driven_pages", "seeded_stores", "serving", "stores", "study_pages")

# No test is timed: machines are shared, and first calls compile.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield
