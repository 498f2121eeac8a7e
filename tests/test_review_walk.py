"""The whole way of a person: train, diagnose, answer in the browser, check up, and read what that brought."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter

import pytest

from review_runs import Server, case_of_run, list_mislabelled, mislabel_photographs
from test_review_browser import browser as browser  # the fixture
from test_review_browser import current_image, opened, press, pull, pytestmark, saved, screen, text, until
from torchdoctor.report.number_text import signed
from torchdoctor.runs.review_files import read_masks

pytestmark = [*pytestmark, pytest.mark.slow]
CATEGORIES = ("Gordon setter", "frying pan", "school bus", "yawl")  # those that --classes 4 draws
IMAGES = 48  # for training, of each category
SIZE = (84, 84)  # of each photograph
LABELS, MASKS = 12, 24  # that the person answers
ENTER = "\ue007"


def answer_labels(browser, server, right):
    """Answer every label with what is right; return the answers by image, and how many keys that took."""
    opened(browser, server, "labels")
    answers = {}
    for _ in range(LABELS):
        name, given, proposed = (
            text(browser, "#label-name"),
            text(browser, "#given"),
            text(browser, "#proposed"),
        )
        assert right[name] in (given, proposed)
        answers[name] = "keep" if right[name] == given else proposed
        saved(browser, lambda name=name, given=given: press(browser, "k" if right[name] == given else "p"))
    until(browser, "return !document.querySelector('#labels .done').hidden")
    return answers, browser.execute_script("return window.keys")


def draw_masks(browser, server, run):
    """Mark objects, mostly by boxes; return by kind how many keys and clicks or drags each image took."""
    opened(browser, server, "masks")
    effort = {}
    waiting = "return /Nothing is marked/.test(document.querySelector('#mask-state').textContent)"
    marked = "return /Not saved yet/.test(document.querySelector('#mask-state').textContent)"
    for number in range(MASKS):
        until(browser, waiting)
        image = current_image(browser, run, server)
        browser.execute_script("window.keys = 0; window.places = []")
        if number % 8 == 0:
            kind = "polygon"
            press(browser, "2")
            pull(browser, [(20, 20), (62, 24), (66, 60), (40, 70), (18, 58)], click=True, size=SIZE)
            press(browser, "f")
        elif number % 8 == 4:
            kind = "proposal"
            press(browser, "a")
        else:
            kind = "box"
            if number % 8 in (1, 5):
                press(browser, "1")
            pull(browser, [(16, 14), (68, 72)], size=SIZE)
        until(browser, marked)
        saved(browser, lambda: press(browser, ENTER))
        pressed = browser.execute_script("return window.keys")
        pointed = browser.execute_script(
            "return window.places.filter(([kind]) => kind === 'pointerdown').length"
        )
        effort[image] = (kind, pressed, pointed)
    return effort


def test_a_person_answers_and_the_report_says_what_that_brought(browser, command, real_data, tmp_path):
    right = mislabel_photographs(real_data / "mini_imagenet30", tmp_path / "mini", CATEGORIES, IMAGES)
    data = (
        "--data",
        "parquet:mini",
        "--classes",
        4,
        "--image-size",
        32,
        "--device",
        "cpu",
        "--batch-size",
        32,
    )
    code, _, err = command("train", "--model", "small_resnet", *data, "--epochs", 8, "--out", "base")
    assert code == 0, err
    code, _, err = command("diagnose", "--weights", "base/model.safetensors", *data, "--out", "seen")
    assert code in (0, 4), err
    run = tmp_path / "seen"
    assert case_of_run(run).classes == CATEGORIES
    list_mislabelled(run, right, LABELS)  # so few images prove no wrong label

    screen(browser, "desk")
    with Server(run) as server:
        answers, keys = answer_labels(browser, server, right)
        effort = draw_masks(browser, server, run)
    written = {row["image"]: row["answer"] for row in csv.DictReader((run / "labels.csv").open())}
    assert written == answers and len(answers) == keys == LABELS  # a key for each
    wrong = sum(answer != "keep" for answer in answers.values())
    assert wrong == 2 * LABELS // 3
    assert {kind: efforts for kind, *efforts in effort.values() if kind != "box"} == {
        "polygon": [3, 5], "proposal": [2, 0],
    }  # fmt: skip
    assert {tuple(efforts) for kind, *efforts in effort.values() if kind == "box"} == {(1, 1), (2, 1)}
    total = sum(pressed + pointed for _, pressed, pointed in effort.values())
    assert total == 3 * MASKS  # keys, clicks and drags; docs/how-to/review.md says so
    kinds = Counter("accepted proposal" if kind == "proposal" else "by hand" for kind, *_ in effort.values())
    assert Counter(record.kind for record in read_masks(run).values()) == kinds
    assert f"train with the answers: torchdoctor checkup --review {run}" in server.printed

    code, out, err = command(
        "checkup", "--review", "seen", "--device", "cpu", "--arms", "control,relabelled,swap", "--epochs", 2,
        "--seeds", 2, "--batch-size", 32, "--out", "reviewed", "--json",
    )  # fmt: skip
    assert code in (0, 3, 4), err
    record = json.loads(out)
    assert record["review"] == {
        "labels": {"accepted proposal": wrong, "by hand": LABELS - wrong}, "masks": dict(kinds),
    }  # fmt: skip
    page = (tmp_path / "reviewed/report.html").read_text()
    assert (
        f"a person answered in a review about {LABELS} labels ({LABELS - wrong} by hand, {wrong} proposals "
        f"accepted) and drew masks of {MASKS} images" in page
    )
    # The same budget, and the gain of each arm over the control that got it without the answers.
    assert (
        "got the same further training of" in page
        and "the control with the loss alone, relabelled with" in page
    )
    for arm, seed in itertools.product(("control", "relabelled", "swap"), (0, 1)):
        history = json.loads((tmp_path / f"reviewed/treatment/{arm}/seed{seed}/history.json").read_text())
        assert history["passes"] == record["steps"]
        assert history["facts"] == ([{"relabelled": wrong, "left_out": 0}] if arm == "relabelled" else [])
    for arm, against in record["against_control"]["test"].items():
        gain = against["gain"]
        assert arm in ("relabelled", "swap")
        assert f"({signed(gain['low'])} to {signed(gain['high'])})" in page and signed(gain["mean"]) in page
