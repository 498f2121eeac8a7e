"""What a treatment is compared on: the data's own test splits, and objects before other backgrounds."""

from __future__ import annotations

import json

import pytest
import torch

from pictures import RAW, is_red, table_of, write_split
from torchdoctor.case import splits
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Plan, Settings
from torchdoctor.case.splits import splits_to_compare, swapped_count, swapped_images
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.verbs.search import listed_arms


def case_with(tests, primary="test", decides=None):
    one = next(iter(tests.values()))
    data = Splits(one.table.classes, one, one, tests, primary, RAW, has_masks=True)
    return Case(Plan.model_construct(primary=decides or primary, seed=0), torch.nn.Identity(), data, {})


def test_objects_stay_and_backgrounds_are_of_another_category(monkeypatch):
    loader = Loader(table_of(9), RAW, 4, 0, "none")
    whole = swapped_images(loader, 0)
    before = torch.cat([batch.images for batch in loader])
    after, ids = (torch.cat([getattr(one, name) for one in whole]) for name in ("images", "ids"))
    assert ids.tolist() == list(range(9))
    assert (is_red(after) >= is_red(before)).all()  # the object is where it was
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(after, torch.cat([one.images for one in swapped_images(loader, 0)]))
    monkeypatch.setattr(splits, "MOST_SWAPPED", 4)
    assert torch.cat([one.ids for one in swapped_images(loader, 0)]).tolist() == [0, 3, 5, 8]
    assert swapped_images(Loader(table_of(9, masked=False), RAW, 4, 0, "none"), 0) == ()
    assert swapped_images(Loader(table_of(9, categories=1), RAW, 4, 0, "none"), 0) == ()


def test_a_swapped_split_is_made_where_the_data_have_none_of_their_own(monkeypatch):
    few = Loader(table_of(6), RAW, 4, 0, "none")
    assert list(splits_to_compare(case_with({"test": few}))) == ["test"]
    assert list(splits_to_compare(case_with({"test": few}, decides="swapped"))) == ["test", "swapped"]
    monkeypatch.setattr(splits, "LEAST_SWAPPED", 6)
    masked = Loader(table_of(6), RAW, 4, 0, "none")
    bare = Loader(table_of(6, masked=False), RAW, 4, 0, "none")
    assert list(splits_to_compare(case_with({"test": masked}))) == ["test", "swapped"]
    assert list(splits_to_compare(case_with({"test": bare}))) == ["test"]
    two = {"iid": masked, "shifted": masked}
    assert list(splits_to_compare(case_with(two, "shifted"))) == ["iid", "shifted"]
    assert list(splits_to_compare(case_with(two, "shifted", "swapped"))) == ["iid", "shifted", "swapped"]
    own = {"test": masked, "swapped": bare}
    assert splits_to_compare(case_with(own, decides="swapped")) == own


@pytest.fixture
def annotated(tmp_path, trained):
    """A folder of annotated images, whose categories are those that the network knows."""
    for split, count in (("train", 12), ("test", 4)):
        write_split(tmp_path / "annotated" / split, {"blue": count, "red": count}, masked=True)
    return {
        "weights": str(trained / "model.safetensors"),
        "data": f"folder:{tmp_path / 'annotated'}",
    }


def test_with_masks_the_swap_stands_beside_the_constraints(annotated, photos):
    settings = Settings(**annotated)

    def treating(verb="treat", **given):
        return prepare(settings.but(**given), verb).plan

    found = treating()
    assert found.arms == ("control", "swap", "treated") and not found.chooses
    assert treating("checkup").arms == "auto" and treating("checkup").chooses
    told = treating("checkup", constraints=("space",))
    assert told.arms == ("control", "swap", "treated") and not told.chooses
    assert treating("checkup", arms=("dfr",), auto=True).chooses
    last = found.layers[-1]
    assert found.constraints == (f"channel layers={last}", f"space layers={last}") and found.scale == "none"
    assert listed_arms(treating("checkup", auto=True), 0) == listed_arms(treating("checkup"), 0) == ()
    assert treating(arms=("dfr",)).arms == ("dfr",)
    bare = treating(data=f"folder:{photos}")
    assert (bare.arms, bare.constraints) == (("control", "treated"), (f"channel layers={last}",))
    named = treating(
        constraints=("space layers=layer2.conv2", "channel"), layers=("layer4.conv2", "layer1.conv2")
    )
    assert named.layers == ("layer1.conv2", "layer4.conv2")
    assert named.constraints == ("space layers=layer2.conv2", "channel layers=layer4.conv2")
    case = prepare(settings.but(primary="swapped"), "checkup")
    assert case.plan.primary == "swapped" and list(splits_to_compare(case)) == ["test", "swapped"]
    assert swapped_count(case) == 8 and swapped_count(prepare(settings, "checkup")) == 0


@pytest.mark.slow
def test_a_checkup_that_swapped_backgrounds_decide(annotated, command, tmp_path):
    code, out, err = command(
        "checkup", "--weights", annotated["weights"], "--data", annotated["data"], "--primary", "swapped",
        "--arms", "swap,treated",
        "--epochs", "1", "--seeds", "1", "--batch-size", "8", "--confidence", "0", "--out", "run", "--json",
    )  # fmt: skip
    assert code in (0, 3, 4), err
    found = json.loads(out)
    assert (found["primary"], found["arm"]) == ("swapped", "swap")
    assert list(found["arms"]) == ["base", "control", "swap", "treated"]
    assert set(found["arms"]["swap"]) == {"test", "swapped"}
    for name in ("report.html", "model/README.md"):
        text = (tmp_path / "run" / name).read_text()
        assert "each object before the background of another category" in text
    assert "Load the swap network" in (tmp_path / "run" / "report.html").read_text()
    code, out, err = command("checkup", "--config", "run/config.yaml", "--out", "again", "--json")
    assert json.loads(out)["arms"] == found["arms"], err
