"""Make the pictures of the tutorial and of the README again, by running the tutorial's own commands.

    python docs/make_pictures.py [--runs FOLDER]

Five minutes or so on two cores; runs that FOLDER holds already are used as they are. The screenshot of
the report needs Chromium on the PATH; without it that one picture stays as it was, and the program says so.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from torchdoctor import load_data

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTH, TOP = 1200, 980  # of the screenshot, in pixels
ENLARGED = 2  # how many times larger the 64-pixel images are drawn
GAP = 8  # pixels between images


def tutorial_commands() -> list[str]:
    """Return the training, the checkup and the explanation as the tutorial gives them."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    alone = [block for block in blocks if "torchdoctor review" not in block]  # no person has to answer
    return [
        line
        for block in alone
        for line in block.splitlines()
        if line.startswith(("torchdoctor train", "torchdoctor checkup", "torchdoctor explain"))
    ]


def run_commands(folder: Path) -> None:
    """Run the tutorial's commands in a folder, except those whose run is there."""
    for line in tutorial_commands():
        words = line.split()
        if (folder / words[words.index("--out") + 1] / "manifest.json").is_file():
            continue
        print(line, flush=True)
        command = [sys.executable, "-m", "torchdoctor", *words[1:]]
        ended = subprocess.run(command, cwd=folder, env={**os.environ, "COLUMNS": "110"}, check=False)
        if ended.returncode not in (0, 3, 4):
            sys.exit(f"{line}: ended with {ended.returncode}")


def differing_numbers(report: Path) -> list[str]:
    """Return the lines of the tutorial's table of the comparison whose numbers the report has not."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    rows = re.findall(r"^│ *(?:iid|shifted \*)? *│ (?:base|control|swap|treated) .*$", page, re.M)
    shown = re.sub(r"<[^>]+>", " ", report.read_text(encoding="utf-8")).replace("\N{MINUS SIGN}", "-")
    numbers = set(re.findall(r"[+-]?\d+\.\d", shown))
    return [
        row
        for row in rows
        for accuracy, gain, interval in [[cell.strip() for cell in row.split("│")[3:6]]]
        if not {accuracy, *([gain] if gain else []), *re.findall(r"[+-]\d+\.\d", interval)} <= numbers
    ]


def draw_scenes(file: Path) -> None:
    """Draw eight training images above eight of the split whose backgrounds say nothing."""
    data = load_data("scenes")
    side = 64 * ENLARGED
    sheet = Image.new("RGB", (8 * (side + GAP) - GAP, 2 * side + 3 * GAP), "white")
    for row, table in enumerate((data.train.table, data.tests["shifted"].table)):
        for column in range(8):
            picture = table.read(column)[0].resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (side + GAP), row * (side + 3 * GAP)))
    sheet.save(file, optimize=True)


def charts_of(report: Path) -> dict[str, Image.Image]:
    """Return the pictures in a report by their description (the alt text)."""
    tags = re.findall(
        r'<img src="data:image/\w+;base64,([^"]+)"[^>]*? alt="([^"]*)"', report.read_text(encoding="utf-8")
    )
    return {words: Image.open(io.BytesIO(base64.b64decode(data))) for data, words in tags}


def photograph_report(report: Path, file: Path) -> None:
    """Take a picture of the top of a report with a headless browser."""
    browser = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no Chromium here: {file.name} stays as it was")
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        size = [f"--window-size={WIDTH},{TOP}", f"--user-data-dir={profile}", f"--screenshot={file}"]
        command = [browser, *flags, *quiet, *size, report.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    save_small(Image.open(file), file)


def save_small(picture: Image.Image, file: Path, widest: int = 1200) -> None:
    """Save a drawing as a PNG of few colours, no wider than `widest` pixels."""
    picture = picture.convert("RGB")
    if picture.width > widest:
        picture = picture.resize(
            (widest, round(picture.height * widest / picture.width)), Image.Resampling.LANCZOS
        )
    picture.quantize(192, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Run what is missing, then draw all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="A folder whose runs are used or added to.")
    given = parser.parse_args().runs
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        run_commands(folder)
        report = folder / "runs" / "checkup" / "report.html"
        charts = charts_of(report)
        draw_scenes(PICTURES / "scenes.png")
        save_small(
            next(one for words, one in charts.items() if words.startswith("Accuracy")),
            PICTURES / "accuracy.png",
        )
        save_small(next(one for words, one in charts.items() if "layer4" in words), PICTURES / "kernels.png")
        save_small(Image.open(folder / "runs" / "explained" / "000.png"), PICTURES / "explained.png")
        photograph_report(report, PICTURES / "report.png")
        for row in differing_numbers(report):
            print(f"docs/tutorial.md has other numbers than its pictures: {row}")
    for file in sorted(PICTURES.glob("*.png")):
        print(f"{file.relative_to(DOCS.parent)}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
