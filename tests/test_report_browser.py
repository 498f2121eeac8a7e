"""A real browser shows the report without overflow, errors or broken images, on a desk and on a phone."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_results import (
    fake_causes,
    fake_comparison,
    fake_diagnosis,
    fake_example,
    fake_explained,
    fake_robustness,
    fake_shown,
    fake_suspects,
)
from test_report import HOSTILE, page_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KINDS = ("repaired", "broken", "still wrong", "annotated")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a treated, a diagnosis-only and a hostile report with long names."""
    folder = tmp_path_factory.mktemp("pages")
    long = tuple(f"a_category_with_a_name_that_never_seems_to_end_{number}" for number in range(6))
    names = (*HOSTILE, *long)
    examples = [fake_example(KINDS[number % 4], number, size=24 + 40 * (number % 4)) for number in range(8)]
    hostile = [fake_example("repaired", 1, name=name, label=name) for name in names]
    contents = {
        "treated": page_of(examples=examples),
        "errors": page_of(
            comparison=None,
            examples=(),
            causes=fake_causes(),
            robustness=fake_robustness(),
            suspects=fake_suspects(),
            shown_suspects=fake_shown(fake_suspects()),
            explained=[fake_explained(), fake_explained(long[0] * 3, long[1], long[2])],
        ),
        "diagnosis": page_of(comparison=None, examples=examples),
        "hostile": page_of(
            title=long[0],
            diagnosis=fake_diagnosis(names),
            causes=fake_causes(names),
            suspects=fake_suspects(names),
            shown_suspects=fake_shown(fake_suspects(names), long[0] * 2),
            explained=[fake_explained(one, one, names[0]) for one in names],
            comparison=fake_comparison(classes=names),
            examples=hostile,
            command="torchdoctor " + "x" * 300,
        ),
    }
    for name, content in contents.items():
        (folder / f"{name}.html").write_text(content, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in contents}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["treated", "diagnosis", "errors", "hostile"])
def test_the_page_fits_and_loads(browser, pages, name, width):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(pages[name].as_uri())
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    broken = "return [...document.images].filter(one => !one.complete || one.naturalWidth === 0).length"
    assert browser.execute_script(broken) == 0
    assert browser.execute_script("return document.images.length") > 5
    outside = """
        const limit = document.documentElement.clientWidth + 1;
        return [...document.querySelectorAll('h1, h2, h3, p, li, dd, .pair, .photo, figcaption')]
            .filter(one => one.getBoundingClientRect().right > limit).map(one => one.outerHTML.slice(0, 80))
    """
    assert browser.execute_script(outside) == []


def test_it_prints_with_every_detail_open(browser, pages):
    browser.get(pages["treated"].as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    charts = "[...document.querySelectorAll('details .chart')]"
    heights = browser.execute_script(f"return {charts}.map(one => one.getBoundingClientRect().height)")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(heights) == 6 and min(heights) > 100
    printed = base64.b64decode(
        browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    )
    assert printed.startswith(b"%PDF")
