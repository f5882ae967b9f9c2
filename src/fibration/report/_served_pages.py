"""The pages of a store as a server gives them: drawn when they changed, one at a time, and a few of them kept."""

import asyncio
import html
import re
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import FibrationError
from ._compare_page import compare_page
from ._page import Page, Table, page_html
from ._run_page import run_page
from ._served_live import live_hash, live_script, with_links
from ._served_look import STATUSES, Look, Route, look
from ._served_store import OutsideError, ServedStore
from ._store_pages import page_of_study

MOST_PAGES, MOST_BYTES = 32, 96 * 2**20  # that are kept
MOST_WAITING = 16  # pages that are to be drawn
LONGEST_LIST = 1000
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_META = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">\n?')
_MAIN = re.compile(r"<main\b[^>]*>.*?</main>", re.DOTALL)
T = TypeVar("T")
Draw = Callable[[ServedStore, Route, Look], str]


class BusyError(Exception):
    """More pages are asked for than may wait to be drawn."""


@dataclass(frozen=True)
class Rendered:
    """One page as it was drawn: what comes before its banner, its contents, what comes after, and its policy."""

    status: int
    before: bytes
    main: bytes
    after: bytes
    policy: str
    state: str = ""
    drawn: float = 0.0
    seconds: float = 0.0

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.before) + len(self.main) + len(self.after)


class Pages:
    """The pages of one store; its methods belong to one event loop, and the work is done in two threads.

    One thread draws, since matplotlib is not made for several, and the other looks, so that lists and the answers to
    pages that ask for changes need not wait for a drawing.
    """

    def __init__(self, store: ServedStore, announce: Callable[[str], Any], draw: Draw | None = None) -> None:
        self.store, self._announce, self._draw = store, announce, draw or draw_page
        self._drawer = ThreadPoolExecutor(1, thread_name_prefix="fibration-draw")
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="fibration-look")
        self._kept: OrderedDict[Route, Rendered] = OrderedDict()
        self._drawing: dict[Route, asyncio.Task[Rendered]] = {}
        self._looking: asyncio.Task[Look] | None = None
        self._look: tuple[Look, float, float] | None = None

    def close(self) -> None:
        """Let the threads go."""
        for pool in (self._drawer, self._looker):
            pool.shutdown(wait=False, cancel_futures=True)

    async def look(self) -> Look:
        """Look at the store, or give what another request saw a moment ago.

        **Raises:** `OSError`, of which `StoreError` is one, if the store is gone or cannot be read.
        """
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._in(self._looker, self._look_again))
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    async def page(self, route: Route) -> tuple[Rendered, Look] | None:
        """Draw a page, or give the one that is kept if nothing changed since; None if there is no such page.

        While runs go on, a page that takes long to draw is drawn at most half of the time. Whoever gets an older one
        sees by its state that it is older.

        **Raises:** `OSError`; `BusyError`.
        """
        seen = await self.look()
        state = seen.state(route)
        if state is None:
            return None
        kept = self._kept.get(route)
        if kept is not None and (kept.state == state or time.monotonic() - kept.drawn < kept.seconds):
            self._kept.move_to_end(route)
            return kept, seen
        task = self._drawing.get(route)
        if task is None:
            if len(self._drawing) >= MOST_WAITING:
                raise BusyError
            task = self._drawing[route] = asyncio.ensure_future(self._render(route, seen, state))
            task.add_done_callback(lambda _: self._drawing.pop(route, None))
        return await asyncio.shield(task), seen

    def _look_again(self) -> Look:
        """Look, unless that was done within the last second, or took longer than a quarter of the time since."""
        self.store.check()
        if self._look is not None:
            last, when, seconds = self._look
            if time.monotonic() - when < max(1.0, 4 * seconds):
                return last
        begin = time.monotonic()
        seen = look(self.store)
        self._look = seen, time.monotonic(), time.monotonic() - begin
        return seen

    def _looked(self, _: Any) -> None:
        self._looking = None

    async def _render(self, route: Route, seen: Look, state: str) -> Rendered:
        begin = time.monotonic()
        pool = self._looker if route == ("index",) else self._drawer
        rendered = await self._in(pool, lambda: self._render_now(route, seen))
        rendered = replace(rendered, state=state, drawn=time.monotonic(), seconds=time.monotonic() - begin)
        self._kept[route] = rendered
        self._kept.move_to_end(route)
        while len(self._kept) > MOST_PAGES or (
            len(self._kept) > 1 and sum(one.size for one in self._kept.values()) > MOST_BYTES
        ):
            self._kept.popitem(last=False)
        return rendered

    def _render_now(self, route: Route, seen: Look) -> Rendered:
        try:
            return _live(self._draw(self.store, route, seen), route, seen)
        except OutsideError:
            raise
        except Exception as error:  # whatever a damaged result makes the libraries raise
            self.store.check()  # an error of a store that is gone is not the page's
            where = "/".join(route)
            if isinstance(error, FibrationError):
                self._announce(f"The page of {where} cannot be drawn. {error}")
                return failure(500, "This page cannot be drawn", str(error))
            self._announce(f"The page of {where} cannot be drawn.\n{traceback.format_exc()}")
            return failure(500, "This page cannot be drawn", "The terminal of the server says why.")

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def draw_page(store: ServedStore, route: Route, seen: Look) -> str:
    """Draw a page as the offline one of the same study, run or two runs is drawn."""
    kind, *ids = route
    if kind == "index":
        return page_html(index_page(seen))
    if kind == "study":
        return page_html(page_of_study(store, store.study(ids[0])))
    first, *second = (store.record(name) for name in ids)
    return page_html(compare_page(first, *second) if second else run_page(first))


def index_page(seen: Look) -> Page:
    """Make the page of a store: its studies, and the runs that belong to none."""
    lead = [f"{_number(seen.runs, 'run', 'runs')}, {_number(seen.studies, 'study', 'studies')}."]
    if seen.outside:
        lead.append(
            f"Not shown: {_number(seen.outside, 'run', 'runs')} behind links that lead out of the store, such as "
            f"{seen.outside[0]}. What is copied into the store is shown."
        )
    studies = [
        (study.id, study.name, str(study.points), *(str(study.counts[status]) for status in (*STATUSES, "not begun")))
        for study in seen.studies[::-1][:LONGEST_LIST]
    ]
    loose = [(run.id, run.status, run.about) for run in seen.loose[::-1][:LONGEST_LIST]]
    tables: list[Table] = []
    if studies:
        tables.append(Table("Studies", ("study", "name", "points", *STATUSES, "not begun"), tuple(studies)))
    if loose:
        more = len(seen.loose) - len(loose)
        title = f"Runs of no study{f': the latest, {more} more are not listed' if more else ''}"
        tables.append(Table(title, ("run", "status", "axes and seed"), tuple(loose)))
    if not tables:
        lead.append("Nothing has begun yet: `fibration run STUDY.toml` fills the store, and this page shows it.")
    return Page("Runs and studies", tuple(lead), (), tuple(tables), dashboard=True)


def failure(status: int, title: str, sentence: str) -> Rendered:
    """Make a plain page that says in a sentence why there is no other."""
    title, sentence = html.escape(title), html.escape(sentence)
    head = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<link rel="icon" href="data:,">\n'
    head += '<meta http-equiv="refresh" content="10">\n' if status >= 500 else ""  # it may pass
    style = (
        "<style>body { margin: 3rem auto; max-width: 40rem; padding: 0 1rem; font: 17px/1.55 system-ui, sans-serif; }"
    )
    before = f"{head}<title>{title}</title>\n{style}</style>\n</head>\n<body>\n"
    main = f"<main>\n<h1>{title}</h1>\n<p>{sentence}</p>\n</main>"
    return Rendered(status, before.encode(), main.encode(), b"\n</body>\n</html>\n", POLICY)


def _live(text: str, route: Route, seen: Look) -> Rendered:
    """Take an offline page apart, and let it ask this server for changes, which its own policy forbids."""
    policy, main = _META.search(text), _MAIN.search(text)
    if policy is None or main is None:
        raise ValueError("the page lacks its policy or its contents")
    before = text[: policy.start()] + '<link rel="icon" href="data:,">\n' + text[policy.end() : main.start()]
    after = f"\n<script>{live_script()}</script>{text[main.end() :]}"
    contents = with_links(main[0], route, seen)
    return Rendered(200, _bytes(before), _bytes(contents), _bytes(after), _policy(html.unescape(policy[1])))


def _policy(offline: str) -> str:
    """Allow what a live page needs beyond an offline one: its own script, and this server."""
    rules = [rule.strip() for rule in offline.split(";") if rule.strip()]
    rules = [f"{rule} {live_hash()}" if rule.startswith("script-src ") else rule for rule in rules]
    return "; ".join([*rules, "connect-src 'self'", "frame-ancestors 'none'"])


def _number(things: Sized, one: str, many: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate of a file's name is no reason to show nothing
