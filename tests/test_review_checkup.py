"""What a person answered in a review is trained with, and the record says where it came from."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from review_runs import CLASSES, HEIGHT, WIDTH
from torchdoctor import InputError
from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.defaults import masked_count
from torchdoctor.case.preparation import prepare
from torchdoctor.case.reviewed import answered_arms
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.review.label_store import LabelStore
from torchdoctor.review.mask_store import MaskStore
from torchdoctor.review.queue import LabelQuestion
from torchdoctor.runs.folder import open_run
from torchdoctor.treatment.arms import LEAST_MASKS
from torchdoctor.verbs.diagnose import run_diagnose
from torchdoctor.verbs.review import opened_session
from torchdoctor.verbs.search import listed_arms

DRAWN = 24  # masks; from 20 on an arm trains with them


@pytest.fixture(scope="module")
def run(reviewed):
    """A finished run whose questions a person has answered: 24 masks, 4 labels."""
    run = shutil.copytree(reviewed, reviewed.with_name("answered"))
    table = prepare(settings_from(read_config(run / "config.yaml")), "diagnose").data.train.table
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 20:40] = True
    masks = MaskStore(run, table)
    for place, image in enumerate(table.ids.tolist()[:DRAWN]):
        masks.write(image, mask, "accepted proposal" if place % 3 == 0 else "by hand")
    masks.write(table.ids.tolist()[-1], ~mask & mask, "by hand", no_object=True)
    MaskStore(run, table, "proposals").write(table.ids.tolist()[-2], mask, "proposal")
    names = dict(zip(table.ids.tolist(), map(str, table.names), strict=True))
    asked = [
        LabelQuestion(one.id, names[one.id], one.label, one.proposed, one.probability)
        for one in Suspects.load(run).suspects
    ]
    labels = LabelStore(run, asked, CLASSES)
    first, second, third, fourth = asked[:4]
    labels.write(first.id, "keep")
    labels.write(second.id, CLASSES.index(second.proposed))
    labels.write(
        third.id, next(n for n, one in enumerate(CLASSES) if one not in (third.given, third.proposed))
    )
    labels.write(fourth.id, "unusable")
    return run


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run."""
    shutil.copytree(run, tmp_path / "own")
    return tmp_path / "own"


def test_a_review_is_no_part_of_what_a_run_wrote(run):
    assert open_run(run) == run
    manifest = json.loads((run / "manifest.json").read_text())["files"]
    assert not any(name.startswith("review") for name in manifest) and "labels.csv" in manifest


def test_the_case_holds_answers_masks_and_where_they_came_from(run):
    case = prepare(Settings(review=str(run), device="cpu"), "checkup")
    before = prepare(settings_from(read_config(run / "config.yaml")), "diagnose")
    assert (case.plan.data, case.plan.weights) == (before.plan.data, before.plan.weights)
    assert case.data.train.table.has_mask.sum() == DRAWN and not before.data.train.table.has_mask.any()
    assert answered_arms(case.plan, DRAWN) == ("relabelled", "swap") and case.plan.labels == str(
        run / "labels.csv"
    )
    assert len(case.answers.labels) == 2 and len(case.answers.kept) == len(case.answers.unusable) == 1
    assert case.facts["review"] == {
        "labels": {"accepted proposal": 1, "by hand": 3},
        "masks": {"accepted proposal": 8, "by hand": 16, "no object": 1},
    }
    assert "4 labels (3 by hand, 1 proposal accepted)" in case.notes[0] and "24 images" in case.notes[0]
    assert case.data.fingerprints["train"]["masks"] == DRAWN
    assert (
        case.data.fingerprints["train"]["images_sha256"] == before.data.fingerprints["train"]["images_sha256"]
    )
    (batch,) = case.data.train.select(case.data.train.table.ids[:1])
    assert 0.1 < float(batch.masks.mean()) < 0.9
    treat = prepare(Settings(review=str(run), device="cpu"), "treat")
    assert treat.plan.arms == ("control", "relabelled", "swap")


def test_a_recorded_run_is_repeated_with_its_review(run, tmp_path):
    from torchdoctor.case.identity import identity_of

    case = prepare(Settings(review=str(run), device="cpu"), "checkup")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(identity_of("checkup", case)["config.yaml"]))
    again = prepare(settings_from(read_config(tmp_path / "config.yaml")), "checkup")
    assert again.plan == case.plan and again.review == case.review


def test_arms_that_are_named_leave_answers_out_and_say_so(run):
    case = prepare(Settings(review=str(run), device="cpu", arms=("control", "swap")), "checkup")
    assert case.plan.labels is None and any("does not name relabelled" in note for note in case.notes)


def test_a_review_that_cannot_be_used_is_refused(own, run):
    with pytest.raises(InputError, match="both hold answers about labels"):
        prepare(Settings(review=str(own), labels=str(run / "labels.csv")), "checkup")
    (own / "review" / "masks.json").write_text('{"masks": [{"id": "one"}]}')
    with pytest.raises(InputError, match=r"masks\.json.*does not hold what a run writes"):
        prepare(Settings(review=str(own)), "checkup")
    shutil.rmtree(own / "review")
    lines = (own / "labels.csv").read_text().splitlines()
    bare = [line.rpartition(",")[0] + "," for line in lines[1:]]
    (own / "labels.csv").write_text("\n".join([lines[0], *bare]) + "\n")
    with pytest.raises(InputError, match="nobody has answered anything yet; `torchdoctor review"):
        prepare(Settings(review=str(own)), "checkup")
    (own / "labels.csv").write_text("\n".join([lines[0], *(line + "keep" for line in bare)]) + "\n")
    with pytest.raises(InputError, match="nothing to train anew"):
        prepare(Settings(review=str(own)), "checkup")


def test_a_word_that_is_no_answer_is_refused_with_the_option_that_was_given(own, command):
    with (own / "labels.csv").open(newline="") as content:
        rows = list(csv.DictReader(content))
    rows[0]["answer"] = "bleu"
    with (own / "labels.csv").open("w", newline="") as content:
        writer = csv.DictWriter(content, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(
        InputError, match=r"^--review '.*own': '.*labels\.csv': 'bleu' of image .*'blue'"
    ) as found:
        prepare(Settings(review=str(own)), "checkup")
    assert "--labels" not in str(found.value)
    code, _, err = command("review", own, "--no-browser")
    assert code == 2 and "labels.csv': 'bleu' of image" in err and "--labels" not in err


def test_masks_of_the_run_and_masks_of_the_person_are_both_trained_with(run, tmp_path, blank_figures):
    before = settings_from(read_config(run / "config.yaml"))
    names = [str(name) for name in prepare(before, "diagnose").data.train.table.names]
    corner = np.zeros((HEIGHT, WIDTH), np.uint8)
    corner[:10, 20:30] = 255  # within the square that the network sees
    for name in names[: LEAST_MASKS - 1]:  # the first two get another mask from the person
        file = (tmp_path / "corners" / "train" / name).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(corner).save(file)
    own = tmp_path / "with_masks"
    masked = before.but(masks=str(tmp_path / "corners"), out=str(own))
    assert run_diagnose(masked).exit_code in (0, 4)
    table = prepare(masked, "diagnose").data.train.table
    assert table.has_mask.tolist() == [place < LEAST_MASKS - 1 for place in range(len(table))]
    store = MaskStore(own, table)
    whole = np.ones((HEIGHT, WIDTH), bool)
    for place in (0, 1):
        store.write(table.ids.tolist()[place], whole, "by hand")
    # A person's masks and others count together, and an image that has both counts once.
    again = Settings(review=str(own), device="cpu")
    assert prepare(again, "treat").plan.arms[:2] == ("control", "treated")
    with opened_session(str(own), {}) as session:
        assert session.state()["masksBefore"] == LEAST_MASKS - 3  # of which no drawn mask takes the place
    store.write(table.ids.tolist()[LEAST_MASKS - 1], whole, "by hand")
    case = prepare(Settings(review=str(own), device="cpu"), "checkup")
    train = case.data.train
    assert case.plan.masks == masked.masks and train.table.has_mask.sum() == LEAST_MASKS
    assert listed_arms(case.plan, masked_count(case.data)) == ("swap",)
    assert prepare(again, "treat").plan.arms == ("control", "swap")
    (batch,) = train.select(train.table.ids[[0, 1, 2, LEAST_MASKS - 1]])
    shares = batch.masks.float().mean(tuple(range(1, batch.masks.ndim))).tolist()
    assert shares[0] == shares[1] == shares[3] == 1 and 0 < shares[2] < 0.2
    assert case.facts["review"]["masks"] == {"by hand": 3}


def test_masks_that_changed_after_the_review_are_refused(own):
    file = next((own / "review" / "masks").rglob("*.png"))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InputError, match="is changed after the review; `torchdoctor review"):
        prepare(Settings(review=str(own)), "checkup")
    file.unlink()
    with pytest.raises(InputError, match="is missing since the review"):
        prepare(Settings(review=str(own)), "checkup")


def test_images_of_another_selection_are_refused(run):
    with pytest.raises(InputError, match=r"not among the .* training images"):
        prepare(Settings(review=str(run), limit=5), "checkup")


@pytest.mark.slow
def test_a_checkup_with_a_review(run, command, tmp_path):
    code, out, err = command(
        "checkup", "--review", run, "--epochs", 1, "--seeds", 1, "--batch-size", 16, "--device", "cpu",
        "--out", "checked", "--json",
    )  # fmt: skip
    assert code in (0, 3, 4), err
    record = json.loads(out)
    assert {"control", "relabelled", "swap"} <= set(record["arms"])
    assert record["review"]["masks"] == {"accepted proposal": 8, "by hand": 16, "no object": 1}
    assert "a person answered in a review" in err
    assert json.loads((tmp_path / "checked" / "data.json").read_text())["review"] == record["review"]
    history = json.loads((tmp_path / "checked/treatment/relabelled/seed0/history.json").read_text())
    assert history["facts"] == [{"relabelled": 2, "left_out": 1}]
    page = (tmp_path / "checked" / "report.html").read_text()
    assert "a person answered in a review about 4 labels (3 by hand, 1 proposal accepted)" in page
    compared = json.loads((tmp_path / "checked" / "compare.json").read_text())
    assert {"relabelled", "swap"} <= set(json.dumps(compared).split('"'))
