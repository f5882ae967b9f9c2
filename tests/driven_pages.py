"""The page of a study whose names hold markup, and a real browser, driven by Selenium, that opens it."""

import itertools
import json
import shutil
import time

import pytest

import study_records
from fibration import report
from fibration.study import Store
from optional import optional
from test_page_in_browser import FLAGS

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
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


def requests(driver):
    """List the addresses that were asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
