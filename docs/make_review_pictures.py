"""Make the pictures of the review's page again: plant wrong labels, train, diagnose, and open the page.

    python docs/make_review_pictures.py [--runs FOLDER]
    python docs/make_review_pictures.py --only-images FOLDER

A few minutes on two cores; needs Chromium with its chromedriver, and the extra `dev`. It runs the tutorial's
own commands in the folder `--runs`; runs that are there already are used as they are. `--only-images` writes
the images that the tutorial begins with, and nothing else.
"""

from __future__ import annotations

import argparse
import re
import shlex
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
from torchdoctor.data.mask_formats.shapes import outlines

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
IMAGES, WRONG = 150, 0.1  # of each category, and the share of them that get another label
IN_TUTORIAL = "person/images"  # where the tutorial writes the images
# By picture: the tab, the width and height of the screen; the last two are those of a phone.
SCREENS = {
    "review-labels": ("labels", 1200, 560), "review-masks": ("masks", 1200, 800),
    "review-labels-phone": ("labels", 390, 844), "review-masks-phone": ("masks", 390, 844),
}  # fmt: skip
PHONE = 600  # screens that are narrower are those of phones
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIMPLER = 1.5  # pixels by which the corners of a drawn outline may leave the object


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


def tutorial_commands() -> list[list[str]]:
    """Return the training and the diagnosis of the drawn images, as the tutorial gives them."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (block,) = (one for one in re.findall(r"```bash\n(.*?)```", page, re.S) if Path(__file__).name in one)
    lines = [shlex.split(line) for line in block.splitlines()]
    return [words for words in lines if words[1] in ("train", "diagnose")]


def make_run(folder: Path) -> Path:
    """Draw the images, train and diagnose as the tutorial does; return the run."""
    if not (folder / IN_TUTORIAL).is_dir():
        draw_folder(folder / IN_TUTORIAL)
    for words in tutorial_commands():
        run = folder / words[words.index("--out") + 1]
        if not (run / "manifest.json").is_file():
            command = [sys.executable, "-m", "torchdoctor", *words[1:]]
            subprocess.run(command, cwd=folder, check=words[1] == "train")
    return run


def photograph(folder: Path) -> None:
    """Open the page of a review and take pictures of both tabs."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    run = make_run(folder)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        server = subprocess.Popen(
            [sys.executable, "-m", "torchdoctor", "review", str(run), "--no-browser"],
            cwd=folder, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            for name, (tab, width, height) in SCREENS.items():
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < PHONE}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.get("about:blank")
                browser.get(f"{address}#{tab}")
                time.sleep(3)
                if tab == "masks":
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


def outline_of(name: str) -> list[tuple[float, float]]:
    """Return the corners of the object in an image, as shares of its sides."""
    table = load_data("scenes").train.table
    mask = table.read(table.names.index(Path(name).stem))[1]
    area = np.asarray(mask) > 0
    corners = max(outlines(area), key=lambda part: part.area).simplify(SIMPLER).exterior.coords[:-1]
    return [(x / area.shape[1], y / area.shape[0]) for x, y in corners]


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
    name = browser.execute_script("return document.querySelector('#mask-name').textContent")
    for across, down in outline_of(name):
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
    parser.add_argument("--runs", type=Path, help="A folder whose runs are used, or added to.")
    parser.add_argument(
        "--only-images", type=Path, metavar="FOLDER", help="Write the images alone; no run is made."
    )
    given = parser.parse_args()
    if given.only_images:
        draw_folder(given.only_images)
        return
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.runs or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        photograph(folder)


if __name__ == "__main__":
    main()
