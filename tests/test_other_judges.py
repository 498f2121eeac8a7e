"""Networks that were trained on other images judge the labels of training images through new heads."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from backbones import Colours, saved_backbone
from torchdoctor import Batch, InputError, SecondOpinion, find_suspects
from torchdoctor.diagnosis.causes_result import Causes


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
    again = find_suspects(model, [own], second=[SecondOpinion(Colours(), [shuffled], new_head=True)])
    assert {one.id for one in again.suspects} == {one.id for one in found.suspects}


def test_a_network_that_has_learned_too_little_is_not_asked_where_another_is():
    own, others, _ = pictures(900, every=20)
    torch.manual_seed(0)
    model = Repeats(own.labels, 3, right=0.1)
    alone = find_suspects(model, [own])
    assert "Labels were not judged" in alone.remarks[0]
    found = find_suspects(model, [own], second=SecondOpinion(Colours(), [others], new_head=True))
    assert {one.id for one in found.suspects} == set(range(1000, 1900, 20)) and found.remarks == ()


def test_categories_of_few_images_are_left_out_for_other_networks_too():
    own, others, _ = pictures()
    rare = own.labels.clone() + (own.labels > 0)  # numbers 0, 2 and 3: category 1 has three images only
    rare[[4, 5, 7]] = 1
    images = [Batch(each.images, rare, each.ids) for each in (own, others)]
    torch.manual_seed(0)
    found = find_suspects(
        Repeats(rare, 4), [images[0]], second=SecondOpinion(Colours(), [images[1]], new_head=True)
    )
    assert "Not looked at, with fewer than 5 images each: 1." in found.remarks[0]
    assert {one.id for one in found.suspects} == set(range(1000, 1300, 10))
    assert {one.label for one in found.suspects} | {one.proposed for one in found.suspects} == {"0", "2", "3"}


def test_who_has_learned_these_labels_or_sees_other_images_is_refused():
    own, others, _ = pictures()
    model = Repeats(own.labels, 3)
    with pytest.raises(InputError, match=r"repeats them\. Give networks that were trained on other images"):
        find_suspects(model, [own], second=SecondOpinion(Colours(), [others]))
    fewer = Batch(others.images[:290], others.labels[:290], others.ids[:290])
    with pytest.raises(InputError, match="lack 10 of 300 images"):
        find_suspects(model, [own], second=SecondOpinion(Colours(), [fewer], new_head=True))


def test_diagnose_lets_another_network_judge_training_labels(
    photos, trained, command, blank_figures, tmp_path
):
    name = saved_backbone(tmp_path / "backbone")
    code, said, told = command(
        "diagnose", "--weights", trained / "model.safetensors", "--data", f"folder:{photos}", "--draws", "0",
        "--second-opinion", f"{name},{trained}", "--confidence", 0.5, "--out", "run",
    )  # fmt: skip
    assert code == 0, told
    assert f"second opinion: {name}, " in " ".join(said.split())
    causes = Causes.load(tmp_path / "run")
    assert len(causes.others) == 2 and all(0 <= right <= 100 for right in causes.others)
    assert json.loads((tmp_path / "run" / "suspects.json").read_text())["images"] > 0
    assert command("report", "run", "--out", "page.html")[0] == 0
    assert "Other networks judged the labels too (" in (tmp_path / "page.html").read_text()
