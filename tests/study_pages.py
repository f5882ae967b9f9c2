"""Records of a made-up sweep, and readers of the pages that are made of them."""

import html.parser

import pytest

import study_records

AXES = {"network.hidden": ([4], [8], [64]), "runs.slow.step_size": (0.01, 0.2), "data.spread": (0.1,)}
DAMAGED = 18


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of 24 points, of which some failed, one was interrupted and one is damaged, and of 24 more not begun."""
    folder = tmp_path_factory.mktemp("swept")
    store, axes = study_records.sweep(folder / "store", AXES, seeds=4)
    order = [record.id for record in store.records()]
    study_records.damage(store, store.records()[DAMAGED])
    axes["data.spread"] = (0.1, 0.5)
    return sorted(store.records(), key=lambda record: order.index(record.id)), axes


def table(page, title):
    (found,) = [table for table in page.tables if table.title == title]
    return found


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.data, self._inside = [], [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._inside = "json" if ("type", "application/json") in attrs else tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "json":
            self.data.append(data)
        elif self._inside not in ("script", "style"):
            self.text.append(data)
