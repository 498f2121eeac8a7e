"""Turn settings into a model, data and layers, and refuse what does not fit before anything is written."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchdoctor.case.defaults import best_select, check_constraints, prescribed
from torchdoctor.case.network_trial import TryOut, layers_of, try_out_network
from torchdoctor.case.settings import RANDOM, Plan, Settings, Verb, check_verb, decided_by_verb
from torchdoctor.case.surroundings import card_of
from torchdoctor.case.training_images import note_on_tests, refuse_seen_tests, trained_on
from torchdoctor.data.load import EXPECTED, Splits, load_data
from torchdoctor.data.settings import DataSettings
from torchdoctor.images.masks import default_expansion
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import WithoutDrawing, load_model
from torchdoctor.models.pretrained import PRETRAINED, own_preprocessing
from torchdoctor.models.weights import load_into, load_weights, weights_card
from torchdoctor.randomness import key
from torchdoctor.types import InputError

JUDGING: tuple[Verb, ...] = ("treat", "checkup", "robustness")  # verbs whose results rest on test images
SAVING: tuple[Verb, ...] = ("train", "treat", "checkup", "demo")  # verbs that write weights with their card
SWAPPED = "swapped"  # the test split that is made of another split by exchanging backgrounds


@dataclass(frozen=True)
class Case:
    """A classifier with its data and the plan of a run, checked against each other.

    Attributes:
        plan: Every setting of the run, decided.
        model: The network with its weights, on its device, in evaluation mode.
        data: The images, by split.
        card: What is written beside saved weights: model, categories, preprocessing, training images.
        notes: Sentences about what cannot be known of this case.
    """

    plan: Plan
    model: nn.Module
    data: Splits
    card: Mapping[str, object]
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are diagnosed, from first to last."""
        return self.plan.layers

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the categories."""
        return self.data.classes

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.plan.out)

    def names_of(self, ids: Sequence[int]) -> list[str]:
        """Return the names of training images, so that a person can look at them.

        Args:
            ids: Numbers of training images.

        Returns:
            Their names, such as paths of files.
        """
        table = self.data.train.table
        known = dict(zip(table.ids.tolist(), table.names, strict=True))
        return [str(known[number]) for number in ids]

    @property
    def facts(self) -> dict[str, object]:
        """What was done to the images before the network saw them: preprocessing, and images left out."""
        facts: dict[str, object] = {
            "preprocessing": self.data.preprocessing.to_json(),
            "skipped_images": list(self.data.skipped),
            **({"notes": list(self.notes)} if self.notes else {}),
        }
        return facts | ({"data_notes": list(self.data.notes)} if self.data.notes else {})


def prepare(
    settings: Settings, verb: Verb, *, needs_weights: bool = True, try_out: TryOut | None = None
) -> Case:
    """Build the model, read the data, load the weights, check that they fit, and decide every setting.

    Args:
        settings: What was asked for.
        verb: The command that runs.
        needs_weights: Whether trained weights must be given; `train` does without.
        try_out: What refuses networks that cannot be diagnosed or treated; None: `try_out_network`.

    Returns:
        The prepared case. Nothing has been written.

    Raises:
        InputError: A flag is missing, a name or layer is unknown, weights or numbers of categories do not
            fit, or the data cannot serve the constraints.
    """
    check_verb(settings, verb)
    if needs_weights and settings.weights is None:
        raise InputError(
            "--weights is missing: give the trained classifier's .safetensors or state dict (train writes it)"
        )
    pretrained = settings.weights == PRETRAINED
    file = None if pretrained or settings.weights == RANDOM else settings.weights
    state = load_weights(file) if file is not None else None
    card = weights_card(file) if file is not None else None
    name = settings.model or model_of_card(card, str(settings.weights))
    if name is None:
        raise InputError(
            "--model is missing: give a name of `torchdoctor models`, torchvision:NAME, timm:NAME or "
            "package.module:factory"
        )
    if settings.data is None:
        raise InputError(f"--data is missing: give {EXPECTED}")
    data = _data(settings, name, card)
    primary = _primary(settings, data)
    _check_classes(settings, data, card)
    if verb in JUDGING:
        refuse_seen_tests(card, data)
    torch.manual_seed(key("weights", settings.seed) % (1 << 63))
    if pretrained and needs_weights:
        _check_pretrained_head(name, data)
    with WithoutDrawing() if state is not None and name in MODELS else nullcontext():
        model = load_model(
            name,
            data.classes,
            PRETRAINED if pretrained else None,
            channels=data.preprocessing.channels,
            image_size=data.preprocessing.image_size,
        )
    if state is not None:
        load_into(model, state, str(settings.weights))
    model = model.to(device_named(settings.device)).eval()
    layers = layers_of(settings, name, model, data, try_out or try_out_network)
    check_constraints(settings, layers, data)
    plan = _decided(settings, verb, name, data, layers, primary)
    unknown = note_on_tests(card, data, own_weights=file is not None) if verb in JUDGING else None
    return Case(plan, model, data, _card(plan, data, card, verb), (unknown,) if unknown else ())


def _card(plan: Plan, data: Splits, before: Mapping[str, object] | None, verb: Verb) -> dict[str, object]:
    """Return the card of the weights that a verb writes; only such verbs read every training image."""
    seen = {"trained_on": trained_on(before, data)} if verb in SAVING else {}
    return {**card_of(plan, data), **seen}


def _decided(
    settings: Settings, verb: Verb, name: str, data: Splits, layers: tuple[str, ...], primary: str
) -> Plan:
    """Return the settings with everything decided that was left to the model, the data or the command."""
    fitted = data.preprocessing
    growth = settings.expand_pixels
    decided = {
        **decided_by_verb(settings, verb),
        **prescribed(settings, layers, data),
        "model": name,
        "weights": settings.weights or RANDOM,
        "out": settings.out or new_folder(verb),
        "image_size": fitted.image_size,
        "channels": fitted.channels,
        "primary": primary,
        "layers": layers,
        "expand_pixels": default_expansion(fitted.image_size) if growth == "auto" else growth,
        "select": best_select(settings, data),
    }
    return Plan(**{**dict(settings), **decided})


def new_folder(verb: str) -> str:
    """Return where a run goes that was given no folder.

    Args:
        verb: The command that runs.

    Returns:
        `runs/<command>-<time>-<letters>`; the letters are random, so that runs which start in the same
        second, on this machine or on others that share the folder, do not meet.
    """
    return f"runs/{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def model_of_card(card: Mapping[str, object] | None, weights: str) -> str | None:
    """Return the model that the card beside weights names.

    Args:
        card: The card; None where there is none.
        weights: The weights, for the message.

    Returns:
        The model's name; None where there is no card or it names no model.

    Raises:
        InputError: The card names a factory of other code: no data file chooses code to run.
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


def _data(settings: Settings, name: str, card: Mapping[str, object] | None) -> Splits:
    """Load the data with the preprocessing that the weights were trained with, where it is known."""
    published = own_preprocessing(name, pretrained=settings.weights == PRETRAINED)
    trained: Any = (card or {}).get("preprocessing") or published
    asked = settings.part(DataSettings)
    if asked.image_size == "auto" and trained.get("image_size"):
        asked = asked.but(image_size=trained["image_size"])
    if asked.channels == "auto" and card and "mean" in trained:
        asked = asked.but(channels=len(trained["mean"]))
    if asked.primary == SWAPPED:
        asked = asked.but(primary="auto")
    return load_data(
        str(settings.data),
        mean=tuple(trained["mean"]) if "mean" in trained else None,
        std=tuple(trained["std"]) if "std" in trained else None,
        seed=asked.split_seed,
        augment=settings.augment,
        settings=asked,
    )


def _primary(settings: Settings, data: Splits) -> str:
    """Return the test split that decides; InputError where it is to be made of masks that are not there."""
    if settings.primary != SWAPPED or SWAPPED in data.tests:
        return data.primary if settings.primary == "auto" else settings.primary
    table = data.tests[data.primary].table
    masked = len(np.unique(table.labels[table.has_mask]))
    if masked < 2:
        raise InputError(
            f"--primary {SWAPPED!r} puts test images before the backgrounds of other categories by their "
            f"masks, and {settings.data!r} has masks of {masked} categories in {data.primary!r}: give data "
            "whose test images have masks"
        )
    return SWAPPED


def _check_classes(settings: Settings, data: Splits, card: Mapping[str, object] | None) -> None:
    """Refuse data whose categories are not those the weights were trained for."""
    trained = (card or {}).get("classes")
    if isinstance(trained, list) and tuple(trained) != data.classes:
        raise InputError(
            f"weights {settings.weights!r} were trained for {len(trained)} categories ({_few(trained)}); the "
            f"data {settings.data!r} has {len(data.classes)} ({_few(list(data.classes))})"
        )


def _few(names: list[str]) -> str:
    """Name the first few."""
    return ", ".join(map(str, names[:4])) + (", ..." if len(names) > 4 else "")


def device_named(name: str) -> torch.device:
    """Return a device, after trying to use it.

    Args:
        name: `auto`, or a name that PyTorch knows, such as `cpu` or `cuda:0`.

    Returns:
        The device; for `auto` the GPU, or the CPU where there is no GPU.

    Raises:
        InputError: The device does not exist or cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--device {name!r} cannot be used ({first}); expected auto, cpu or cuda") from error
    return device


def _check_pretrained_head(name: str, data: Splits) -> None:
    """Refuse published weights whose head would be new: there would be nothing to diagnose or treat yet."""
    known = own_preprocessing(name, pretrained=True).get("categories")
    if known != len(data.classes):
        raise InputError(
            f"--weights {PRETRAINED}: the head of {name} knows {known or 'unknown'} categories and the data "
            f"has {len(data.classes)}: train it on the data first (train --weights {PRETRAINED})"
        )
