"""Check that every public symbol is on a page of the built documentation: public_symbols.py SITE.

A symbol is public if the `__all__` of `fibration` or of one of its rooms names it; it is on a page if the inventory
that mkdocstrings wrote (`objects.inv`) lists it under one of its public names.
"""

import importlib
import inspect
import sys
import zlib
from pathlib import Path

import fibration

ROOMS = [name for name in fibration.__all__ if inspect.ismodule(getattr(fibration, name))]


def documented(site: Path) -> set[str]:
    raw = (site / "objects.inv").read_bytes()
    body = raw.split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(body).decode().splitlines()}


def public() -> list[set[str]]:
    """List the public symbols, each as the set of names that it can be reached by."""
    names: dict[int, set[str]] = {}
    for path in ["fibration", *(f"fibration.{room}" for room in ROOMS)]:
        module = importlib.import_module(path)
        for name in module.__all__:
            if not (name.startswith("__") or inspect.ismodule(getattr(module, name))):
                names.setdefault(id(getattr(module, name)), set()).add(f"{path}.{name}")
    return list(names.values())


def main() -> int:
    found = documented(Path(sys.argv[1]))
    missing = sorted(min(names) for names in public() if not names & found)
    for name in missing:
        print(f"{name} is public but on no page of the documentation: add it to a page under docs/api/")
    print(f"{len(public())} public symbols, {len(missing)} without a page")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
