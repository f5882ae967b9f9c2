"""Write the tables of docs/benchmarks.md anew from benchmarks/results/*.json, between its markers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOLVERS = (
    "fibration auto",
    "fibration rkc2",
    "fibration rock4",
    "diffrax Tsit5",
    "diffrax Dopri8",
    "scipy LSODA",
    "scipy BDF",
    "scipy Radau",
    "diffrax Kvaerno5",
    "torchdiffeq dopri5",
    "RK4, step 1/sharpness",
    "Euler, step 1.8/sharpness",
    "Euler, step 0.2/sharpness",
)


def gradient_flow(results: dict[str, Any]) -> str:
    """One table for each problem."""
    parts = []
    for name in ("A", "B", "C", "D", "quadratic"):
        problem = results["problems"][name]
        rows = sorted(problem["rows"], key=lambda row: (SOLVERS.index(row["solver"]), -(row["rtol"] or 0)))
        lines = [
            f"### {name[0].upper()}{name[1:]}: {problem['title']}",
            "",
            f"{problem['parameters']:,} parameters, t = 0 to {problem['t1']:,.0f}.",
            "",
            "| solver | rtol | gradients | seconds | first run | MB | relative error |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            rtol = "" if row["rtol"] is None else f"{row['rtol']:.0e}"
            lines.append(
                f"| {row['solver']} | {rtol} | {row['gradients']:,} | {row['seconds']:.2f} | {row['first']:.1f} | "
                f"{row['megabytes']:.0f} | {row['error']:.1e} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


WRITERS: dict[str, Callable[[dict[str, Any]], str]] = {"gradient_flow": gradient_flow}


def main() -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text()
    for name, write in WRITERS.items():
        results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{write(results)}\n\n{end}{rest.split(end)[1]}"
    page.write_text(text)


if __name__ == "__main__":
    main()
