"""Facts about the machine and the libraries of a run."""

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import jax

from .._version import __version__

EXTRAS = {
    "report": ("jinja2", "matplotlib", "plotly", "tornado"),
    "scale": ("dask", "distributed", "pyarrow"),
    "flax": ("flax",),
    "nufft": ("jax_finufft",),
    "torch": ("torch", "torchax"),
}


def machine_facts() -> dict[str, Any]:
    """Tell versions, devices and precision, by name.

    ```python
    >>> import fibration as fb
    >>> fb.study.machine_facts()["fibration"] == fb.__version__
    True

    ```
    """
    packages = {name: importlib.metadata.version(name) for name in ("jax", "equinox", "diffrax", "optax", "numpy")}
    return {
        "fibration": __version__,
        "python": platform.python_version(),
        **packages,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu cores": os.cpu_count(),
        "devices": ", ".join(str(device) for device in jax.devices()),
        "backend": jax.default_backend(),
        "float64": "on" if jax.config.read("jax_enable_x64") else "off",
    }


def extras() -> dict[str, list[str]]:
    """Tell for each extra which of its packages are missing; an empty list is a complete extra.

    ```python
    >>> import fibration as fb
    >>> sorted(fb.study.extras())
    ['flax', 'nufft', 'report', 'scale', 'torch']

    ```
    """
    return {extra: [name for name in packages if not _installed(name)] for extra, packages in EXTRAS.items()}


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # what a broken or a blocked installation raises
        return False
