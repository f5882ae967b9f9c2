"""A progress bar for runs."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..solvers import Progress as Report
from ..solvers._options import ProgressCallback


class ProgressBar:
    """A progress bar on standard error: one line for each run, with its time, cost and gradient evaluations.

    Pass it to a run, `progress=fb.study.ProgressBar()`, or as a context manager make a line for each of several runs
    with `task(description)`. It draws only on a terminal; a file gets nothing but each run's last line.

    ```python
    with fb.study.ProgressBar() as bar:
        fb.integrate(problem, fb.GradientFlow(), params, t1=10.0, progress=bar.task("flow"))
    ```
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True) if console is None else console,
        )
        self._own: ProgressCallback | None = None

    def __enter__(self) -> "ProgressBar":
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bars.stop()

    def task(self, description: str) -> ProgressCallback:
        """Make the progress callback of one run, drawn under this description."""
        line = self._bars.add_task(description, total=1.0, state="compiling", start=True)

        def update(report: Report) -> None:
            cost = "" if report.cost is None else f"cost {report.cost:.3e}  "
            state = f"t = {report.time:<9.4g} {cost}{report.gradient_evaluations:,} gradients"
            self._bars.update(line, completed=report.fraction, state=state)

        return update

    def __call__(self, report: Report) -> None:
        """Report the progress of a single run."""
        if self._own is None:
            self._bars.start()
            self._own = self.task("running")
        self._own(report)
        if report.finished:
            self._bars.stop()
            self._own = None
