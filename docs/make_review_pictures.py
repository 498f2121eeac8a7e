"""Make the pictures of the review's page again: plant wrong labels, train, diagnose, and open the page.

    python docs/make_review_pictures.py [--runs FOLDER]

A few minutes on two cores; needs Chromium with its chromedriver, and the extra `dev`. A run that FOLDER
holds already is used as it is.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from torchdoctor import load_data

PICTURES = Path(__file__).resolve().parent / "pictures"
IMAGES, WRONG = 60, 0.08  # of each category, and the share of them that get another label
SCREENS = {"review-labels": (1200, 560), "review-masks": (1200, 800)}
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# The corners of a polygon, in shares of the image.
OUTLINE = ((0.5, 0.11), (0.7, 0.39), (0.55, 0.39), (0.53, 0.64), (0.38, 0.64), (0.39, 0.37), (0.25, 0.36))


def draw_folder(folder: Path) -> None:
    """Write drawn images as a folder of categories without masks, some under a wrong one."""
    data = load_data("scenes")
    chance = np.random.default_rng(0)
    for split, table in (("train", data.train.table), ("test", data.tests["iid"].table)):
        for label, name in enumerate(data.classes):
            for place in np.flatnonzero(table.labels == label)[:IMAGES].tolist():
                hit = split == "train" and chance.random() < WRONG
                other = data.classes[(label + int(chance.integers(1, len(data.classes)))) % len(data.classes)]
                file = folder / split / (other if hit else name) / f"{table.names[place]}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                table.read(place)[0].save(file)


def make_run(folder: Path) -> Path:
    """Train on the drawn folder and diagnose; return the run."""
    run = folder / "review" / "diagnosed"
    if (run / "manifest.json").is_file():
        return run
    draw_folder(folder / "review" / "images")
    data = ["--model", "small_resnet", "--data", "folder:images"]
    for words in (
        ["train", *data, "--epochs", "12", "--out", "base"],
        ["diagnose", *data, "--weights", "base/model.safetensors", "--out", "diagnosed"],
    ):
        command = [sys.executable, "-m", "torchdoctor", *words]
        subprocess.run(command, cwd=folder / "review", check=words[0] == "train")
    return run


def photograph(run: Path) -> None:
    """Open the page of a review and take a picture of either tab."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        server = subprocess.Popen(
            [sys.executable, "-m", "torchdoctor", "review", run.name, "--no-browser"],
            cwd=run.parent, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            for name, (width, height) in SCREENS.items():
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.get("about:blank")
                browser.get(f"{address}#{name.removeprefix('review-')}")
                time.sleep(3)
                if name == "review-masks":
                    draw_outline(browser)
                picture = PICTURES / f"{name}.png"
                browser.get_screenshot_as_file(str(picture))
                drawn = Image.open(picture).convert("RGB")
                drawn.quantize(192, dither=Image.Dither.NONE).save(picture, optimize=True)
                print(f"{picture.name}: {picture.stat().st_size // 1024} KiB")
        finally:
            browser.quit()
            server.terminate()
            server.wait(20)


def draw_outline(browser: Any) -> None:
    """Draw a polygon, as a person would."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    ActionChains(browser).send_keys("2").perform()
    left, top, width, height = browser.execute_script(
        "const box = document.querySelector('#board').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )
    side = min(width, height)
    actions = ActionBuilder(browser, duration=0)
    for across, down in OUTLINE:
        x, y = left + (width - side) / 2 + across * side, top + (height - side) / 2 + down * side
        actions.pointer_action.move_to_location(round(x), round(y))
        actions.pointer_action.click()
    actions.perform()
    ActionChains(browser).send_keys("f").perform()
    time.sleep(1)


def main() -> None:
    """Make the run where it is missing, then the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="A folder whose run is used, or made.")
    given = parser.parse_args().runs
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        photograph(make_run((given or Path(temporary)).resolve()))


if __name__ == "__main__":
    main()
