"""Study files and commands for the tests of studies."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("fibration")

SMALL = """
name = "small"
seeds = {seeds}
data = {{ source = "waves", samples = 8 }}
network = {{ kind = "mlp", hidden = [3] }}
[runs.long]
kind = "descent"
step_size = 0.01
steps = {steps}
saves = 5
[diagnostics]
sharpness = false
fidelity = false
[budget]
checkpoint_seconds = 0.2
{more}
"""


def small(path, *, seeds=1, steps=200, more=""):
    """Write a study of one descent; a million steps take seconds."""
    path.write_text(SMALL.format(seeds=seeds, steps=steps, more=more), "utf-8")
    return path


def start(*arguments, folder, **environment):
    """Start the command in a folder."""
    return subprocess.Popen(
        [str(COMMAND), *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(*arguments, folder, **environment):
    """Run the command to its end."""
    process = start(*arguments, folder=folder, **environment)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err
