"""Optional packages in tests: absent, they skip the test, or fail it where the environment promises to have them."""

import importlib
import importlib.util
import os
from typing import Any

import pytest


def optional(name: str, extra: str, *, load: bool = True) -> Any:
    """Import a package of an extra, or only look whether it is there, for the test or fixture that calls this.

    Without the package the test is skipped, and failed if FIBRATION_REQUIRE_OPTIONAL is 1, so that a job which installs
    the extras cannot pass by skipping their tests.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        return importlib.import_module(name) if load else None
    message = f"needs the {extra} extra: {name} is not installed"
    if os.environ.get("FIBRATION_REQUIRE_OPTIONAL") == "1":
        pytest.fail(message)
    pytest.skip(message)
