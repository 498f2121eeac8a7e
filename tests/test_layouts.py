"""Layers are read as channel x place whatever the shape of their outputs, and default layers hold places."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from torchdoctor import (
    Batch,
    InputError,
    Recipe,
    check_model,
    compare,
    default_layers,
    diagnose,
    explain,
    find_suspects,
    survey_layers,
    treat,
)
from torchdoctor.case.config import settings_from
from torchdoctor.diagnosis.grad_cam import grad_cam
from torchdoctor.evidence.per_image import background_shares_of, clean_evidence, summed_maps
from torchdoctor.images.masks import background_mask
from torchdoctor.images.normalisation import IMAGENET_MEAN, IMAGENET_STD
from torchdoctor.network.candidates import candidate_layers, sightings
from torchdoctor.network.copying import copy_of
from torchdoctor.network.default_layers import default_choices
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.layouts import Layout, off_grid, on_grid, remembered
from torchdoctor.network.prediction import predict_logits
from torchdoctor.network.shortcuts import find_shortcuts
from torchdoctor.network.taps import find_layouts, grids, map_shapes
from torchdoctor.treatment.constraints import constraints_named
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.penalties import penalise
from torchdoctor.verbs.predict import predict

SHUFFLED = (9, 4, 15, 0, 7, 12, 1, 10, 3, 14, 5, 8, 2, 13, 6, 11)
IN_ORDER = tuple(range(16))


class Arranged(nn.Module):
    """Patches of 8 pixels, whose tokens are arranged in some way, and a mixing step behind them."""

    def __init__(self, arrange, beside=0, places=IN_ORDER):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.arrange, self.beside, self.places = arrange, beside, places
        self.extra = nn.Parameter(torch.randn(1, beside, 8))
        self.stage, self.head = nn.Identity(), nn.Linear(8, 3)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)[:, list(self.places)]
        tokens = torch.cat([self.extra.expand(len(tokens), -1, -1), tokens], 1)
        mixed = self.stage(self.arrange(tokens + 0.3 * tokens.mean(1, keepdim=True)))
        by_channel = mixed.flatten(2).mean(2) if mixed.shape[1] == 8 else mixed.flatten(1, -2).mean(1)
        return self.head(by_channel.tanh())


ARRANGED = {
    "map": (lambda tokens: tokens.transpose(1, 2).unflatten(2, (4, 4)), 0, IN_ORDER, Layout((4, 4))),
    "channels last": (lambda t: t.unflatten(1, (4, 4)), 0, IN_ORDER, Layout((4, 4), -1, (4, 4, 8), IN_ORDER)),
    "tokens": (lambda t: t, 0, IN_ORDER, Layout((4, 4), -1, (16, 8), IN_ORDER)),
    "a class token": (lambda t: t, 1, IN_ORDER, Layout((4, 4), -1, (17, 8), tuple(range(1, 17)))),
    "registers": (lambda t: t, 5, IN_ORDER, Layout((4, 4), -1, (21, 8), tuple(range(5, 21)))),
    "class token last": (lambda t: t.roll(-1, 1), 1, IN_ORDER, Layout((4, 4), -1, (17, 8), IN_ORDER)),
    "channels before tokens": (lambda t: t.mT, 0, IN_ORDER, Layout((4, 4), 1, (8, 16), IN_ORDER)),
    "shuffled behind a class token": (
        lambda t: t,
        1,
        SHUFFLED,
        Layout((4, 4), -1, (17, 8), tuple((np.argsort(SHUFFLED) + 1).tolist())),
    ),
    "shuffled": (lambda t: t, 0, SHUFFLED, Layout((4, 4), -1, (16, 8), tuple(np.argsort(SHUFFLED).tolist()))),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_how_outputs_lie_is_found_by_moving_the_image(name):
    arrange, beside, places, wanted = ARRANGED[name]
    torch.manual_seed(0)
    network, images = Arranged(arrange, beside, places), torch.randn(2, 3, 32, 32)
    find_layouts(network, images, ["stage"])
    assert remembered(network.stage, (32, 32)) == wanted
    assert grids(network, images, ["stage"]) == {"stage": (4, 4)}
    copied = copy_of(network)
    assert remembered(copied.stage, (32, 32)) == wanted
    assert remembered(network.stage, (64, 32)) is None


@pytest.mark.parametrize("name", ARRANGED)
def test_all_ways_to_lie_give_the_evidence_of_the_map(name):
    arrange, beside, places, _ = ARRANGED[name]
    torch.manual_seed(0)
    network = Arranged(arrange, beside, places).double()
    plain = Arranged(*ARRANGED["map"][:3]).double()
    plain.load_state_dict({**network.state_dict(), "extra": plain.extra})
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with frozen_eval(network) as frozen:
        found = clean_evidence(frozen, images, None, ["stage"], "gradient_x_activation")[0]["stage"]
    if beside:
        assert found.shape == (2, 8, 1, 16 + beside)
        return
    with frozen_eval(plain) as frozen:
        wanted = clean_evidence(frozen, images, None, ["stage"], "gradient_x_activation")[0]["stage"]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ARRANGED)
def test_what_is_read_can_be_written(name):
    layout = ARRANGED[name][3]
    shape = layout.shape or (8, 4, 4)
    output = torch.randn(2, *shape)
    maps = layout.read(output)
    assert torch.equal(layout.write(maps), output)
    on = on_grid(maps, layout.grid)
    assert on.shape == (2, 8, 4, 4)
    back = off_grid(on, tuple(maps.shape[2:]))
    assert back.shape == maps.shape and torch.equal(on_grid(back, layout.grid), on)
    assert float(back.abs().sum()) == pytest.approx(float(on.abs().sum()), rel=1e-5)


def tiny_vit(**settings):
    settings = {"class_token": True, **settings}
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=3, embed_dim=16, depth=4, num_heads=2,
        **settings,
    )  # fmt: skip


def tiny_swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, patch_size=2, num_classes=3, embed_dim=8,
        depths=(1, 2, 2), num_heads=(1, 2, 2),
    )  # fmt: skip


def tiny_levit(side):
    return timm.models.levit.Levit(
        side, embed_dim=(16, 24, 32), key_dim=8, depth=(2, 2, 2), num_heads=(2, 3, 4), num_classes=3,
        use_conv=False, stem_type="s8",
    )  # fmt: skip


NETWORKS = {
    "vit": tiny_vit,
    "vit with registers": lambda: tiny_vit(reg_tokens=4),
    "vit without class token": lambda: tiny_vit(class_token=False, global_pool="avg"),
    "vit that saves memory": lambda: saving(tiny_vit()),
    "deit": lambda: timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, num_classes=3, embed_dim=16, depth=4,
        num_heads=2,
    ),
    "beit": lambda: timm.create_model(
        "beit_base_patch16_224", img_size=32, patch_size=8, num_classes=3, embed_dim=16, depth=4, num_heads=2,
    ),
    "swin": tiny_swin,
    "tnt": lambda: timm.create_model(
        "tnt_s_legacy_patch16_224", img_size=32, patch_size=8, num_classes=3, embed_dim=16, inner_dim=8,
        depth=4, num_heads_inner=2, num_heads_outer=2,
    ),
    "levit": lambda: tiny_levit(32),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=3),
    "torchvision swin": lambda: torchvision.models.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=3
    ),
}  # fmt: skip


def saving(network):
    network.set_grad_checkpointing(True)
    return network


def made(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return network


def some_images(number=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(number, 3, 32, 32, generator=generator, dtype=dtype)
    masks = torch.zeros(number, 1, 32, 32, dtype=dtype)
    masks[:, :, 8:24, :16] = 1
    every = torch.ones(number, dtype=torch.bool)
    return Batch(pixels, torch.arange(number) % 3, torch.arange(number), masks, every)


@pytest.mark.parametrize("name", NETWORKS)
def test_default_layers_of_transformers_are_blocks_that_hold_places(name):
    network, batch = made(name), some_images()
    choices = default_choices(network, batch.images)
    assert len(choices) == 3 if "torchvision swin" not in name else len(choices) >= 2
    for choice in choices:
        assert "block" in choice.reason
        assert "embed" not in choice.name and not isinstance(network.get_submodule(choice.name), nn.Conv2d)
    assert len(set(grids(network, batch.images, [choice.name for choice in choices]).values())) >= 1
    if "class" not in name and name.startswith(("vit", "deit", "beit")) and name != "beit":
        assert "blocks.3" not in [
            choice.name for choice in choices
        ]  # only its class token acts on the logits


def evidence_by_loop(network, images, labels, module):
    """Return abs(dy/dm) of a layer's output by autograd alone, image by image, in the output's own shape."""
    found = []
    for image, label in zip(images, labels, strict=True):
        kept = []

        def keep(_module, _inputs, output, kept=kept):
            kept.append(output[1] if isinstance(output, tuple) else output)  # TNT: (pixels, patches)

        handle = module.register_forward_hook(keep)
        with torch.enable_grad():
            score = network(image[None])[0, label]
        handle.remove()
        found.append(torch.autograd.grad(score, kept[0])[0].abs())
    return torch.cat(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_evidence_and_background_of_transformers_equal_a_plain_loop(name):
    network, batch = made(name).double(), some_images(dtype=torch.float64)
    layers = default_layers(network, batch.images)
    diagnosis = diagnose(network, [batch], layers=list(layers), draws=0, confidence=0.0, evidence="gradient")
    right = diagnosis.confusion.diagonal() > 0
    for layer in layers:
        wanted = evidence_by_loop(network, batch.images, batch.labels, network.get_submodule(layer))
        by_channel = wanted.flatten(1, -2).sum(1).numpy()
        for category in np.flatnonzero(right):
            rows = list(diagnosis.sifting.high[category])
            mean = by_channel[rows].mean(0)
            np.testing.assert_allclose(diagnosis.layer(layer).correlation[category], mean, rtol=1e-9)
        height, width = grids(network, batch.images, [layer])[layer]
        places = wanted.flatten(1, -2).sum(-1)[:, -height * width :].unflatten(1, (height, width))
        outside = background_mask(batch.masks, (height, width))[:, 0]
        with frozen_eval(network) as frozen:
            found = clean_evidence(frozen, batch.images, batch.labels, [layer], "gradient")[0][layer]
        share = background_shares_of(found, batch, (height, width))
        np.testing.assert_allclose(share, ((places * outside).sum((1, 2)) / places.sum((1, 2))).numpy())
    assert right.any()


@pytest.mark.parametrize("draws", [0, 2])
@pytest.mark.parametrize("name", ["vit", "vit that saves memory", "swin"])
def test_penalties_of_tails_equal_those_of_the_whole_network(name, draws):
    network, batch = made(name).double(), some_images(dtype=torch.float64)
    layers = default_layers(network, batch.images)[-1:]
    diagnosis = diagnose(network, [batch], layers=list(layers), draws=draws, confidence=0.0)
    constraints = constraints_named(["channel", "space"], layers=layers)
    assert set(find_shortcuts(network, batch.images, layers)) == set(layers)

    def gradients(values):
        network.zero_grad()
        sum(value.sum() for value in values.values()).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    noise = Noise(draws, seed=1)
    whole = penalise(network, batch, constraints, diagnosis, noise=noise)
    from torchdoctor.network.tails import remembering
    from torchdoctor.treatment.passes import Tails

    with remembering(network, find_shortcuts(network, batch.images, layers)) as trunk:
        network(batch.images)
    tail = penalise(network, batch, constraints, diagnosis, noise=noise, tails=Tails(trunk))
    for key, value in whole.items():
        assert float(value.abs().sum()) > 0
        torch.testing.assert_close(tail[key], value)
    one, other = gradients(whole), gradients(tail)
    torch.testing.assert_close(one, other)
    assert one.abs().max() > 0


IN_SHORT = ("vit", "swin", "levit")  # one of each layout; the others take half a minute


@pytest.mark.parametrize(
    "name", [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_every_verb_works_on_transformers(name):
    network, batch = made(name), some_images(9)
    assert [each for each in check_model(network, batch.images[:2]) if each.level == "error"] == []
    diagnosis = diagnose(network, [batch], draws=1, confidence=0.0)
    treated = treat(
        network, [batch], diagnosis, constraints=["channel", "space"], recipe=Recipe(epochs=1), seeds=1
    )
    assert treated.names() == ("control", "treated")
    layers = [layer.name for layer in diagnosis.layers]
    result = compare(network, treated, {"test": [batch]}, layers=layers)
    assert result.splits
    ids, labels, logits = predict_logits(network, [batch])
    assert torch.equal(ids, batch.ids) and torch.equal(labels, batch.labels)
    torch.testing.assert_close(logits, network(batch.images).detach())
    explanation = explain(network, batch.images[0], diagnosis, mask=batch.masks[0])
    assert explanation.summed_map.shape == (32, 32)
    assert 0 <= explanation.background_share <= 1
    again = diagnose(copy_of(network), [batch], draws=1, confidence=0.0)
    for one, other in zip(diagnosis.layers, again.layers, strict=True):
        np.testing.assert_array_equal(one.correlation, other.correlation)


@pytest.mark.parametrize("name", NETWORKS)
def test_predict_gives_what_the_network_gives(name, tmp_path, monkeypatch):
    network = made(name)
    monkeypatch.setitem(
        sys.modules, "networks_of_this_test", SimpleNamespace(make=lambda num_classes: made(name))
    )
    torch.save({"state_dict": network.state_dict(), "classes": ["a", "b", "c"]}, tmp_path / "weights.pth")
    pixels = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
    about = {
        "model": "networks_of_this_test:make",
        "weights": str(tmp_path / "weights.pth"),
        "image_size": 32,
    }
    found = predict(settings_from(about), [str(tmp_path / f"{number}.png") for number in range(2)])
    images = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    with torch.no_grad():
        wanted = network(images).softmax(1).max(1)
    assert [each["category"] for each in found] == ["abc"[best] for best in wanted.indices]
    np.testing.assert_allclose([each["confidence"] for each in found], wanted.values, rtol=1e-4)


def test_hiera_keeps_its_tokens_in_an_order_of_its_own():
    torch.manual_seed(0)
    network = timm.create_model("hiera_tiny_224", img_size=64, num_classes=3, embed_dim=16).eval()
    images = torch.randn(1, 3, 64, 64)
    find_layouts(network, images, ["blocks.0", "blocks.2"])
    outputs = {}
    for place in (0, 2):
        network.blocks[place].register_forward_hook(
            lambda _m, _i, output, p=place: outputs.update({p: output})
        )
    network(images)
    for place, output in outputs.items():
        layout = remembered(network.blocks[place], (64, 64))
        wanted = network.reroll(output, place).permute(0, 3, 1, 2)
        assert torch.equal(layout.read(output), wanted)


def test_suspects_are_found_from_the_channels_of_tokens():
    network, batch = made("swin"), some_images(40)
    assert find_suspects(network, [batch], layers=["layers.1.blocks.1"], folds=2).images == 40


def test_what_has_no_places_is_refused_with_the_remedy():
    network, batch = made("vit"), some_images()
    with pytest.raises(InputError, match=r"'head' gives shape \(1, 3\); expected .* map.*tokens"):
        map_shapes(network, batch.images, ["head"])
    swin = made("swin")
    with pytest.raises(InputError, match=r"'layers.0.blocks.0.attn' gives shape \(64, 4, 8\)"):
        map_shapes(swin, batch.images, ["layers.0.blocks.0.attn"])


def test_tokens_are_surveyed_with_the_size_of_their_space():
    network, batch = made("vit"), some_images()
    facts = {each.name: each for each in survey_layers(network, batch.images)}
    assert facts["blocks.2"].shape == (16, 4, 4) and facts["blocks.2"].kernels == 16
    assert "blocks.2" in [each.name for each in candidate_layers(network, batch.images)]


class Branches(nn.Module):
    """A main way, then a shortcut, a branch that pools, and a convolution whose channels are the logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.one_shortcut = nn.Conv2d(8, 8, 1, 2)
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.pooled = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 8, 1))
        self.three = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.classify = nn.Conv2d(8, 3, 1)

    def forward(self, images):
        maps = self.stem(images)
        maps = (self.one(maps) + self.one_shortcut(maps)).relu()
        maps = (self.two(maps) + self.pooled(maps)).relu()
        return self.classify(self.three(maps).relu()).mean((2, 3))


def test_no_shortcut_no_pooling_branch_no_stem_and_no_classifier_is_chosen():
    torch.manual_seed(0)
    choices = default_choices(Branches(), torch.randn(1, 3, 32, 32))
    assert [choice.name for choice in choices] == ["one.2", "two.2", "three.2"]
    assert all("the last convolution of the stage" in choice.reason for choice in choices)


def test_blocks_that_only_ask_for_a_class_token_are_not_chosen():
    torch.manual_seed(0)
    network = timm.create_model(
        "xcit_nano_12_p16_224", img_size=64, num_classes=3, embed_dim=16, depth=4, num_heads=2
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    names = [choice.name for choice in default_choices(network, images)]
    assert names == ["blocks.0", "blocks.2", "blocks.3.local_mp.conv2"]
    seen = {each.candidate.name: each for each in sightings(network, images)}
    assert seen["cls_attn_blocks.0"].has_space and not seen["cls_attn_blocks.0"].mixes
    assert all(seen[f"blocks.{number}"].mixes for number in range(4))


def test_stages_of_blocks_end_in_blocks_though_each_holds_a_convolution():
    torch.manual_seed(0)
    network = timm.create_model(
        "twins_svt_small", img_size=64, num_classes=3, embed_dims=(16,) * 4, num_heads=(2,) * 4,
        depths=(4,) * 4, wss=(2, 2, 2, 2),
    ).eval()  # fmt: skip
    assert default_layers(network, torch.randn(1, 3, 64, 64)) == ("blocks.1.3", "blocks.2.3", "blocks.3.3")


def test_stages_behind_even_attention_are_found():
    torch.manual_seed(0)
    network, images = tiny_levit(64).eval(), torch.randn(1, 3, 64, 64)
    assert default_layers(network, images) == ("stages.0.blocks.1", "stages.1.blocks.1", "stages.2.blocks.1")
    assert list(grids(network, images, default_layers(network, images)).values()) == [(8, 8), (4, 4), (2, 2)]


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed by a convolution over pairs of places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Sequential(nn.Conv2d(inside, 8, 3, 2, 1), nn.ReLU()) for inside in (3, 8, 8)
        )
        self.heads, self.last, self.fc = nn.Conv2d(2, 2, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, images):
        maps = self.c(self.b(self.a(images)))
        heads = maps.flatten(2).unflatten(1, (2, 4))
        weights = self.heads(heads.mT @ heads).softmax(-1)
        mixed = (heads @ weights.mT).flatten(1, 2).view(maps.shape)
        return self.fc(self.last(maps + mixed).mean((2, 3)))


def test_a_convolution_over_pairs_of_places_is_not_chosen():
    torch.manual_seed(0)
    assert default_layers(TalkingHeads(), torch.randn(1, 3, 48, 48), 3) == ("b.0", "c.0", "last")


@pytest.mark.parametrize("name", ["vit with registers", "deit", "swin", "tnt"])
def test_grad_cam_of_tokens_equals_its_formula_at_the_places(name):
    network, image = made(name), some_images(1).images[0]
    layer = {"swin": "layers.1.blocks.1"}.get(name, "blocks.2")
    kept = []

    def keep(_module, _inputs, output):
        kept.append(output[1] if isinstance(output, tuple) else output)

    handle = network.get_submodule(layer).register_forward_hook(keep)
    score = network(image[None])[0, 1]
    handle.remove()
    (slopes,) = torch.autograd.grad(score, kept[0])
    side = 8 if name == "swin" else 4
    maps, slopes = (
        each.flatten(1, -2)[:, -side * side :].mT.unflatten(2, (side, side)) for each in (kept[0], slopes)
    )
    wanted = (slopes.mean((2, 3), keepdim=True) * maps.detach()).sum(1, keepdim=True).relu()
    found = grad_cam(network, image, layer, 1)
    assert found.shape == (32, 32) and found.max() > 0
    np.testing.assert_allclose(found, summed_maps(wanted, (32, 32))[0], rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="expected a 4-dimensional map"):
        grad_cam(network, image, "head" if name != "swin" else "head.fc", 1)
