"""The optional packages that draw."""

from collections.abc import Generator
from contextlib import contextmanager

from ..errors import MissingExtraError


@contextmanager
def report_extra() -> Generator[None, None, None]:
    """Turn an import that fails into a `MissingExtraError` that names the command to run."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed", "the extra `report`", "pip install 'fibration[report]'"
        ) from error
