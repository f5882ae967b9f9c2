"""Run every Python example of the README and of the docs pages, in the order that a reader would."""

import gc
import os

import jax
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _reset(namespace):  # noqa: ARG001
    # The examples turn float64 on, as a reader would; the next document starts without it.
    jax.config.update("jax_enable_x64", False)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    teardown=_reset,
).pytest()


@pytest.fixture(autouse=True, scope="session")
def _share_compiled(tmp_path_factory):
    # Most of the time goes into compiling; what one test compiled, the others load.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # Processes that tests start share another: what a killed one leaves half written is no harm to this one.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled_by_processes"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled():
    # A thousand tests compile so many programs that a process runs out of memory maps.
    yield
    jax.clear_caches()
    gc.collect()
