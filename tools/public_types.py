"""Check that the types of the public API are complete: `basedpyright --verifytypes`, its answer read.

Types of libraries that do not annotate everything are not ours to complete, so they are ignored.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    # basedpyright finds the package through the `python` on the path.
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ.get("PATH", "")}
    command = [f"{scripts}/basedpyright", "--verifytypes", "fibration", "--ignoreexternal", "--outputjson"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    answer = json.loads(run.stdout)
    report = answer["typeCompleteness"]
    # A class is left without a complaint of its own if it derives from one that another library does not annotate.
    incomplete = [s for s in report["symbols"] if s["isExported"] and not s["isTypeKnown"] and s["diagnostics"]]
    for symbol in incomplete:
        reasons = "; ".join(d["message"].splitlines()[0] for d in symbol["diagnostics"])
        print(f"{symbol['name']}: {reasons}")
    counts = report["exportedSymbolCounts"]
    print(f"{counts['withKnownType']} exported symbols with known types, {len(incomplete)} without")
    return int(bool(incomplete) or not counts["withKnownType"])


if __name__ == "__main__":
    sys.exit(main())
