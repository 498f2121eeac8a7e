"""A planted defect is found: scrambled kernels, and the category that depends on them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from torchdoctor.data.load import load_data
from torchdoctor.diagnosis.contrast import contrast
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.models.loading import load_model
from torchdoctor.randomness import key
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit
from torchdoctor.types import InputError

LAYER = "layer4.conv2"
# An eighth of the layer: with fewer, a category loses no more of its 120 images than others lose by chance.
# Processors that round otherwise then train networks for which another category is first.
SCRAMBLED = 16


@pytest.fixture(scope="module")
def healthy():
    """A network trained on a part of `scenes` with another data seed, its images and its diagnosis."""
    data = load_data("scenes:21", limit=120)
    torch.manual_seed(key("weights", 0))
    model = load_model("small_resnet", data.classes)
    fit(
        model, lambda epoch: data.train.epoch(epoch, 0), Recipe(epochs=10, learning_rate=0.1, norm="train"),
        steps_per_epoch=data.train.steps_per_epoch, seed=0,
    )  # fmt: skip
    model.eval()
    return (
        model,
        data,
        diagnose(
            model, data.train, layers=[LAYER], draws=2, settings=DiagnosisSettings(images_per_category=40)
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("category", [0, 3, 6])
def test_scrambled_kernels_and_their_category_are_found(healthy, category):
    model, data, reference = healthy
    planted = reference.layer(LAYER).correlation[category].argsort()[::-1][:SCRAMBLED].tolist()
    lost = np.zeros(len(data.classes))
    for order in range(3):
        hurt = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(key("scramble", category, order))
        weight = hurt.get_submodule(LAYER).weight
        with torch.no_grad():
            for kernel in planted:
                shuffled = torch.randperm(weight[kernel].numel(), generator=generator)
                weight[kernel] = weight[kernel].flatten()[shuffled].view_as(weight[kernel])
        settings = DiagnosisSettings(images_per_category=40)
        found = contrast(
            diagnose(hurt, data.train, layers=[LAYER], draws=2, settings=settings), reference, LAYER
        )
        assert len(set(found.kernels[:SCRAMBLED]) & set(planted)) >= 0.8 * SCRAMBLED
        lost += found.lost
    assert lost.argmax() == category, lost


@pytest.mark.slow
def test_a_network_beside_itself_shows_nothing(healthy):
    _, _, reference = healthy
    found = contrast(reference, reference, LAYER)
    assert (found.scores == 0).all() and (found.lost == 0).all()
    with pytest.raises(InputError, match="'layer9' was not diagnosed"):
        contrast(reference, reference, "layer9")
