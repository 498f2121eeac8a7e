"""Load a second network, by whose predictions labels of validation images are judged too."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.case.classifier import load_classifier
from torchdoctor.case.device import device_named
from torchdoctor.case.settings import Settings
from torchdoctor.case.training_images import refuse_seen_validation
from torchdoctor.data.arrangement import prepared_loader
from torchdoctor.data.load import Splits
from torchdoctor.diagnosis.second_opinion import SecondOpinion
from torchdoctor.display.cards import listed
from torchdoctor.display.counts import count_of
from torchdoctor.models.class_names import same_names
from torchdoctor.models.pretrained import PRETRAINED
from torchdoctor.models.weights import weights_card
from torchdoctor.processes import Processes
from torchdoctor.types import InputError


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


def second_opinion(settings: Settings, data: Splits, processes: Processes) -> SecondOpinion | None:
    """Load the second network, and prepare the validation images for it.

    Args:
        settings: What was asked for: `second_opinion` and the device.
        data: The images.
        processes: The processes that work together.

    Returns:
        The network and its images; None where none was asked for.

    Raises:
        InputError: The weights or their card cannot be used, the network has other categories, or it was
            trained on validation images.
    """
    weights = settings.second_opinion
    if weights is None:
        return None
    if weights == PRETRAINED:
        raise InputError(
            "--second-opinion pretrained: published weights know other categories. Give weights that were "
            "trained for yours, as torchdoctor train writes them"
        )
    try:
        model, classes, preprocessing = load_classifier(Settings(weights=weights, device=settings.device))
    except InputError as error:
        raise InputError(
            f"--second-opinion {weights!r}: {error}. Weights are needed with the card that torchdoctor train "
            "writes beside them; from Python, find_causes takes any network as `second`"
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
    model = model.to(device_named(settings.device, processes)).eval()
    return SecondOpinion(model, prepared_loader(data.validation, preprocessing))
