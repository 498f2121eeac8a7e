"""The settings of the network: which network, with which weights, on which device."""

from __future__ import annotations

from torchdoctor.settings import SettingsGroup, setting


class ModelSettings(SettingsGroup):
    """Which network, with which weights, on which device."""

    model: str | None = setting(
        None,
        "The network: a name of `torchdoctor models`, torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME, "
        "local-dir:PATH, transformers:OWNER/NAME or :FOLDER, or package.module:function for your own.",
        left_out="the name on the card beside the weights",
        newcomer=True,
    )
    weights: str | None = setting(
        None,
        "The trained weights: a .safetensors file, a state dict saved by torch.save, a folder that holds "
        "model.safetensors, or the word pretrained for published ones.",
        left_out="train: random weights; else they must be given",
        newcomer=True,
    )
    device: str = setting("auto", "Where to compute: auto (the GPU, where the machine has any), cpu or cuda.")
