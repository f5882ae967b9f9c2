"""Which page belongs to what a user names: a study, a run, or several runs."""

from collections.abc import Sequence

from ..errors import StoreError
from ..study import RunRecord, Store, StudyRecord
from ._page import Page
from ._run_page import run_page
from ._study_page import study_page


def page_of(store: Store, keys: Sequence[str]) -> Page:
    """Make the page of a study, of one run, or of several runs beside one another.

    **Arguments:** `keys`: a study's name, id or the beginning of it; or the ids, or their beginnings, of runs.

    **Raises:** `StoreError` if there is no such thing, or several, or nothing has begun.
    """
    if len(keys) == 1:
        study, missing = _study(store, keys[0])
        if study is not None:
            return page_of_study(store, study)
        try:
            return run_page(store.record(keys[0]))
        except StoreError as error:
            raise StoreError(
                f"{keys[0]!r} is neither a study ({missing}) nor a run ({error.given})",
                "the name or id of a study, or the id of a run, or the beginning of one",
                "see `fibration status` and `fibration list`",
            ) from error
    records = [store.record(key) for key in keys]
    return study_page("Several runs", {"seed": tuple({record.seed: None for record in records})}, records)


def page_of_study(store: Store, study: StudyRecord) -> Page:
    """Make the page of a study of the store, as far as it is."""
    records: list[RunRecord] = store.records(study=study.id)
    document = study.document
    axes = {str(axis): tuple(values) for axis, values in dict(document.get("axes", {})).items()}
    return study_page(study.name, axes, records, str(document.get("description", "")))


def _study(store: Store, key: str) -> tuple[StudyRecord | None, str]:
    try:
        return store.study(key), ""
    except StoreError as error:
        return None, error.given
