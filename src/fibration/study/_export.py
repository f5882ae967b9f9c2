"""Results in the format of others."""

from os import PathLike
from pathlib import Path

from .._validation import writable_directory
from ..errors import StoreError
from ._records import RunRecord


def export_netcdf(record: RunRecord, directory: str | PathLike[str]) -> list[Path]:
    """Write each result of a run as a NetCDF file, `<run>-<name>.nc`; existing files are replaced.

    **Returns:** the files' paths.

    **Raises:** `StoreError` for a run without results, `OutputDirectoryError`.
    """
    if not record.results:
        raise StoreError(f"run {record.id} ({record.status}) has no results", "a run that wrote some", "run it first")
    place = writable_directory(directory)
    paths = [place / f"{record.id}-{name}.nc" for name in record.results]
    for name, path in zip(record.results, paths, strict=True):
        record.open(name).to_netcdf(path, engine="scipy")
    return paths
