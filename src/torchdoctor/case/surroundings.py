"""The card beside saved weights, the versions that a run depends on, and the code that loads weights."""

from __future__ import annotations

import platform
import secrets
import time
from pathlib import Path

import torch

from torchdoctor.case.settings import Plan
from torchdoctor.data.load import Splits
from torchdoctor.models.hugging_face import SOURCE as TRANSFORMERS
from torchdoctor.models.loading import TIMM_SOURCES

IN_MEMORY = "memory"  # what model and data are called that were given from Python: memory:NAME


def in_memory(plan: Plan) -> bool:
    """Return whether network and images of a run were given from Python.

    Args:
        plan: The plan of the run.

    Returns:
        True where no command could load them again.
    """
    return plan.data.partition(":")[0] == IN_MEMORY


def card_of(plan: Plan, data: Splits) -> dict[str, object]:
    """Return what lies beside saved weights.

    Args:
        plan: The plan of the run.
        data: Its images.

    Returns:
        The model's name, the categories, and how images are prepared.
    """
    return {
        "model": plan.model,
        "classes": list(data.classes),
        "preprocessing": data.preprocessing.to_json(),
    }


def environment() -> dict[str, object]:
    """Return what a result depends on besides its settings.

    Returns:
        The versions of the libraries, the platform, the number of threads, and the GPU's name if any.
    """
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torchdoctor", "torch", "torchvision", "timm", "numpy", "scipy", "pillow", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def loading_code(plan: Plan, classes: int, weights: Path) -> str:
    """Return the lines that load saved weights in plain PyTorch.

    Args:
        plan: The plan of the run that saved them.
        classes: The number of categories.
        weights: The file.

    Returns:
        Lines of Python.
    """
    full = plan.model
    channels, size = plan.channels, plan.image_size
    source, _, name = full.partition(":")
    colour = "" if channels == 3 else f", in_chans={channels}"
    if source == IN_MEMORY:
        build = f"model = ...  # {name}, built as for the checkup"
    elif source == "torchvision" and not colour:
        extra = ", aux_logits=False, init_weights=False" if name in ("googlenet", "inception_v3") else ""
        build = f"import torchvision; model = torchvision.models.{name}(num_classes={classes}{extra})"
    elif source in TIMM_SOURCES:
        known = name if source == "timm" else full
        build = f"import timm; model = timm.create_model({known!r}, num_classes={classes}{colour})"
    elif name and source not in ("torchvision", TRANSFORMERS):
        build = f"from {source} import {name}; model = {name}(num_classes={classes}{colour})"
    else:
        fitted = f"{full!r}, {classes}, channels={channels}, image_size={size}"
        build = f"from torchdoctor import load_model; model = load_model({fitted})"
    return "\n".join(
        (
            "from safetensors.torch import load_file",
            build,
            f"model.load_state_dict(load_file({str(weights)!r}))",
        )
    )


def new_folder(verb: str) -> str:
    """Return a new folder for a run whose folder was not given.

    Args:
        verb: The command that runs.

    Returns:
        `runs/<command>-<time>-<letters>`; the letters are random, so that runs which start in the same
        second, on this machine or on others that share the folder, do not meet.
    """
    return f"runs/{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
