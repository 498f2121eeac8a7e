"""Record on the card of weights which images they were trained on, and refuse these as test images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt64

from torchdoctor.data.fingerprints import image_hashes
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

Hashes = UInt64[np.ndarray, " image"]
SHOWN = 5  # names in a message
NOT_KNOWN = (
    "the test images were divided off from this folder, and the weights have no card that says what they "
    "were trained on: whether they have seen the test images cannot be known. Give a folder that is divided "
    "into train and test"
)


def trained_on(card: Mapping[str, object] | None, data: Splits) -> dict[str, object] | None:
    """Describe the images that weights will have been trained on after a training on this data.

    Args:
        card: The card of the weights that the training starts from; None for new weights.
        data: The images.

    Returns:
        `images` (how many different ones) and `hashes` (8 bytes for each, sorted, in base64), those of the
        card included; None where the images cannot be hashed without decoding them.
    """
    own = data.training_hashes
    if own is None:
        return None
    before = _hashes_of(card)
    every = np.unique(own if before is None else np.concatenate([own, before]))
    return {"images": len(every), "hashes": base64.b64encode(every.astype("<u8").tobytes()).decode("ascii")}


def refuse_seen_tests(card: Mapping[str, object] | None, data: Splits) -> None:
    """Refuse test images that the weights were trained on.

    Images that this data set itself has among its training images and its test images are left out here; the
    command `data check` counts them.

    Args:
        card: The card of the weights; None where there is none.
        data: The images.

    Raises:
        InputError: A test split holds images that the card lists; the message names some.
    """
    before = _hashes_of(card)
    if before is None:
        return
    own = data.training_hashes
    if own is None:
        return
    for name, loader in data.tests.items():
        seen, told = _seen(loader, before, own)
        if seen:
            raise InputError(
                f"{seen} of the {count_of(len(loader), 'image')} of the test split {name!r} "
                f"{'was a training image' if seen == 1 else 'were training images'} of these weights, "
                f"as their card says ({told}): a test on them proves nothing. Use the "
                "division that the weights were trained with (--split-seed, --validation-share), or other "
                "test images"
            )


def refuse_seen_validation(card: Mapping[str, object] | None, data: Splits, weights: str) -> None:
    """Refuse a second opinion on images that it was trained on.

    Args:
        card: The card of the second network's weights; None where there is none.
        data: The images.
        weights: The weights, for the message.

    Raises:
        InputError: The validation split holds images that the card lists.
    """
    before = _hashes_of(card)
    seen, told = (0, "") if before is None else _seen(data.validation, before, data.training_hashes)
    if seen:
        raise InputError(
            f"--second-opinion {weights!r}: {seen} of the "
            f"{count_of(len(data.validation), 'validation image')} "
            f"{'was its training image' if seen == 1 else 'were its training images'}, as its card "
            f"says ({told}): it would repeat their labels. Train it with the "
            "same division (--split-seed, --validation-share)"
        )


def _seen(
    loader: Loader, before: UInt64[np.ndarray, " before"], own: UInt64[np.ndarray, " own"] | None
) -> tuple[int, str]:
    """Return how many images of a loader are among hashes but not among others, and the names of some."""
    hashes = image_hashes(loader.table)
    if hashes is None or own is None:
        return 0, ""
    seen = np.flatnonzero(np.isin(hashes, before) & ~np.isin(hashes, own))
    names = ", ".join(str(loader.table.names[place]) for place in seen[:SHOWN].tolist())
    return len(seen), names + (", ..." if len(seen) > SHOWN else "")


def note_on_tests(card: Mapping[str, object] | None, data: Splits, *, own_weights: bool) -> str | None:
    """Say where it cannot be known whether the weights have seen the test images.

    Args:
        card: The card of the weights.
        data: The images.
        own_weights: Whether the weights come from a file of the user's.

    Returns:
        A sentence; None where it is known, or where the data came with a test split of its own.
    """
    if own_weights and data.test_divided_off and _hashes_of(card) is None:
        return NOT_KNOWN
    return None


def _hashes_of(card: Mapping[str, object] | None) -> Hashes | None:
    """Return the hashes on a card; None where it has none, InputError where they cannot be read."""
    record: Any = (card or {}).get("trained_on")
    if record is None:
        return None
    try:
        return np.frombuffer(base64.b64decode(record["hashes"], validate=True), dtype="<u8").astype(np.uint64)
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise InputError(
            f"the card beside the weights holds `trained_on` that cannot be read ({error}): expected "
            "what train writes; remove the entry if the card was edited"
        ) from error
