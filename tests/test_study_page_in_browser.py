"""The page of a study in a real browser, driven by Selenium: drawn, sorted, filtered, dark, on a phone, silent."""

import itertools
import json
import re
import shutil
import time

import pytest

import study_records
from fibration import report
from fibration.study import Store
from optional import optional
from test_page_in_browser import FLAGS, browser, outside

__all__ = ["browser"]  # a fixture

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
NUMBER = re.compile(r"([−]?)([\d,.]+)(?: × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?")
PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
# These take a picture of time, or ask for what the driver asks for itself.
DRIVEN = [flag for flag in FLAGS if not flag.startswith(("--virtual-time", "--enable-logging", "--v="))]


@pytest.fixture(scope="module")
def driver(browser, tmp_path_factory):
    webdriver = optional("selenium.webdriver", "dev")
    from selenium.webdriver.chrome.service import Service

    found = shutil.which("chromedriver")
    if found is None:
        optional("chromedriver", "dev")  # skips, or fails where it was promised
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*DRIVEN, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = webdriver.Chrome(options=options, service=Service(found))
    driven.set_page_load_timeout(120)
    yield driven
    driven.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A sweep with failures, whose name, description, axes and errors hold markup."""
    folder = tmp_path_factory.mktemp("study")
    store = Store(folder / "store", create=True)
    hidden, steps, notes = ([4], [8], [64]), (0.01, 0.2), ("<b>bold</b>", EVIL)
    for number, (h, step, note, seed) in enumerate(itertools.product(hidden, steps, notes, (0, 1, 2))):
        end = "failed" if number % 5 == 2 else "done"
        point = study_records.point(h, step, seed=seed, note=note)
        study_records.fill(store, point, end=end, error=ValueError(EVIL), length=20)
    axes = {"network.hidden": hidden, "runs.slow.step_size": steps, "note": notes, "seed": (0, 1, 2)}
    made = report.study_page(EVIL, axes, store.records(), EVIL)
    return made, report.write_page(made, folder / "page.html"), store.records()


@pytest.fixture
def visit(driver, page):
    """Open the page as a device shows it, and wait until it is drawn."""

    def opened(path=None, width=1200, scheme="light"):
        for log in ("browser", "performance"):
            driver.get_log(log)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        emulate(driver, scheme)
        driver.get((path or page[1]).as_uri())
        wait(driver, "return document.querySelectorAll('.plot:not(.js-plotly-plot)').length === 0")
        return driver

    return opened


def emulate(driver, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(driver, script, seconds=60):
    end = time.monotonic() + seconds
    while not driver.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.05)


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


def requests(driver):
    """List the addresses that were asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}


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


def luminance(colour):
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_the_light_and_in_the_dark(visit, scheme):
    driver = visit(scheme=scheme)
    found = driver.execute_script(
        """
        const shade = (one) => {
          for (; one; one = one.parentElement) {
            const back = getComputedStyle(one).backgroundColor;
            if (back !== "rgba(0, 0, 0, 0)") return back;
          }
          return "rgb(255, 255, 255)";
        };
        const all = (selector) => [...document.querySelectorAll(selector)];
        const texts = all("h1, h2, li, figcaption p, a, td, th, button, summary, pre, output, label, input")
          .filter((one) => !one.closest(".plot"))
          .map((one) => [one.tagName, getComputedStyle(one).color, shade(one)]);
        const drawn = all("[class$=axislayer-above] text, text[class$=title], .legendtext, .annotation-text")
          .map((one) => [one.getAttribute("class"), getComputedStyle(one).fill, shade(one.closest(".plot"))]);
        return [texts, drawn, getComputedStyle(document.body).backgroundColor,
                [...document.querySelectorAll(".plot .main-svg")].map((one) => getComputedStyle(one).backgroundColor)];
        """
    )
    texts, drawn, body, backs = found
    assert len(texts) > 100
    assert len(drawn) > 50
    assert (luminance(body) < 0.1) == (scheme == "dark")
    assert {what for what, ink, back in (*texts, *drawn) if contrast(ink, back) < 4.5} == set()
    opaque = {back for back in backs if back != "rgba(0, 0, 0, 0)"}
    assert all((luminance(back) < 0.1) == (scheme == "dark") for back in opaque)


def test_plots_follow_when_the_light_goes_out(visit):
    driver = visit()

    def ink():
        text = driver.find_element("css selector", ".plot .xtick text")
        return luminance(driver.execute_script("return getComputedStyle(arguments[0]).fill", text))

    assert ink() < 0.1
    emulate(driver, "dark")
    wait(driver, "return getComputedStyle(document.querySelector('.plot .xtick text')).fill === 'rgb(230, 230, 227)'")
    assert ink() > 0.5
    emulate(driver, "light")
    wait(driver, "return getComputedStyle(document.querySelector('.plot .xtick text')).fill === 'rgb(34, 34, 34)'")


@pytest.mark.parametrize("kind", ["study", "run", "compare"])
def test_a_phone_scrolls_down_only(visit, page, tmp_path, kind):
    records = page[2]
    made = {
        "study": lambda: page[0],
        "run": lambda: report.run_page(records[2], EVIL.replace(" ", "")),
        "compare": lambda: report.compare_page(records[0], records[2]),
    }[kind]()
    driver = visit(report.write_page(made, tmp_path / "page.html"), width=390)
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    beyond = driver.execute_script(
        "return [...document.querySelectorAll('main > *, figure, section, .plot, .wide, .tools, pre, h1, h2, li')]"
        ".filter((one) => one.getBoundingClientRect().right > 390.5).map((one) => one.outerHTML.slice(0, 100))"
    )
    assert beyond == []
    small = driver.execute_script(
        "return [...document.querySelectorAll('.lead li, td, figcaption p, label')]"
        ".map((one) => parseFloat(getComputedStyle(one).fontSize)).filter((size) => size < 14)"
    )
    assert small == []
    # A legend is below the names of the axis, not on them.
    overlapping = driver.execute_script(
        """
        const low = (one) => one.getBoundingClientRect().bottom;
        return [...document.querySelectorAll(".plot")].filter((plot) => {
          const legend = plot.querySelector(".legend");
          const panels = plot.querySelectorAll(".xaxislayer-above").length > 1;
          const ticks = [...plot.querySelectorAll(".xaxislayer-above text, [class^=x][class$=title]")];
          return panels && legend && Math.max(...ticks.map(low)) > legend.getBoundingClientRect().top + 4;
        }).map((plot) => plot.id);
        """
    )
    assert overlapping == []


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plots_can_be_downloaded(visit, tmp_path, kind):
    driver = visit(scheme="dark")
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for place, stem in (("plot-1", "1-cost-of-flow-over-time"), ("plot-5", "5-final-cost-of-flow")):
        figure = driver.find_element("id", place).find_element("xpath", "..")
        (found,) = [b for b in figure.find_elements("css selector", ".downloads button") if kind.upper() in b.text]
        driver.execute_script("arguments[0].click()", found)
        path = tmp_path / f"{stem}.{kind}"
        end = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < end, list(tmp_path.iterdir())
            time.sleep(0.1)
        contents = path.read_bytes()
        if kind == "png":
            assert contents.startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert contents.startswith(b"<svg")
            assert b"rgb(255, 255, 255)" in contents  # on paper the page is light
    assert driver.get_log("browser") == []
    assert outside(requests(driver)) == set()
