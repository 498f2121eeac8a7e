"""Read what comes with weights: the name of their model, and the order of the categories."""

from __future__ import annotations

from collections.abc import Mapping

from torchdoctor.case.settings import Settings
from torchdoctor.data.arrangement import in_order_of
from torchdoctor.data.load import Splits
from torchdoctor.display.cards import listed
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.class_names import same_names
from torchdoctor.models.hugging_face import published_classes
from torchdoctor.models.pretrained import PRETRAINED, own_preprocessing
from torchdoctor.models.weights import Checkpoint
from torchdoctor.types import InputError


def model_of_card(card: Mapping[str, object] | None, weights: str) -> str | None:
    """Return the model that the card beside weights names.

    Args:
        card: The card; None where there is none.
        weights: The weights, for the message.

    Returns:
        The model's name; None where there is no card or it names no model.

    Raises:
        InputError: The card names a function of other code, which is only imported if the user names it.
    """
    name = (card or {}).get("model")
    if not isinstance(name, str):
        return None
    if name.partition(":")[0] in ("torchvision", "timm") or name in MODELS:
        return name
    raise InputError(
        f"the card beside {weights!r} names the factory {name!r}, which would be imported and run: "
        f"give --model {name} yourself if you trust it"
    )


def in_order_of_weights(
    settings: Settings, data: Splits, card: Mapping[str, object] | None, checkpoint: Checkpoint | None
) -> tuple[Splits, tuple[str, ...]]:
    """Number the categories of the data as the weights do.

    Args:
        settings: What was asked for.
        data: The data.
        card: The card beside the weights; None where there is none.
        checkpoint: What the file of weights holds; None where there is none.

    Returns:
        The data, and notes: on the order, and on which of several sets of weights was taken.

    Raises:
        InputError: The card lists other categories than the data has.
    """
    notes: tuple[str, ...] = (checkpoint.note,) if checkpoint and checkpoint.note else ()
    on_card = (card or {}).get("classes")
    trained = tuple(map(str, on_card)) if isinstance(on_card, list) else checkpoint and checkpoint.classes
    if settings.weights == PRETRAINED:
        published = published_classes(settings.model)
        trained = published if published and len(published) == len(data.classes) else None
    if not trained or trained == data.classes or settings.new_head:
        return data, notes
    ordered = same_names(trained, data.classes)
    if ordered is not None:
        if ordered != trained:
            notes += (
                f"the names of the categories are written otherwise in the weights ({listed(trained)}) "
                f"than in the data ({listed(ordered)}), and are taken to be the same",
            )
        if ordered != data.classes:
            notes += (
                f"categories are numbered as the weights number them ({listed(ordered)}), not in the "
                f"order of the data ({listed(data.classes)})",
            )
        return (in_order_of(data, ordered) if ordered != data.classes else data), notes
    told = (
        f"weights {settings.weights!r} were trained for {len(trained)} categories ({listed(trained)}); "
        f"the data {settings.data!r} has {len(data.classes)} ({listed(data.classes)})"
    )
    if isinstance(on_card, list):
        raise InputError(told)
    return data, (*notes, f"{told}: the names differ, and categories are matched by their place")


def check_pretrained_head(name: str, data: Splits) -> None:
    """Refuse published weights whose last layer does not fit the data and would have to be a new one.

    Args:
        name: The name of the model.
        data: The images.

    Raises:
        InputError: The published head knows another number of categories than the data has.
    """
    known = own_preprocessing(name, pretrained=True).get("categories")
    if known != len(data.classes):
        raise InputError(
            f"--weights {PRETRAINED}: the head of {name} knows {known or 'unknown'} categories and the data "
            f"has {len(data.classes)}: train it on the data first (train --weights {PRETRAINED})"
        )
