"""Ask how well an object is cut out of its box, beside the box itself.

    [TORCHDOCTOR_DATA=ROOT] python -m benchmarks.study.cut_out [--data scenes stl10_2] [--images 200]
        [--out benchmarks/results/cut_out.jsonl]

For training images, drawn at random, the box around the true mask is given: as it is, and 10 % wider on each
side. Printed is the mean IoU (intersection over union) of the box and of the cut with the mask: exact in
`scenes`, in `stl10_2` coarse, of 16 x 16 cells that are marked where they hold a part of the object. There
the IoU on cells is printed as well: those that the box or the cut covers by a tenth, against those of the
mask. The time is that of one thread, on images that are enlarged to 128 pixels, where nothing is reduced.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks.study import json_lines
from benchmarks.study.proposals import overlap
from torchdoctor import load_data
from torchdoctor.review.cut_out import LONGEST, cut_out

CELLS, COVERED = 16, 0.1
SEED = 1
WIDER = {"tight": 0.0, "loose": 0.1}  # by which share of its sides a box is wider on each side
TIMED = 50
Mask = Bool[np.ndarray, "height width"]
Box = tuple[float, float, float, float]
Rule = Callable[[Image.Image, Box], Mask]


def drawn_box(mask: Mask, wider: float) -> Box:
    """Return the box around a mask, wider on each side by a share of its sides, inside the image."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    across, down = wider * (right - left), wider * (bottom - top)
    return max(left - across, 0), max(top - down, 0), min(right + across, width), min(bottom + down, height)


def box_itself(image: Image.Image, box: Box) -> Mask:
    """Return the box as a mask."""
    mask = np.zeros((image.height, image.width), bool)
    mask[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))] = True
    return mask


def cut(image: Image.Image, box: Box) -> Mask:
    """Return what is cut out of a box."""
    return cut_out(np.asarray(image, np.float32).transpose(2, 0, 1) / 255, box)


RULES: Mapping[str, Rule] = {"box": box_itself, "cut": cut}


def cells(mask: Mask, covered: float) -> Mask:
    """Return which cells a mask covers at least by a share."""
    height, width = mask.shape[0] // CELLS, mask.shape[1] // CELLS
    marked: Mask = mask.reshape(CELLS, height, CELLS, width).mean((1, 3)) >= covered
    return marked


def chosen(name: str, images: int) -> list[tuple[Image.Image, Mask]]:
    """Return images and masks of a data set, drawn at random."""
    data = load_data(name if name == "scenes" else f"parquet:{os.environ['TORCHDOCTOR_DATA']}/{name}")
    table = data.train.table
    found = []
    for place in np.random.default_rng(SEED).permutation(np.flatnonzero(table.has_mask)):
        image, mask = table.read(int(place))[:2]
        marked = np.asarray(mask) > 0
        if marked.any() and len(found) < images:
            found.append((image.convert("RGB"), marked))
    return found


def seconds_of(pairs: list[tuple[Image.Image, Mask]]) -> float:
    """Return the mean time of a cut on images that are enlarged to the largest side that is not reduced."""
    size = (LONGEST, LONGEST)
    large = [
        (image.resize(size), drawn_box(np.asarray(Image.fromarray(mask).resize(size)), WIDER["loose"]))
        for image, mask in pairs
    ]
    begun = time.process_time()
    for image, box in large:
        cut(image, box)
    return (time.process_time() - begun) / len(large)


def measured(name: str, images: int) -> Iterator[dict[str, object]]:
    """Yield a line for each kind of box and rule."""
    pairs = chosen(name, images)
    seconds = round(seconds_of(pairs[:TIMED]), 3)
    for kind, wider in WIDER.items():
        for rule, mask_of in RULES.items():
            masks = [mask_of(image, drawn_box(wanted, wider)) for image, wanted in pairs]
            found = np.array([overlap(mask, wanted) for mask, (_, wanted) in zip(masks, pairs, strict=True)])
            line: dict[str, object] = {
                "data": name, "box": kind, "rule": rule, "images": len(pairs),
                "iou": round(float(found.mean()), 3), "median": round(float(np.median(found)), 3),
                "0.8 or more": round(float((found >= 0.8).mean()), 3),
            }  # fmt: skip
            if name == "stl10_2":
                on_cells = [
                    overlap(cells(mask, COVERED), cells(wanted, 0.5))
                    for mask, (_, wanted) in zip(masks, pairs, strict=True)
                ]
                line["iou of cells"] = round(float(np.mean(on_cells)), 3)
            yield line if rule == "box" else {**line, "seconds at 128 px": seconds}


def main() -> None:
    """Measure and print a line for each data set, box and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["scenes", "stl10_2"], choices=["scenes", "stl10_2"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    if "stl10_2" in given.data and "TORCHDOCTOR_DATA" not in os.environ:
        parser.error("stl10_2 is read from the folder that TORCHDOCTOR_DATA names")
    with threadpool_limits(1):
        for name in given.data:
            for line in measured(name, given.images):
                json_lines.write(line, given.out)


if __name__ == "__main__":
    main()
