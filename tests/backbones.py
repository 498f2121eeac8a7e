"""Networks that were trained on other images, for tests of new heads."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn


class Colours(nn.Module):
    """A network that was trained on other categories, two of them; its features are the mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 2)

    def forward(self, pixels):
        """Return two logits for each image."""
        return self.fc(self.pool(pixels).flatten(1))


def saved_backbone(folder: Path, categories: int = 7) -> str:
    """Write a small network of timm as timm saves it; 0 categories: without a head. Return its name."""
    torch.manual_seed(0)
    folder.mkdir()
    save_file(
        timm.create_model("resnet10t", num_classes=categories).state_dict(), folder / "model.safetensors"
    )
    published = {
        "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32], "num_classes": categories,
        "first_conv": "conv1.0", "classifier": "fc",
    }  # fmt: skip
    record = {"architecture": "resnet10t", "num_classes": categories, "pretrained_cfg": published}
    (folder / "config.json").write_text(json.dumps(record))
    return f"local-dir:{folder}"
