"""Time and size of the report of a sweep with 1,000 points, each with eleven curves of 128 points.

    python benchmarks/study_page.py [POINTS]

The runs are made up, in a store as real ones are. Wanted: under 20 s and under 10 MB for 1,000 points.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import study_records
from fibration import report


def main(points: int) -> None:
    """Fill a store, and time what `fibration report` does with it."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        store, axes = study_records.sweep(Path(folder, "store"), seeds=max(1, points // 50), length=128)
        print(f"a store of {len(store.records()):,} runs made in {time.perf_counter() - begun:.1f} s")
        begun = time.perf_counter()
        records = store.records()
        read = time.perf_counter()
        page = report.study_page("A sweep", axes, records)
        described = time.perf_counter()
        path = report.write_page(page, Path(folder, "page.html"))
        ended = time.perf_counter()
        print(f"records {read - begun:.2f} s, page {described - read:.2f} s, file {ended - described:.2f} s")
        print(f"{len(records):,} points: {ended - begun:.2f} s, {path.stat().st_size / 1e6:.2f} MB, ", end="")
        print(f"{len(page.plots)} plots, {sum(len(table.rows) for table in page.tables):,} rows of tables")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
