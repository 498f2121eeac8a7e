"""The tutorial's way through a review: its commands in their order, answered in a browser to the report.

The commands are read from the page. What is appended to them so that they take seconds stands in `APPENDED`.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from review_runs import ROOT, Server, case_of_run, list_mislabelled, mislabel_photographs
from test_docs import SHELL, tokens_of
from test_review_browser import browser as browser  # the fixture
from test_review_browser import current_image, opened, press, pull, pytestmark, saved, screen, text, until
from torchdoctor.report.number_text import signed
from torchdoctor.runs.review_files import read_masks

pytestmark = [*pytestmark, pytest.mark.slow]
PAGE = ROOT / "docs" / "tutorial.md"
# What is appended to the page's commands, by the folder of their runs and their verb; nothing else differs.
SMALL = "--image-size 32 --batch-size 32"
APPENDED = {
    "person": {
        "review": "--no-browser",
        "checkup": "--epochs 1 --seeds 2 --json",
    },
    "photographs": {
        "train": f"{SMALL} --epochs 8",
        "diagnose": SMALL,
        "review": "--no-browser",
        "checkup": "--arms relabelled --epochs 2 --seeds 2 --batch-size 32 --json",
    },
}
CATEGORIES = ("Gordon setter", "frying pan", "school bus", "yawl")  # those that --classes 4 draws
IMAGES = 48  # photographs for training, of each category
MASKS = 24  # that the person draws
ENTER = "\ue007"

Command = Callable[..., tuple[int, str, str]]


@dataclass
class Answered:
    """What a person answered: the label of each image, the kind of each mask, and the effort for both.

    `labels` holds what `labels.csv` should, `accepted` counts answers that are the proposed category, and
    `efforts` are the keys and the clicks or drags of each mask, by its kind.
    """

    labels: dict[str, str]
    accepted: int
    keys: int
    efforts: list[tuple[str, int, int]]


def commands_of_reviews() -> dict[str, list[list[str]]]:
    """Return the commands of the page's blocks in which a person reviews, by the folder of their runs."""
    found = {}
    for token in tokens_of(PAGE):
        if token.type == "fence" and token.info in SHELL:
            lines = token.content.replace("\\\n", " ").splitlines()
            block = [shlex.split(line) for line in lines if line.strip()]
            for words in block:
                if words[:2] == ["torchdoctor", "review"]:
                    found[words[2].split("/")[0]] = block
    return found


def answer_labels(browser, server: Server, right: Callable[[str], str], number: int) -> tuple[dict, int, int]:
    """Answer labels with what is right; return the answers by image, the accepted proposals, and the keys."""
    opened(browser, server, "labels")
    answers: dict[str, str] = {}
    accepted = 0
    for _ in range(number):
        name, given, proposed = (text(browser, one) for one in ("#label-name", "#given", "#proposed"))
        truth = right(name)
        answers[name] = "keep" if truth == given else truth
        if truth in (given, proposed):
            accepted += truth == proposed
            saved(browser, lambda key="k" if truth == given else "p": press(browser, key))
        else:
            press(browser, "c")
            until(browser, "return document.querySelector('#other').open")
            press(browser, truth)
            saved(browser, lambda: press(browser, ENTER))
    return answers, accepted, browser.execute_script("return window.keys")


def draw_masks(browser, server: Server, run: Path, side: int) -> list[tuple[str, int, int]]:
    """Mark objects, mostly by boxes; return the kind of each, its keys, and its clicks or drags."""
    opened(browser, server, "masks")
    efforts = []
    size = (side, side)
    waiting = "return /Nothing is marked/.test(document.querySelector('#mask-state').textContent)"
    marked = "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)"
    without = "return /there is no proposal/.test(document.querySelector('#mask-state').textContent)"
    asked = "return /Not saved|no proposal/.test(document.querySelector('#mask-state').textContent)"
    corners = [(0.24, 0.24), (0.74, 0.29), (0.79, 0.71), (0.48, 0.83), (0.21, 0.69)]
    box = [(0.19, 0.17), (0.81, 0.86)]
    for number in range(MASKS):
        until(browser, waiting)
        image = current_image(browser, run, server)
        assert image not in read_masks(run)
        browser.execute_script("window.keys = 0; window.places = []")
        if number % 8 == 0:
            kind = "polygon"
            press(browser, "2")
            pull(browser, [(x * side, y * side) for x, y in corners], click=True, size=size)
            press(browser, "f")
        elif number % 8 == 4:
            kind = "proposal"
            press(browser, "a")
            until(browser, asked)
            if browser.execute_script(without):
                kind = "box"
                pull(browser, [(x * side, y * side) for x, y in box], size=size)
        else:
            kind = "box"
            if number % 8 in (1, 5):
                press(browser, "1")
            pull(browser, [(x * side, y * side) for x, y in box], size=size)
        until(browser, marked)
        saved(browser, lambda: press(browser, ENTER))
        pressed = browser.execute_script("return window.keys")
        pointed = browser.execute_script(
            "return window.places.filter(([kind]) => kind === 'pointerdown').length"
        )
        efforts.append((kind, pressed, pointed))
    return efforts


def walk(
    name: str, command: Command, review: Callable[[Server, Path], Answered]
) -> tuple[Answered, dict, Path]:
    """Run a block of the page to its end; return what was answered, the last record, and its folder."""
    answered, record, out = None, {}, Path()
    for words in commands_of_reviews()[name]:
        if words[0] == "python":
            surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
            program = [sys.executable, str(ROOT / words[1]), *words[2:]]
            subprocess.run(program, env=surroundings, check=True, timeout=600)
            continue
        verb = words[1]
        more = shlex.split(APPENDED[name].get(verb, ""))
        if verb == "review":
            run = Path(words[2])
            with Server(run, (*words[3:], *more)) as server:
                answered = review(server, run)
            assert f"train with the answers: torchdoctor checkup --review {run}" in server.printed
            continue
        code, printed, err = command(*words[1:], *more)
        assert code in ((0,) if verb == "train" else (0, 3, 4)), err
        if verb == "checkup":
            record, out = json.loads(printed), Path(words[words.index("--out") + 1])
    assert answered is not None and record, "the block ends with a checkup after a review"
    return answered, record, out


def check_files(run: Path, answered: Answered) -> None:
    """Check that the run holds exactly what was answered."""
    written = {row["image"]: row["answer"] for row in csv.DictReader((run / "labels.csv").open())}
    assert {image: answer for image, answer in written.items() if answer} == answered.labels
    assert Counter(record.kind for record in read_masks(run).values()) == kinds_of(answered)


def kinds_of(answered: Answered) -> Counter[str]:
    """Return the number of masks by the kind that the files give them."""
    return Counter("accepted proposal" if kind == "proposal" else "by hand" for kind, *_ in answered.efforts)


def check_checkup(answered: Answered, record: dict, out: Path, arms: Sequence[str]) -> None:
    """Check that the record and the report say what the person gave, and what that brought."""
    labels, accepted = len(answered.labels), answered.accepted
    by_hand = labels - accepted
    changed = sum(answer != "keep" for answer in answered.labels.values())
    assert record["review"] == {
        "labels": {"accepted proposal": accepted, "by hand": by_hand}, "masks": dict(kinds_of(answered)),
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert (
        f"a person answered in a review about {labels} labels ({by_hand} by hand, {accepted} "
        f"proposals accepted) and drew masks of {MASKS} images" in page
    )
    # The same budget, and the gain of each arm over the control that got it without the answers.
    assert "got the same further training of" in page
    assert f"the control with the loss alone, {arms[0]} with its remedy" in page
    for arm, seed in itertools.product(("control", *arms), (0, 1)):
        history = json.loads((out / f"treatment/{arm}/seed{seed}/history.json").read_text())
        assert history["passes"] == record["steps"]
        assert history["facts"] == ([{"relabelled": changed, "left_out": 0}] if arm == "relabelled" else [])
    assert set(record["against_control"]["test"]) == set(arms)
    for against in record["against_control"]["test"].values():
        gain = against["gain"]
        assert f"({signed(gain['low'])} to {signed(gain['high'])})" in page and signed(gain["mean"]) in page


def test_every_block_with_a_review_is_walked():
    assert set(commands_of_reviews()) == set(APPENDED)
    for block in commands_of_reviews().values():
        assert [words[1] for words in block if words[0] == "torchdoctor"] == [
            "train", "diagnose", "review", "checkup",
        ]  # fmt: skip


def test_a_person_answers_about_photographs_and_the_report_says_what_that_brought(
    browser, command, real_data, tmp_path
):
    count = 12  # labels that the person answers
    right = mislabel_photographs(
        real_data / "mini_imagenet30", tmp_path / "mini_imagenet30", CATEGORIES, IMAGES
    )
    screen(browser, "desk")

    def review(server: Server, run: Path) -> Answered:
        labels = answer_labels(browser, server, right.__getitem__, count)
        until(browser, "return !document.querySelector('#labels .done').hidden")
        return Answered(*labels, draw_masks(browser, server, run, 84))

    def listed(*words):
        done = command(*words)
        if words[0] == "diagnose":  # so few images prove no wrong label: list the planted ones
            run = Path("photographs/seen")
            assert case_of_run(run).classes == CATEGORIES
            list_mislabelled(run, right, count)
        return done

    answered, record, out = walk("photographs", listed, review)
    check_files(Path("photographs/seen"), answered)
    assert len(answered.labels) == answered.keys == count  # a key for each
    assert answered.accepted == 2 * count // 3
    assert {kind: tuple(efforts) for kind, *efforts in answered.efforts if kind != "box"} == {
        "polygon": (3, 5), "proposal": (2, 0),
    }  # fmt: skip
    assert {tuple(efforts) for kind, *efforts in answered.efforts if kind == "box"} == {(1, 1), (2, 1)}
    total = sum(pressed + pointed for _, pressed, pointed in answered.efforts)
    assert total == 3 * MASKS  # keys, clicks and drags; docs/how-to/review.md says so
    check_checkup(answered, record, out, ("swap", "relabelled"))


def test_a_person_answers_about_drawn_images_that_the_diagnosis_lists(browser, command):
    count = 50  # labels that the person answers; from 50 on the page says how good the list is
    screen(browser, "desk")

    def review(server: Server, run: Path) -> Answered:
        def right(name: str) -> str:  # as in ring/train-00008-cross-on-stripes.png
            return name.rpartition("-on-")[0].rpartition("-")[2]

        labels = answer_labels(browser, server, right, count)
        wrong = sum(answer != "keep" for answer in labels[0].values())
        assert f"{wrong} of the {count} labels that you looked at are wrong" in text(browser, "#precision")
        return Answered(*labels, draw_masks(browser, server, run, 64))

    answered, record, out = walk("person", command, review)
    check_files(Path("person/seen"), answered)
    check_checkup(answered, record, out, ("relabelled", "swap"))
