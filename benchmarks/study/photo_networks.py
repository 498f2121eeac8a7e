"""The networks that faults are planted into: two trained from scratch, one pretrained and fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.data.loader import Loader
from torchdoctor.images.batches import Batch
from torchdoctor.models.architectures.small_resnet import ResidualBlock, SmallResNet
from torchdoctor.models.packaged import packaged_weights
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

Change = Callable[[Batch], Batch]
Train = Callable[[nn.Module, Loader, Change, int, int], None]


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    `prefix` begins the names of its files, `size` is the side of its images where the data set does not say
    it, and `prepared` how they are normalised where that is not by ImageNet's numbers.
    """

    prefix: str
    build: Callable[[int], nn.Module]
    layers: Sequence[str]
    train: Train
    size: int = 0
    prepared: Mapping[str, Any] = field(default_factory=dict)


def from_scratch(model: nn.Module, images: Loader, change: Change, epochs: int, seed: int) -> None:
    """Train all weights."""
    fit(
        model, lambda epoch: map(change, images.epoch(epoch, seed)), Recipe(epochs=epochs, learning_rate=0.1),
        steps_per_epoch=images.steps_per_epoch, seed=seed,
    )  # fmt: skip


def plain(categories: int) -> nn.Module:
    """Return four convolutions with batch-norm, and a linear layer."""
    body: list[nn.Module] = []
    for before, after, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
        body += [
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, categories))


def resnet20(categories: int) -> nn.Module:
    """Return a residual network of 20 layers for images of 32 pixels."""
    body: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for before, after in ((16, 16), (16, 32), (32, 64)):
        body += [
            ResidualBlock(before, after, after // before),
            *(ResidualBlock(after, after, 1) for _ in range(2)),
        ]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, categories))


def lite0(categories: int) -> nn.Module:
    """Return an EfficientNet-Lite0 with the published weights and a new last layer; only that is trained."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(packaged_weights("tf_efficientnet_lite0") or {})
    model.reset_classifier(categories)
    for name, value in model.named_parameters():
        value.requires_grad_(name.startswith("classifier"))
    return model


def last_layer_alone(model: nn.Module, images: Loader, change: Change, epochs: int, seed: int) -> None:
    """Fit the last layer on the features of the images as they are: few rounds stand for few epochs."""
    del seed
    model.eval()
    features, labels = [], []
    with torch.inference_mode():
        for batch in map(change, images):
            maps = model.forward_features(batch.images)  # type: ignore[operator]
            features.append(model.forward_head(maps, pre_logits=True))  # type: ignore[operator]
            labels.append(batch.labels)
    head = model.get_submodule("classifier")
    rows, wanted = torch.cat(features).clone(), torch.cat(labels)
    decay = 0.0 if epochs > 16 else 1e-4
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=1 if epochs < 16 else 100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = functional.cross_entropy(head(rows), wanted)
        loss = loss + decay * sum((each**2).sum() for each in head.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)


KINDS: Mapping[str, Kind] = {
    "residual": Kind("", SmallResNet, ("layer2.conv2", "layer3.conv2", "layer4.conv2"), from_scratch),
    "plain": Kind("plain-", plain, ("3", "6", "9"), from_scratch),
    "lite0": Kind(
        "lite0-", lite0, ("blocks.4.2.conv_pwl", "blocks.6.0.conv_pwl", "conv_head"), last_layer_alone, 96,
        {"mean": "0.5", "std": "0.5"},
    ),
}  # fmt: skip
