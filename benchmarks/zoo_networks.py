"""Name and build the networks that `benchmarks.zoo` tries."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# By name: what is built, the size of its images, its settings.
QUICK = {
    "mnasnet": ("torchvision:mnasnet0_5", 64, {}),
    "mobilenet_v3_small": ("torchvision:mobilenet_v3_small", 64, {}),
    "convnext": ("timm:convnext_atto", 64, {}),
    "swin": (
        "timm:swin_tiny_patch4_window7_224",
        64,
        {"img_size": 64, "window_size": 2, "depths": (2, 2, 2, 1)},
    ),
    "vit": ("timm:vit_tiny_patch16_224", 64, {"img_size": 64}),
    "levit": ("timm:levit_128s", 128, {"img_size": 128}),
    "mvitv2": ("timm:mvitv2_tiny", 64, {"img_size": 64}),
    "efficientformer": ("timm:efficientformer_l1", 224, {}),
    "squeezenet": ("torchvision:squeezenet1_1", 64, {}),
}
MOST_PARAMETERS = 32_000_000
CATEGORIES = 3
# Words of names, the smallest networks' first.
SMALL_WORDS = (
    "test", "zepto", "atto", "femto", "pico", "nano", "xxtiny", "xxsmall", "xxs", "xtiny", "xsmall", "xs",
    "x", "tiny", "ti", "t", "mini", "micro", "m0", "s0", "b0", "0", "small", "sm", "s", "18", "10", "14",
    "050", "lite",
)  # fmt: skip
VECTORS, OTHERS = 0.1, 0.02  # standard deviation of what `as_trained` adds
TRIED = 4  # of a family's networks, those that are built to find the smallest


def torchvision_names() -> list[str]:
    """Return the smallest classifier of each family of torchvision."""
    import torchvision

    families: dict[str, tuple[int, str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        family = _family_of(name)
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = torchvision.models.get_model(name)
        except NotImplementedError:  # it counts on real tensors while it is built
            network = torchvision.models.get_model(name)
        size = sum(parameter.numel() for parameter in network.parameters())
        families[family] = min(families.get(family, (size, name)), (size, name))
    return [f"torchvision:{name}" for _, name in sorted(families.values(), key=lambda each: each[1])]


def _family_of(name: str) -> str:
    """Return a name of torchvision without its size: efficientnet_v2 of efficientnet_v2_s."""
    found = re.match(r"wide_resnet|[a-z]+(_v\d|_[xy](?=_))?", name)
    return found[0] if found else name


def timm_names() -> Iterator[str]:
    """Yield a small network of each family of timm, under 32 million parameters."""
    import timm
    from timm.models import _registry

    for family in timm.list_modules():
        sizes = []
        for name in sorted(_registry._module_to_models[family], key=_guessed_size)[:TRIED]:
            try:
                with torch.device("meta"):
                    network = timm.create_model(name, num_classes=CATEGORIES)
            except Exception:  # some count on real tensors while they are built
                continue
            sizes.append((sum(parameter.numel() for parameter in network.parameters()), name))
        if sizes and min(sizes)[0] < MOST_PARAMETERS:
            yield f"timm:{min(sizes)[1]}"


def _guessed_size(name: str) -> tuple[int, int, str]:
    """Return what sorts the names of a family by the size that their words speak of."""
    words = [word for word in re.split(r"[_.]", name) if word in SMALL_WORDS]
    rank = min((SMALL_WORDS.index(word) for word in words), default=len(SMALL_WORDS))
    return rank, len(name), name


def transformers_makers() -> dict[str, Callable[[], nn.Module]]:
    """Return tiny image classifiers of transformers, by name; none where it is not installed."""
    try:
        import transformers
    except ImportError:
        return {}
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    images = {"image_size": 64, "patch_size": 16, "num_labels": CATEGORIES}

    def maker(kind: str, **settings: Any) -> Callable[[], nn.Module]:
        config = getattr(transformers, f"{kind}Config")
        network = getattr(transformers, f"{kind}ForImageClassification")
        return lambda: network(config(**settings))

    return {
        "transformers:vit": maker("ViT", **small, **images),
        "transformers:deit": maker("DeiT", **small, **images),
        "transformers:beit": maker("Beit", **small, **images),
        "transformers:dinov2": maker("Dinov2", **small, **images),
        "transformers:resnet": maker(
            "ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CATEGORIES
        ),
        "transformers:convnext": maker(
            "ConvNext", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=CATEGORIES
        ),
        "transformers:swin": maker(
            "Swin", image_size=64, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4,
            num_labels=CATEGORIES,
        ),
    }  # fmt: skip


class Nasty(nn.Module):
    """A small network; `between` and `last` are what is nasty in each kind."""

    def __init__(self) -> None:
        """Make three convolutions and a head."""
        super().__init__()
        self.a, self.b, self.c = (
            nn.Sequential(nn.Conv2d(inside, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for inside in (3, 8, 8)
        )
        self.fc = nn.Linear(8, CATEGORIES)

    def between(self, maps: Tensor) -> Tensor:
        """Return the maps as they are."""
        return maps

    def forward(self, images: Tensor) -> Any:
        """Return the logits."""
        return self.fc(self.c(self.between(self.b(self.a(images)))).mean((2, 3)))


def nasty_makers() -> dict[str, Callable[[], nn.Module]]:
    """Return hand-made networks, by name."""

    def kind(between: Callable[[Nasty, Tensor], Tensor], name: str) -> Callable[[], nn.Module]:
        return type(name, (Nasty,), {"between": between})

    functional = torch.nn.functional
    steps: dict[str, Callable[[Nasty, Tensor], Tensor]] = {
        "in_place": lambda _n, m: m.relu_(),
        "channels_last": lambda _n, m: m.contiguous(memory_format=torch.channels_last),
        "permuted": lambda _n, m: m.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "hardswish": lambda _n, m: functional.hardswish(m),
        "hardsigmoid": lambda _n, m: m * functional.hardsigmoid(m),
        "grid_sample": lambda _n, m: functional.grid_sample(
            m, functional.affine_grid(torch.eye(2, 3, dtype=m.dtype).expand(len(m), -1, -1), list(m.shape))
        ),
        "fft": lambda _n, m: torch.fft.irfft2(torch.fft.rfft2(m), s=m.shape[2:]),
        "unit_norm": lambda _n, m: functional.normalize(m, dim=1),
        "detached": lambda _n, m: m.detach(),
        "no_grad": lambda _n, m: torch.no_grad()(lambda: m * 1)(),
        "numpy": lambda _n, m: torch.from_numpy(m.detach().numpy()),
        "noise": lambda _n, m: m + torch.randn_like(m),
        "batch": lambda _n, m: m - m.mean(0, keepdim=True),
        "twice": lambda n, m: n.c[1](m) + m,
    }
    made = {f"nasty:{name}": kind(step, name) for name, step in steps.items()}
    outputs = {
        "dict": lambda logits: {"logits": logits},
        "tuple": lambda logits: (logits, None),
        "softmax": lambda logits: logits.softmax(1),
        "one_score": lambda logits: logits[:, 0],
    }
    for name, change in outputs.items():
        forward = lambda self, images, change=change: change(Nasty.forward(self, images))  # noqa: E731
        made[f"nasty:{name}"] = type(name, (Nasty,), {"forward": forward})
    wraps = {
        "weight_norm": lambda n: setattr(n, "fc", nn.utils.parametrizations.weight_norm(n.fc)) or n,
        "spectral_norm": lambda n: setattr(n, "fc", nn.utils.parametrizations.spectral_norm(n.fc)) or n,
        "bfloat16": lambda n: n.bfloat16(),
        "double": lambda n: n.double(),
        "frozen": lambda n: n.requires_grad_(False),
        "zero_head": lambda n: nn.init.zeros_(n.fc.weight) is None or n,
    }
    for name, wrap in wraps.items():
        made[f"nasty:{name}"] = lambda wrap=wrap: wrap(Nasty())
    return made


def network_of(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """Build a network with new weights, those of a library `as_trained`."""
    source, _, kind = name.partition(":")
    if source == "torchvision":
        import torchvision

        extra: dict[str, Any] = {"init_weights": True} if kind in ("googlenet", "inception_v3") else {}
        if kind.startswith("vit"):  # as large as at 224, but of fewer tokens: in time
            extra = {"image_size": 64}
        network = torchvision.models.get_model(kind, num_classes=CATEGORIES, **extra)
    elif source == "timm":
        import timm

        network = timm.create_model(kind, num_classes=CATEGORIES, **settings)
    else:
        network = {**transformers_makers(), **nasty_makers()}[name]()
    return network if source == "nasty" else as_trained(network)


def as_trained(network: nn.Module) -> nn.Module:
    """Move every parameter whose numbers are all the same, as training would; return the network.

    Many makers let the head or the last norm of a branch start at 0, so that a network whose weights are new
    passes nothing on there. People bring networks that are trained.

    Args:
        network: The network; it is changed.

    Returns:
        The network, with normal noise added to such parameters: of 0.1 for vectors, of 0.02 for others. The
        noise is always the same.
    """
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                spread = VECTORS if parameter.ndim < 2 else OTHERS
                noise = spread * torch.randn(parameter.shape, generator=numbers)
                parameter += noise.to(parameter.dtype)
    return network


def with_statistics(network: nn.Module, images: Tensor) -> nn.Module:
    """Give every batch-norm the statistics of images, as training would; return the network.

    With a mean of 0 and a variance of 1, as a new norm has them, maps grow from layer to layer, until a
    rounding error of float32 decides between categories.

    Args:
        network: The network; it is changed.
        images: Images [batch, channel, height, width] in its type.

    Returns:
        The network, in evaluation mode.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all passes, here of one
    with torch.no_grad():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def sizes_to_try(name: str) -> list[int]:
    """Return image sizes, the one to try first in front."""
    if not name.startswith("timm:"):
        return [64, 224, 299]
    import timm

    return [
        64,
        128,
        timm.create_model(name.partition(":")[2], pretrained=False).default_cfg["input_size"][-1],
    ]
