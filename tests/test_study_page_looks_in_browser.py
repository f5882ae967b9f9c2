"""How the page of a study looks in a real browser: in the light and in the dark, on a phone, and when downloaded."""

import re
import time

import pytest

from driven_pages import EVIL, driver, emulate, page, requests, visit, wait
from fibration import report
from test_page_in_browser import browser, outside

__all__ = ["browser", "driver", "page", "visit"]  # fixtures


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
