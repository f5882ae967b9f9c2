"""What several commands share: the terminal, and what is checked before work."""

from pathlib import Path

from rich.console import Console

from .. import study
from .._validation import writable_directory
from ..errors import MissingExtraError


def console(width: int) -> Console:
    """Print so wide that no line is folded in a file or a bug report; on a terminal, as wide as it is."""
    return Console(width=None if Console().is_terminal else width)


def check_before_work(out: Path) -> None:
    """Say before minutes of work, not after them, what would keep the page from being written."""
    writable_directory(out)
    check_extra()


def check_extra() -> None:
    if missing := study.extras()["report"]:
        raise MissingExtraError(
            f"{', '.join(missing)} cannot be imported", "the extra `report`", "pip install 'fibration[report]'"
        )
