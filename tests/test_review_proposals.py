"""Masks that a network or colours propose: stored apart, and called proposals wherever they are used."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from PIL import Image

from review_runs import CLASSES
from torchdoctor.data.mask_folder import is_proposal
from torchdoctor.runs.review_files import read_masks

pytestmark = pytest.mark.usefixtures("blank_figures")
HALF = 7  # of the 14 training images of each category


@pytest.fixture(scope="module")
def run(reviewed):
    """A finished run of these tests' own."""
    return shutil.copytree(reviewed, reviewed.with_name("proposed"))


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run."""
    shutil.copytree(run, tmp_path / "own")
    return tmp_path / "own"


def proposed(command, run):
    """Store proposals; return how many were stored."""
    code, out, err = command("review", run, "--propose", "--json")
    assert code == 0, err
    return json.loads(out)["proposed"]


def boxed_table(run, file, limit):
    """Write the photographs as a table whose first training images have a loose box."""
    photographs = file.parent / "photographs"
    shutil.copytree(run.parent / "photographs", photographs)
    with file.open("w", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(["path", "label", "split", "bbox"])
        for split in ("train", "test"):
            for name in CLASSES:
                for number, image in enumerate(sorted((photographs / split / name).iterdir())):
                    box = "14,4,46,36" if split == "train" and number < limit else ""
                    writer.writerow([image.relative_to(file.parent), name, split, box])
    return f"table:{file}"


def diagnosed(command, run, data, out):
    weights = run.parent / "base" / "model.safetensors"
    code, _, err = command("diagnose", "--weights", weights, "--data", data, "--device", "cpu", "--out", out)
    assert code in (0, 4), err


def test_proposals_are_stored_apart_and_called_so_in_their_files(own, command):
    number = proposed(command, own)
    assert number > 0 and read_masks(own) == {}
    proposals = read_masks(own, "proposals")
    assert len(proposals) == number and {one.kind for one in proposals.values()} == {"proposal"}
    files = [own / "review" / one.file for one in proposals.values()]
    assert all(map(is_proposal, files))
    assert proposed(command, own) == 0  # they are there
    # Without its file a proposal is made anew.
    files[0].unlink()
    assert proposed(command, own) == 1 and is_proposal(files[0])


def test_proposals_that_are_given_as_masks_are_called_so(run, own, command, tmp_path):
    proposed(command, own)
    folder = own / "review" / "proposals" / "train"
    shutil.rmtree(next(one for one in folder.iterdir() if one.name not in CLASSES))  # of a name with markup
    plain = [file for file in folder.rglob("*.png") if "script" not in file.name]
    number, corrected = len(plain), plain[0]
    Image.open(corrected).convert("L").point(lambda grey: grey).save(corrected)  # by another program
    data = ("--data", f"folder:{run.parent / 'photographs'}", "--masks", folder.parent)
    code, _, err = command(
        "checkup", "--weights", run.parent / "base/model.safetensors", *data, "--arms", "swap", "--epochs", 1,
        "--seeds", 1, "--batch-size", 16, "--device", "cpu", "--out", "trained",
    )  # fmt: skip
    assert code in (0, 3, 4), err
    note = f"{number - 1} of {number} masks are proposals that nobody has looked at"
    assert note in err and note in (tmp_path / "trained/report.html").read_text()
    assert note in command("masks", "check", *data)[1]


@pytest.mark.parametrize("limit", [HALF, 14])
def test_boxes_of_the_data_are_masks_so_nothing_is_proposed_there(run, command, tmp_path, limit):
    data = boxed_table(run, tmp_path / "photographs.csv", limit)
    diagnosed(command, run, data, "boxed")
    code, out, err = command("review", "boxed", "--propose", "--json")
    if limit == 14:
        assert code == 2 and "every image whose mask would teach much has one" in err
        return
    assert code == 0, err
    record = json.loads(out)
    assert 0 < record["proposed"] <= record["masks"]["asked"] <= 3 * (14 - HALF)
    with (tmp_path / "photographs.csv").open(newline="") as content:
        boxed = {row["path"] for row in csv.DictReader(content) if row["bbox"]}
    assert len(boxed) == 3 * HALF
    assert not boxed & {one.image for one in read_masks(tmp_path / "boxed", "proposals").values()}
