"""Render the ledger: the paper's numbers beside ours, from the lines that the programs of this folder wrote.

    python benchmarks/ledger/render.py [--results FOLDER] [--out docs/ledger.md]

`make ledger` does this. The page holds nothing that is not in the lines: the same lines give the same page.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ledger import page_ablations, page_discoveries, page_table1
from benchmarks.ledger.counterparts import rank
from benchmarks.ledger.gains import Arms, Place, by_place
from benchmarks.ledger.lines import RESULTS, Ledger, Line
from benchmarks.ledger.page_text import command, table
from benchmarks.ledger.protocols import PAPER, PROTOCOLS, SEEDS, SHORT, Protocol

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ledger.md"
SHOWN = ("paper", "short")  # of the protocols: the numbers of `smallest` mean nothing


@dataclass(frozen=True)
class Section:
    """A table or figure of the paper beside ours: what it claims, and how its lines are shown."""

    program: str
    title: str
    claim: str
    reading: str
    show: Callable[[Mapping[Place, Arms]], list[str]]
    paper: str = ""  # what the command for the paper's own network adds


SECTIONS = (
    Section(
        "table2",
        "Table 2: how many annotated images",
        "VGG-16, mini-ImageNet: +3.22 points with 100 annotated images, +5.58 with 200, +8.03 with 1000; "
        '"12% annotated samples ... have achieved near-optimal accuracy increase".',
        "The paper's numbers, of 10 categories, are divided by 10. Every number of annotated images has a "
        "control of its own, which sees them too. mini-ImageNet has no masks here: other data stand in.",
        page_ablations.annotations,
        "--architectures vgg16",
    ),
    Section(
        "table3",
        "Table 3: how far the object is grown",
        "VGG-16, mini-ImageNet: −7.48 points without expansion, the best, +5.58, with 30 pixels.",
        "Pixels are read as of 224 and scaled to the image. The expansion changes the penalty alone, so that "
        "one control serves all.",
        page_ablations.expansions,
        "--architectures vgg16",
    ),
    Section(
        "figure1",
        "Figure 1 and the first discovery: sparse kernels, fewer with depth",
        '"The number of convolutional kernels with high correlation reduces along with the network layer '
        'goes deeper", and a single image\'s are "almost identical" with its category\'s.',
        "Columns `share and depth` and `number and depth` are rank correlations over all convolutions, −1 "
        "where every deeper layer has fewer. `agreement`: how alike an image's evidence is to its "
        "category's (cosine); it means something only above `between`, how alike two categories are.",
        page_discoveries.layers,
        "--architectures vgg16",
    ),
    Section(
        "figure2",
        "Figure 2: the kernels of the last layer",
        'GoogLeNet, CIFAR-10: "each category is only correlated with sparse and specific convolutional '
        'kernels".',
        "Where the logits are `affine` in the layer's map, the gradient is the linear layer's weight and "
        "agreement holds by construction.",
        page_discoveries.sparseness,
    ),
    Section(
        "figure3",
        "Figure 3 and the second discovery: adversarial images are isolated",
        'Noise up to 0.3: normal images stay right in "close to 100%", adversarial ones turn back to their '
        'label in "close to 100%", "less than 10%" keep the false one.',
        "Percent of the images that were attacked with success (FGSM, 8/255): normal ones still right, "
        "twins back at their label, twins at the false one.",
        page_discoveries.noise,
        "--architectures vgg16",
    ),
    Section(
        "figure4",
        "Figure 4: which categories gain",
        'VGG-16, 10 categories of mini-ImageNet: "higher accuracy increase on low accuracy categories".',
        "Rank correlations of a category's gain with the base's accuracy on validation images: negative "
        "where low categories gain more. That of the gain over the base with the base on the same images is "
        "the paper's way, which luck alone pushes down; the control's line is what training on alone does.",
        page_ablations.categories,
        "--architectures vgg16 --datasets mini_imagenet30",
    ),
    Section(
        "figure5",
        "Figure 5: evidence on the background",
        '"The space-wise constraint successfully restrains the irrelevant background areas" (pictures).',
        "The share of the evidence that lies on the background, over all test images with a mask, in "
        "percent; evidence spread evenly would have the background's area.",
        page_discoveries.background,
        "--architectures vgg16",
    ),
    Section(
        "figure6",
        "Figure 6: at which layer",
        'VGG-16, mini-ImageNet: "the increased accuracy of all constraints will increase when the layer '
        'goes deep" (a drawing, no numbers).',
        "The last convolution of each quarter of the network, first to last; one control for all. "
        "`literal` has J = 1 in `short`.",
        page_ablations.depths,
        "--architectures vgg16",
    ),
)


def page(results: Path, out: Path) -> str:
    """Return the page for the lines in a folder; pictures are linked relative to `out`."""
    lines = {program: _lines(results, program) for program in ("table1", *(one.program for one in SECTIONS))}
    places = {program: _sorted(by_place(own)) for program, own in lines.items()}
    parts = [_top(), "## Summary of Table 1", ""]
    for protocol in SHOWN:
        mine = page_table1.of_protocol(places["table1"], protocol)
        parts += [f"### Protocol `{protocol}`", ""]
        parts += page_table1.summary(mine) or _not_yet("table1", protocol)
    parts += ["## Table 1", "", TABLE_1_CLAIM, ""]
    for protocol in SHOWN:
        parts += _table_1(page_table1.of_protocol(places["table1"], protocol), protocol)
    for section in SECTIONS:
        parts += [
            f"## {section.title}",
            "",
            f"The paper: {section.claim}",
            "",
            f"Ours: {section.reading}",
            "",
        ]
        found = section.show(places[section.program])
        parts += found
        for protocol in SHOWN:
            if not any(place.protocol == protocol for place in places[section.program]):
                parts += _not_yet(section.program, protocol, section.paper if protocol == "paper" else "")
        parts += _pictures(results, section.program, out)
    parts += ["## What the lines were measured on", "", *_origins(lines)]
    return _tidy(parts)


TABLE_1_CLAIM = (
    'The paper: "Model Doctor helps all CNN classifiers improve accuracy by 1% ~ 5%": averages of 3 runs, '
    "on mini-ImageNet of 10 draws of 10 categories. Its gains are over the base, without a control."
)


def _top() -> str:
    """Return what a reader has to know."""
    return f"""# The ledger: the paper's tables and figures, measured again

Written by `make ledger` from the files of `benchmarks/results/`; change those, not this page. ROOT is the
folder of the data sets. Feng et al., AAAI 2022, is "the paper".

- **Protocol `paper`**: {_described(PAPER)}.
- **Protocol `short`**: {_described(SHORT)}.
  At most three minutes of one CPU core for an arm: a quick look, not the paper's setting.
- The paper's text names no epochs, learning rates or weights of the constraints: these are ours.
- **n** is the number of seeds; where categories are drawn every seed has a draw of its own.
- **Gain over control**: the arm minus a control that got the same further training without the constraints, same
  weights to begin with, same batches; in points of test accuracy, paired by seed. **Over base** is what the paper
  reports: the further training counts as gain there. Nothing is chosen on test images.
- **Intervals** (95 %) are Student's over the differences of the seeds: what other seeds would give on these test
  images. Bold: the whole interval is on one side of 0. Seeds that agree more closely than rounding to whole
  images allows are taken to differ by that much: a standard deviation of 0.41 images. A summary's interval is over
  the data sets, each the mean of its networks: networks on the same images are no independent witnesses.
- **Detectable** is the power: the least gain that the same number of seeds, with this scatter, would have shown
  in four cases of five. A gain below it can hide in the row.
- **literal** is Eq. 5 and 6 by the letter (plain gradient, unscaled, J = 10), **ours** gradient x activation as a
  share of all evidence (J = 1); both at the last layer of the catalogue, weights automatic.
- **Data that are not the paper's** say so in their name. Masks of MNIST and Fashion-MNIST: by pixel > 0 (above 8
  of 255, what compression may leave of black).
- A number is checked with `make ledger-check CELL=table1/ARCHITECTURE/DATASET/DRAW/SIZE/ARM/VARIANT/SEED/PROTOCOL`.
"""  # noqa: E501


def _described(protocol: Protocol) -> str:
    """Return a protocol in words."""
    rate = protocol.rate * protocol.rate_of_treatment
    draws = protocol.sizes["mini_imagenet30"].draws
    limits = sorted(size.limit for size in protocol.sizes.values() if size.limit is not None)
    images = f"{limits[0]} to {limits[-1]} training images a category" if limits else "all training images"
    whole = [name for name, size in protocol.sizes.items() if limits and size.limit is None]
    images += f" ({', '.join(whole)}: all)" if whole else ""
    return (
        f"{images}, base {protocol.base_epochs} epochs, arms {protocol.epochs} epochs at a rate of {rate:g}, "
        f"batches of {protocol.batch_size}, {protocol.precision}, {SEEDS} seeds, {draws} draws of categories"
    )


def _table_1(places: Mapping[Place, Arms], protocol: str) -> list[str]:
    """Return Table 1 under one protocol."""
    parts = [f"### Protocol `{protocol}`: test images", ""]
    parts += page_table1.measured(places) or _not_yet("table1", protocol)
    other = page_table1.on_other_backgrounds(places)
    if other:
        parts += [f"### Protocol `{protocol}`: test images on other backgrounds", "",
                  "Each test object before the background of an image of another category; `scenes` also "
                  "has a test split whose backgrounds say nothing.", *other]  # fmt: skip
    return [*parts, f"### Protocol `{protocol}`: open", *page_table1.still_open(places, protocol)]


def _lines(results: Path, program: str) -> list[Line]:
    """Return a program's lines of the protocols that are shown."""
    return [line for line in Ledger(results / f"{program}.jsonl").lines() if line["protocol"] in SHOWN]


def _sorted(places: Mapping[Place, Arms]) -> dict[Place, Arms]:
    """Return places by protocol, then as the paper's table is sorted."""
    order = list(PROTOCOLS)
    order.sort(key=lambda name: SHOWN.index(name) if name in SHOWN else len(SHOWN))
    keys = sorted(
        places,
        key=lambda one: (order.index(one.protocol), *rank(one.dataset, one.architecture), one.image_size),
    )
    return {place: places[place] for place in keys}


def _not_yet(program: str, protocol: str, words: str = "") -> list[str]:
    return ["", f"Protocol `{protocol}`: not measured yet: {command(program, protocol, words)}", ""]


def _pictures(results: Path, program: str, out: Path) -> list[str]:
    """Return the pictures of a program."""
    files = sorted((results / "figures").glob(f"{program}*.png"))
    files = [file for file in files if not file.stem.endswith("-smallest")]
    return [f"![{file.stem}]({Path(os.path.relpath(file, out.parent)).as_posix()})\n" for file in files]


def _origins(lines: Mapping[str, Sequence[Line]]) -> list[str]:
    """Return for each program and protocol the devices, versions and revisions behind its lines."""
    rows = []
    for program, own in lines.items():
        for protocol in SHOWN:
            mine = [line for line in own if line["protocol"] == protocol]
            if not mine:
                continue
            torches = sorted({str(line.get("versions", {}).get("torch", "")) for line in mine})
            said = [
                sorted({str(line.get(name, ""))[:most] for line in mine})
                for name, most in (("device", None), ("revision", 12))
            ]
            hours = sum(line.get("seconds", 0) for line in mine) / 3600
            words = [", ".join(filter(None, one)) for one in (said[0], torches, said[1])]
            rows.append([f"{program}, {protocol}", str(len(mine)), f"{hours:.1f}", *words])
    if not rows:
        return ["There are no lines yet."]
    heads = ["lines of", "number", "hours of training the arms", "device", "torch", "revisions"]
    return table(heads, rows)


def _tidy(parts: Sequence[str]) -> str:
    """Return the page's text without blank lines in a row."""
    kept: list[str] = []
    for line in "\n".join(parts).splitlines():
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    text = page(given.results.resolve(), given.out.resolve())
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)
    print(f"{given.out}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
