"""What a live page has beyond an offline one: a banner with the way to other pages, links, and a script that asks."""

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Iterable
from functools import cache

from ._served_look import Look, Route, SeenRun

LONGEST_LIST = 1000
_CELL = re.compile(r"(<t[hd]\b[^>]*>)([a-z0-9-]{1,64})(</t[hd]>)")
_STYLE = """
html { scroll-padding-top: 3rem; }
#live { position: sticky; top: 0; z-index: 9; margin: 0; padding: .4rem 1.25rem; background: #20303c; color: #fff; }
#live a { color: #9fd4ff; }
#live > a, #live > span { display: inline-block; margin-right: 1rem; padding: 0; }
#live details { display: inline-block; max-width: 100%; margin: 0; vertical-align: top; }
#live summary { cursor: pointer; }
#live ul { display: block; max-height: 50vh; margin: .3rem 0; padding: 0 1.5rem 0 1.1rem; overflow: auto; }
@media print { #live { display: none; } }
"""


@cache
def live_script() -> str:
    """Give the script of live pages."""
    return importlib.resources.files(__package__ or __name__).joinpath("live.js").read_text("utf-8")


@cache
def live_hash() -> str:
    """Name the script of live pages in a content security policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(live_script().encode()).digest()).decode() + "'"


def banner(route: Route, seen: Look, state: str) -> str:
    """Make the banner of a page: where one is, how far it is, and where one can go from here."""
    kind, *ids = route
    address = "/api/status" + ("" if kind == "index" else "/" + "/".join(route))
    links = [_link("/", "All studies")] if kind != "index" else []
    lists: list[str] = []
    if kind == "study":
        study = seen.study(ids[0])
        lists = [_list("Runs", ((f"/run/{run.id}", run) for run in (study.runs if study else ())))]
    elif kind == "run":
        studies = seen.studies_of(ids[0])
        links += [_link(f"/study/{study.id}", study.name) for study in studies[:5]]
        near = {run.id: run for study in studies for run in study.runs} or {run.id: run for run in seen.loose}
        others = (run for name, run in near.items() if name != ids[0])
        lists = [_list("Compare with", ((f"/compare/{ids[0]}/{run.id}", run) for run in others))]
    elif kind == "compare":
        links += [_link(f"/run/{name}", name) for name in ids]
    told = html.escape(seen.told(route))
    return (
        f'<nav id="live" aria-label="The store" data-state="{state}" data-status="{address}">\n'
        f'<style>{_STYLE}</style>\n{"".join(links)}<span id="live-told" role="status">{told}</span>'
        f'<span id="live-time"></span>{"".join(lists)}\n</nav>\n'
    )


def with_links(contents: str, route: Route, seen: Look) -> str:
    """Make links of the cells of tables that hold the name of a run or a study, and nothing else."""
    studies = {study.id for study in seen.studies}

    def linked(cell: re.Match[str]) -> str:
        name = cell[2]
        kind = "run" if name in seen.runs else "study" if name in studies else ""
        if not kind or (kind, name) == route:
            return cell[0]
        return f"{cell[1]}{_link(f'/{kind}/{name}', name)}{cell[3]}"

    return _CELL.sub(linked, contents)


def _list(title: str, runs: Iterable[tuple[str, SeenRun]]) -> str:
    """Make a list that opens, the latest runs first."""
    every = list(runs)[::-1]
    if not every:
        return ""
    rows = [
        f"<li>{_link(address, run.id)} {html.escape(f'{run.status}, {run.about}')}</li>"
        for address, run in every[:LONGEST_LIST]
    ]
    if len(every) > LONGEST_LIST:
        rows.append(f"<li>and {len(every) - LONGEST_LIST} more: <code>fibration list</code></li>")
    return f"<details><summary>{title}</summary><ul>{''.join(rows)}</ul></details>"


def _link(address: str, text: str) -> str:
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'
