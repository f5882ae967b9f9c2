"""The commands about studies: new, run, status, resume, report, compare, list, export, serve."""

import shlex
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .. import report, study
from ..errors import OutputDirectoryError, ParameterError
from ._common import check_extra, console

StorePath = Annotated[
    Path, typer.Option("--store", envvar="FIBRATION_STORE", help="The directory that holds the runs.")
]
Retry = Annotated[bool, typer.Option("--retry", help="Also run points again that failed.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        help='Run points at the same time: "local", a process for each core, or a dask scheduler\'s "tcp://host:port". '
        'By default "local" where there are several points, and "none" for one.'
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="How many processes, with --cluster local.")]
DEFAULT = Path("fibration-store")


class Template(StrEnum):
    """The study files that `fibration new` writes."""

    SWEEP = "sweep"
    DEMO = "demo"


def new(
    path: Annotated[Path, typer.Argument(help="The file to write; nothing may be there.")] = Path("study.toml"),
    template: Annotated[Template, typer.Option(help="What to begin with.")] = Template.SWEEP,
) -> None:
    """Write a study file with comments, to change and run."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(study.template(template.value).read_text("utf-8"))
    except FileExistsError:
        raise ParameterError(f"{str(path)!r} exists", "a new file", "give another name: `fibration new NAME`") from None
    except OSError as error:
        raise OutputDirectoryError(
            f"{str(path)!r} cannot be written: {error.strerror}", "a directory that can be written to", "name another"
        ) from error
    points = len(study.read_study(path).points)
    print(f"{path}: {points} point{'s' if points > 1 else ''}. Next: fibration run {shlex.quote(str(path))}")


def run(
    path: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    store: StorePath = DEFAULT,
    cluster: Cluster = None,
    workers: Workers = None,
    retry: Retry = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One problem over all devices of several hosts (JAX's environment).")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check the file, and count its points.")] = False,
) -> None:
    """Run every point of a study that the store does not hold yet; what was killed goes on where it was."""
    file = study.read_study(path)
    if check:
        study.check_data(file)
        print(f"{path} is in order: {len(file.points)} points over {', '.join(file.axes)}")
        return
    mesh = None
    if distributed:
        if cluster not in (None, "none"):
            raise ParameterError(
                f"--distributed with --cluster {cluster}", "one of them", "shard one problem, or spread many points"
            )
        study.initialize_distributed()
        mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
    _finish(_run(file, store, cluster, workers, retry, mesh), store)


def resume(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, id, or the beginning of it.")],
    store: StorePath = DEFAULT,
    cluster: Cluster = None,
    workers: Workers = None,
    retry: Retry = False,
) -> None:
    """Go on with a study of the store: what was interrupted continues from its checkpoints."""
    held = study.Store(store)
    _finish(_run(study.stored_study(held, name), store, cluster, workers, retry, None), store)


def status(
    name: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="One study; by default all.")] = None,
    store: StorePath = DEFAULT,
) -> None:
    """Tell how far the studies of a store are."""
    held = study.Store(store)
    table = Table("study", "id", "points", "done", "running", "interrupted", "failed", "damaged", "not begun")
    failures: list[str] = []
    for one in held.studies() if name is None else [held.study(name)]:
        records = held.records(study=one.id)
        counts = Counter(record.status for record in records)
        missing = len(one.points) - len(records)
        shown = [str(counts[key]) for key in ("done", "running", "interrupted", "failed", "damaged")]
        table.add_row(Text(one.name), one.id, str(len(one.points)), *shown, str(missing))
        failures += [f"{record.id}: {_last_line(record.error)}" for record in records
                     if record.status in ("failed", "damaged")]  # fmt: skip
    console(140).print(table)
    for line in failures[:20]:
        print(line)
    if len(failures) > 20:
        print(f"and {len(failures) - 20} more")


def list_runs(
    store: StorePath = DEFAULT,
    name: Annotated[str | None, typer.Option("--study", help="Only the runs of this study.")] = None,
    state: Annotated[str | None, typer.Option("--status", help="Only runs with this status.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many, the latest; 0 for all.")] = 50,
) -> None:
    """List runs, the latest last."""
    records = study.Store(store).records(study=name, status=state)
    shown = records[-limit:] if limit else records
    table = Table("run", "status", "seed", "network", "data", "seconds", "created")
    for record in shown:
        facts = study.facts_of(record)
        table.add_row(
            record.id, record.status, str(record.seed), Text(str(facts["network"])), Text(str(facts["data"])),
            f"{record.seconds:.3g}", record.created,
        )  # fmt: skip
    console(160).print(table)
    print(f"{len(shown)} of {len(records)} runs")


def report_runs(
    runs: Annotated[list[str], typer.Argument(metavar="STUDY_OR_RUN…", help="A study, or runs, by name or id.")],
    store: StorePath = DEFAULT,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """Draw a page: of a study with its sweep, or of single runs."""
    check_extra()
    held = study.Store(store)
    print(f"The page: {report.write_page(report.page_of(held, runs), out).resolve()}")


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="Another one.")],
    store: StorePath = DEFAULT,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("compare.html"),
) -> None:
    """Draw a page of two runs side by side."""
    check_extra()
    held = study.Store(store)
    page = report.compare_page(held.record(first), held.record(second))
    print(f"The page: {report.write_page(page, out).resolve()}")


def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")],
    store: StorePath = DEFAULT,
    netcdf: Annotated[bool, typer.Option("--netcdf", help="As NetCDF, the format that there is.")] = True,
    out: Annotated[Path, typer.Option(help="The directory for a file of each result.")] = Path("."),
) -> None:
    """Write the results of a run as NetCDF files."""
    del netcdf
    for path in study.export_netcdf(study.Store(store).record(name), out):
        print(path)


def serve(
    store: StorePath = DEFAULT,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token: Annotated[
        str | None, typer.Option(envvar="FIBRATION_TOKEN", help="What visitors show; made unless HOST is loopback.")
    ] = None,
) -> None:
    """Show the pages of a store in a browser while runs go on; reads only."""
    check_extra()
    report.serve(study.Store(store, read_only=True), host=host, port=port, token=token, announce=print)


def _run(
    file: study.StudyFile, store: Path, cluster: str | None, workers: int | None, retry: bool, mesh: object
) -> study.StudyOutcome:
    """Run with a progress bar: of points on a cluster, of flows and descents without."""
    try:
        return _run_shown(file, store, cluster, workers, retry, mesh)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last checkpoints.", file=sys.stderr)
        raise typer.Exit(130) from None


def _run_shown(
    file: study.StudyFile, store: Path, cluster: str | None, workers: int | None, retry: bool, mesh: object
) -> study.StudyOutcome:
    several = len(file.points) > 1 and mesh is None
    cluster = ("local" if several else "none") if cluster is None else cluster
    if cluster == "none":
        with study.ProgressBar() as bar:
            return study.run_study(file, store, retry=retry, mesh=mesh, progress=bar.task)
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal) as bars:
        line = bars.add_task("points", total=len(file.points))
        return study.run_study(
            file, store, cluster=cluster, workers=workers, retry=retry, each=lambda *_: bars.advance(line)
        )


def _finish(outcome: study.StudyOutcome, store: Path) -> None:
    """Say how it went, and what to do next; the exit status tells whether all is done."""
    print(outcome)
    option = "" if store == DEFAULT else f" --store {shlex.quote(str(store))}"
    for run_id in [run_id for run_id, what in outcome.outcomes.items() if what == "failed"][:3]:
        print(f"{run_id} failed: {_last_line(study.Store(store).record(run_id).error)}")
    if outcome.complete:
        print(f"Next: fibration report {outcome.study.id}{option}")
        return
    if "busy" in outcome.outcomes.values():
        print("Another process runs what is busy; `fibration status` tells how far it is.")
    again = " --retry" if "failed" in outcome.outcomes.values() else ""
    print(f"Next: fibration resume {outcome.study.id}{again}{option}")
    raise typer.Exit(1)


def _last_line(error: str | None) -> str:
    """Take the complaint out of a traceback."""
    lines = [line.strip() for line in (error or "").splitlines()]
    lines = [line for line in lines if line.strip("-") and not line.startswith("For simplicity, JAX has removed")]
    return lines[-1][:300] if lines else "see its report"
