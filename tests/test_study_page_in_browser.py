"""The page of a study in a real browser, driven by Selenium: drawn, sorted, filtered, by keyboard, silent."""

import re

import pytest

from driven_pages import EVIL, driver, emulate, page, requests, visit, wait
from fibration import report
from test_page_in_browser import browser, outside

__all__ = ["browser", "driver", "page", "visit"]  # fixtures

NUMBER = re.compile(r"([−]?)([\d,.]+)(?: × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?")
PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")


def points(driver, title="Points"):
    (section,) = [
        s for s in driver.find_elements("tag name", "section") if s.find_element("tag name", "h2").text == title
    ]
    return section


def column(driver, section, name):
    """Read a column's shown cells, as the page orders them."""
    return driver.execute_script(
        """
        const heads = [...arguments[0].querySelectorAll("thead th")].map((head) => head.textContent.trim());
        const index = heads.indexOf(arguments[1]);
        const rows = [...arguments[0].querySelectorAll("tbody tr")].filter((row) => !row.hidden);
        return rows.map((row) => row.cells[index].textContent);
        """,
        section,
        name,
    )


def number(text):
    """Read a number as the page writes it, independently of the page's own script."""
    if text in ("∞", "−∞"):
        return float("inf") if text == "∞" else -float("inf")
    sign, digits, power = NUMBER.fullmatch(text).groups()
    value = float(digits.replace(",", "")) * 10.0 ** int((power or "0").translate(PLAIN))
    return -value if sign else value


def button(section, name):
    (found,) = [one for one in section.find_elements("css selector", "thead button") if one.text.strip() == name]
    return found


def test_every_plot_is_drawn(visit, page):
    driver = visit()
    drawn = driver.execute_script("return [...document.querySelectorAll('.plot.js-plotly-plot')].map((p) => p.id)")
    assert drawn == [f"plot-{i}" for i in range(1, len(page[0].plots) + 1)]
    for place, figure in zip(drawn, page[0].plots, strict=True):

        def count(selector, place=place):
            return len(driver.find_elements("css selector", f"#{place} {selector}"))

        if isinstance(figure, report.HeatMap):
            assert count(".hm image") == 1
            marked = int((figure.failed > 0).sum())
            infinite = int((abs(figure.values) == float("inf")).sum())
            assert count(".scatterlayer path.point") == marked + infinite
            assert count(".cbaxis text") > 0
        elif isinstance(figure, report.Panels):
            assert count(".subplot.xy, .subplot[class*=x]") >= len(figure.panels)
            assert count(".scatterlayer .js-line") == sum(len(curves) for _, curves in figure.panels)
        else:
            assert count(".scatterlayer .trace") == len(figure.series)
        assert figure.x_label in driver.find_element("id", place).get_attribute("textContent")
    heights = driver.execute_script("return [...document.querySelectorAll('.plot')].map((p) => p.clientHeight)")
    svgs = driver.execute_script(
        "return [...document.querySelectorAll('.plot')].map((p) => p.querySelector('.main-svg').clientHeight)"
    )
    assert all(abs(a - b) <= 1 for a, b in zip(heights, svgs, strict=True))


def test_headers_sort_by_number_both_ways(visit, page):
    driver = visit()
    section = points(driver)
    before = column(driver, section, "run")
    assert before == [record.id for record in page[2]]
    for name in ("flow: cost", "slow: cost", "network.hidden"):
        cells = column(driver, section, name)
        given = [number(text) for text in cells if text != "–"]
        assert any("⁻" in text for text in cells) or name != "flow: cost"
        for sort, backwards in (("ascending", False), ("descending", True)):
            button(section, name).click()
            shown = column(driver, section, name)
            have = [text for text in shown if text != "–"]
            assert [number(text) for text in have] == sorted(given, reverse=backwards)
            assert shown[len(have) :] == ["–"] * (len(cells) - len(have))  # what is missing is last, both ways
            marked = section.find_elements("css selector", "th[aria-sort]")
            assert [(head.text.strip(), head.get_attribute("aria-sort")) for head in marked] == [(name, sort)]
    assert sorted(column(driver, section, "run")) == sorted(before)
    button(section, "status").click()
    assert column(driver, section, "status") == sorted(column(driver, section, "status"))


def test_the_filter_hides_rows_and_counts(visit, page):
    driver = visit()
    section = points(driver)
    box, count = section.find_element("tag name", "input"), section.find_element("tag name", "output")
    total = len(page[2])
    assert box.accessible_name == "Filter the rows of: Points"
    assert count.text == f"{total} of {total} rows"
    box.send_keys("failed")
    failed = [record.id for record in page[2] if record.status == "failed"]
    assert column(driver, section, "run") == failed
    assert count.text == f"{len(failed)} of {total} rows"
    box.send_keys(" " + failed[1][:6].upper())
    assert column(driver, section, "run") == [failed[1]]
    button(section, "seed").click()  # sorting leaves hidden what is hidden
    assert column(driver, section, "run") == [failed[1]]
    box.send_keys("nothing has this")
    assert column(driver, section, "run") == []
    assert count.text == f"0 of {total} rows"
    box.clear()
    assert len(column(driver, section, "run")) == total


def test_the_keyboard_is_enough(visit):
    from selenium.webdriver.common.keys import Keys

    driver = visit()
    section = points(driver)
    box = section.find_element("tag name", "input")
    driver.execute_script("arguments[0].focus()", box)
    box.send_keys(Keys.TAB)
    region = driver.switch_to.active_element
    assert (region.aria_role, region.accessible_name) == ("region", "Points")
    region.send_keys(Keys.TAB)
    head = driver.switch_to.active_element
    assert (head.tag_name, head.text.strip()) == ("button", "run")
    outline = driver.execute_script("return getComputedStyle(arguments[0]).outline", head)
    assert "3px" in outline
    for key, sort in ((Keys.ENTER, "ascending"), (Keys.SPACE, "descending")):
        driver.switch_to.active_element.send_keys(key)
        shown = section.find_element("css selector", "th[aria-sort]")
        assert (shown.text.strip(), shown.get_attribute("aria-sort")) == ("run", sort)
    # A long table scrolls inside itself, under its heads.
    region = section.find_element("css selector", ".wide")
    top = driver.execute_script(
        "arguments[0].scrollTop = 300; const head = arguments[0].querySelector('thead th');"
        "return [arguments[0].scrollTop, head.getBoundingClientRect().top - arguments[0].getBoundingClientRect().top]",
        region,
    )
    assert top[0] > 100
    assert abs(top[1]) < 2


@pytest.mark.parametrize("kind", ["study", "compare"])
def test_every_control_has_a_name(visit, page, tmp_path, kind):
    made = page[0] if kind == "study" else report.compare_page(page[2][0], page[2][2])
    driver = visit(report.write_page(made, tmp_path / "page.html"))
    kinds = "button, input, a[href], summary, [role=region], [role=group], [role=button]"
    controls = driver.find_elements("css selector", kinds)
    assert len(controls) > 50
    assert [control.get_attribute("outerHTML")[:200] for control in controls if not control.accessible_name] == []
    names = [b.accessible_name for b in driver.find_elements("css selector", ".downloads button")]
    assert len(set(names)) == len(names) == 2 * len(made.plots)


def test_a_failed_run_leads_to_its_traceback(visit, page):
    driver = visit()
    record = next(record for record in page[2] if record.status == "failed")
    link = driver.find_element("link text", record.id)
    driver.execute_script("arguments[0].click()", link)
    trace = driver.find_element("id", f"error-{record.id}")
    assert trace.is_displayed()
    assert "Traceback (most recent call last)" in trace.text
    assert EVIL in trace.text


def test_text_stays_text(visit, page):
    driver = visit()
    assert driver.title == EVIL
    assert driver.find_element("tag name", "h1").text == EVIL
    lead = [item.text for item in driver.find_elements("css selector", ".lead li")]
    assert EVIL in lead
    assert driver.execute_script("return window.hacked") is None
    assert driver.find_elements("css selector", "main img, main b, .plot script") == []
    assert EVIL in "".join(column(driver, points(driver), "note"))
    # The plots' own text too: panels and legends are named after values of the study.
    for figure in page[0].plots:
        if isinstance(figure, report.HeatMap):
            driver.execute_script(
                "const p = document.getElementById(arguments[0]);"
                "Plotly.Fx.hover(p, [{curveNumber: 0, pointNumber: [0, 0]}])",
                f"plot-{page[0].plots.index(figure) + 1}",
            )
            break
    assert driver.execute_script("return window.hacked") is None


def test_pages_named_by_markup_on_their_axes_stay_text(visit, page, tmp_path):
    records = [r for r in page[2] if r.status == "done" and r.point["network"]["hidden"] == [4]]
    made = report.study_page("T", {"note": ("<b>bold</b>", EVIL), "seed": (0, 1, 2)}, records)
    driver = visit(report.write_page(made, tmp_path / "page.html"))
    assert driver.execute_script("return window.hacked") is None
    shown = "".join(e.get_attribute("textContent") for e in driver.find_elements("css selector", ".plot svg text"))
    assert "<script>window.hacked" in shown
    assert "<b>bold</b>" in shown
    assert driver.get_log("browser") == []


def test_console_is_silent_and_nothing_is_asked_of_the_network(visit):
    driver = visit()
    section = points(driver)
    button(section, "seed").click()
    emulate(driver, "dark")
    emulate(driver, "light")
    assert driver.get_log("browser") == []
    asked = requests(driver)
    assert any(address.startswith("file:") for address in asked)
    assert outside(asked) == set()


def test_the_logs_would_show_a_request_and_an_error(visit, tmp_path):
    # The check of the check.
    path = tmp_path / "page.html"
    path.write_text('<!doctype html><img src="http://127.0.0.1:9/picture.png"><script>throw new Error("x")</script>')
    driver = visit(path)
    wait(driver, "return document.readyState === 'complete'")
    assert outside(requests(driver)) == {"http://127.0.0.1:9/picture.png"}
    assert any("Error: x" in entry["message"] for entry in driver.get_log("browser"))
