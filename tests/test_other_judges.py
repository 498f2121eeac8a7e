"""Networks that were trained on other images judge the labels of training images through new heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from backbones import Colours, saved_backbone
from torchdoctor import Batch, InputError, SecondOpinion, find_suspects
from torchdoctor.case.config import settings_from
from torchdoctor.case.identity import comparable
from torchdoctor.case.preparation import prepare
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.second_opinion import by_new_heads
from torchdoctor.verbs.suspects import suspects_stage


class Repeats(nn.Module):
    """A network that gives back the labels that it has learned by heart, and whose features tell nothing."""

    def __init__(self, labels, categories, right=1.0) -> None:
        super().__init__()
        self.fc = nn.Linear(4, categories)
        self.register_buffer("labels", labels)
        self.right = right

    def forward(self, pixels):
        rows = pixels[:, 0, 0, 0].long()
        noise = self.fc(torch.sin(rows[:, None] * torch.tensor([1.0, 2.3, 3.1, 4.7])))
        learned = nn.functional.one_hot(self.get_buffer("labels")[rows], self.fc.out_features)
        keep = (rows % 100 < 100 * self.right).float()
        return noise + 9.0 * learned * keep[:, None]


def pictures(number=300, categories=3, every=10, start=1000):
    """Images that differ in their colour, every tenth with another label, as two networks want them."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(number) % categories
    labels = truth.clone()
    labels[::every] = (labels[::every] + 1) % categories
    ids = torch.arange(start, start + number)
    pixels = 0.5 * torch.randn(number, 3, 6, 6, generator=generator)
    pixels += 2.0 * nn.functional.one_hot(truth % 3, 3)[:, :, None, None]
    numbered = torch.zeros(number, 3, 4, 4)
    numbered[:, 0, 0, 0] = torch.arange(number).float()
    return Batch(numbered, labels, ids), Batch(pixels, labels, ids), truth


def test_wrong_labels_that_a_network_has_learned_by_heart_are_found_by_another():
    own, others, _ = pictures()
    torch.manual_seed(0)
    model, other = Repeats(own.labels, 3), SecondOpinion(Colours(), [others], new_head=True)
    alone = find_suspects(model, [own])
    assert not alone.suspects and "learned by heart" in alone.remarks[0]
    told = []
    found = find_suspects(model, [own], second=other, progress=lambda *each: told.append(each))
    assert {one.id for one in found.suspects} == set(range(1000, 1300, 10)) and found.remarks == ()
    assert found.share == pytest.approx(0.1, abs=0.02)
    for one in found.suspects:
        assert (int(one.label) - int(one.proposed)) % 3 == 1
    assert ("second opinion", 300, 300) in told and ("suspects", 5, 5) in told
    backwards = torch.arange(299, -1, -1)
    shuffled = Batch(others.images[backwards], others.labels[backwards], others.ids[backwards])
    # Images of `training` would be judged by heads that were fitted to their own labels: they are not used.
    reused = SecondOpinion(Colours(), [shuffled], new_head=True, training=[others])
    again = find_suspects(model, [own], second=[reused])
    assert {one.id for one in again.suspects} == {one.id for one in found.suspects}


def test_a_network_that_has_learned_too_little_is_not_asked_where_another_is():
    own, others, _ = pictures(900, every=20)
    torch.manual_seed(0)
    model = Repeats(own.labels, 3, right=0.1)
    alone = find_suspects(model, [own])
    assert "Labels were not judged" in alone.remarks[0]
    found = find_suspects(model, [own], second=SecondOpinion(Colours(), [others], new_head=True))
    assert {one.id for one in found.suspects} == set(range(1000, 1900, 20)) and found.remarks == ()


@pytest.mark.parametrize("number", [0, 1, 3])
def test_categories_of_few_images_are_left_out_for_other_networks_too(number):
    own, others, _ = pictures()
    rare = own.labels.clone()
    if number < 3:
        rare += rare >= number
    rare[[4, 5, 7]] = number
    images = [Batch(each.images, rare, each.ids) for each in (own, others)]
    torch.manual_seed(0)
    found = find_suspects(
        Repeats(rare, 4), [images[0]], second=SecondOpinion(Colours(), [images[1]], new_head=True)
    )
    assert f"Not looked at, with fewer than 5 images each: {number}." in found.remarks[0]
    assert {one.id for one in found.suspects} == set(range(1000, 1300, 10))
    assert {one.label for one in found.suspects} | {one.proposed for one in found.suspects} == set("0123") - {
        str(number)
    }


def test_who_has_learned_these_labels_or_sees_other_images_is_refused():
    own, others, _ = pictures()
    model = Repeats(own.labels, 3)
    with pytest.raises(InputError, match=r"repeats them\. Give networks that were trained on other images"):
        find_suspects(model, [own], second=SecondOpinion(Colours(), [others]))
    fewer = Batch(others.images[:290], others.labels[:290], others.ids[:290])
    with pytest.raises(InputError, match="lack 10 of 300 images"):
        find_suspects(model, [own], second=SecondOpinion(Colours(), [fewer], new_head=True))


def test_diagnose_lets_another_network_judge_training_labels(
    photos, trained, command, blank_figures, tmp_path, monkeypatch
):
    asked = []

    def find(*given, second, **more):
        asked.append([opinion.name for opinion in second])
        assert all(len(opinion.images) == len(given[1]) and opinion.training is None for opinion in second)
        return find_suspects(*given, second=second, **more)

    monkeypatch.setattr("torchdoctor.verbs.suspects.find_suspects", find)
    name = saved_backbone(tmp_path / "backbone")
    flags = (
        "--weights", trained / "model.safetensors", "--data", f"folder:{photos}", "--draws", "0",
        "--confidence", 0.5, "--out", "run",
    )  # fmt: skip
    code, said, told = command("diagnose", *flags, "--second-opinion", f"{name},{trained}")
    assert code == 0, told
    assert f"second opinion: {name}, " in " ".join(said.split())
    others = Causes.load(tmp_path / "run").others
    assert list(others) == [name, str(trained / "model.safetensors")]
    assert all(0 <= right <= 100 for right in others.values())
    assert asked == [[name]]  # the other run has learned these labels
    code, said, told = command("diagnose", *flags, "--resume")  # a finished run is only read
    assert code == 0 and f"second opinion: {name}, " in " ".join(said.split()), told
    assert command("report", "run", "--out", "page.html")[0] == 0
    assert f"Other networks judged the labels too ({name}: " in (tmp_path / "page.html").read_text()


def test_where_another_network_cannot_be_heard_the_own_one_judges_alone(
    photos, trained, tmp_path, monkeypatch
):
    name = saved_backbone(tmp_path / "backbone")
    about = {
        "weights": str(trained / "model.safetensors"),
        "data": f"folder:{photos}",
        "second_opinion": name,
    }
    case = prepare(settings_from(about), "diagnose")
    monkeypatch.setattr(
        "torchdoctor.verbs.suspects.gigabytes_of", lambda _images, _names, others: 9.0 * others
    )
    found = suspects_stage(case, tmp_path, lambda *_each: None)
    assert found.images == len(case.data.train)
    assert "No other network judged these labels: " in found.remarks[-1] and "9 GB" in found.remarks[-1]


def test_images_whose_features_are_not_finite_are_not_judged():
    _, others, truth = pictures()
    others.images[7] = torch.inf
    others.images[8] = torch.nan
    judged = by_new_heads(SecondOpinion(Colours(), [others], new_head=True), others.ids, others.labels, 3)
    assert np.isnan(judged[7:9]).all() and np.isfinite(judged[:7]).all()
    right = judged.argmax(1) == truth.numpy()
    assert right[np.arange(300) // 2 != 4].mean() > 0.98


def test_a_run_is_opened_again_without_asking_other_networks(
    photos, trained, command, blank_figures, tmp_path
):
    name = saved_backbone(tmp_path / "backbone")
    flags = (
        "diagnose", "--weights", trained / "model.safetensors", "--data", f"folder:{photos}", "--draws", "0",
        "--confidence", 0.5, "--out", "run", "--second-opinion", name,
    )  # fmt: skip
    assert command(*flags)[0] == 0
    (tmp_path / "backbone").rename(tmp_path / "elsewhere")
    code, _, told = command("report", "run", "--out", "page.html")
    assert code == 0, told


def test_a_folder_with_a_comma_in_its_name_is_one_opinion(tmp_path, monkeypatch):
    folder = tmp_path / "a,b"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    for given in (str(folder), [str(folder)]):
        found = settings_from({"second_opinion": given}).second_opinion
        assert found == (str(folder / "model.safetensors"),)
    assert settings_from({"second_opinion": f"pretrained,{tmp_path}/c"}).second_opinion[0] == "pretrained"


def test_one_opinion_of_an_earlier_run_equals_a_list_with_it(tmp_path):
    (tmp_path / "config.yaml").write_text("second_opinion: runs/second\nseed: 0\n")
    now = {"config.yaml": {"second_opinion": ["runs/second"], "seed": 0}}
    assert comparable(tmp_path, now)["config.yaml"] == {"second_opinion": "runs/second", "seed": 0}
    other = {"config.yaml": {"second_opinion": ["runs/second", "pretrained"], "seed": 0}}
    assert comparable(tmp_path, other)["config.yaml"]["second_opinion"] == ["runs/second", "pretrained"]
