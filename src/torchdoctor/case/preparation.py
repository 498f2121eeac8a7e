"""Turn settings into a model, data and layers, and refuse what does not fit before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchdoctor.case.answers import Answers, read_answers
from torchdoctor.case.defaults import best_select, check_constraints, check_remedies, prescribed
from torchdoctor.case.device import device_named, precision_on
from torchdoctor.case.foreign_weights import suited
from torchdoctor.case.network_trial import TryOut, layers_of, try_out_network, try_out_training
from torchdoctor.case.own_weights import check_pretrained_head, in_order_of_weights, model_of_card
from torchdoctor.case.reviewed import with_review, with_run_of_review
from torchdoctor.case.second_opinion import second_opinions
from torchdoctor.case.settings import RANDOM, Plan, Settings, Verb, check_verb, decided_by_verb
from torchdoctor.case.surroundings import card_of, new_folder
from torchdoctor.case.training_images import note_on_tests, refuse_seen_tests, trained_on
from torchdoctor.data.arrangement import loaded_to
from torchdoctor.data.load import EXPECTED, Splits, load_data
from torchdoctor.data.settings import DataSettings
from torchdoctor.diagnosis.second_opinion import SecondOpinion
from torchdoctor.display.counts import count_of
from torchdoctor.images.masks import default_expansion
from torchdoctor.models.backbones import load_backbone
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import WithoutDrawing, load_model
from torchdoctor.models.pretrained import PRETRAINED, own_preprocessing
from torchdoctor.models.weights import Checkpoint, load_into, read_checkpoint, weights_card
from torchdoctor.network.prediction import device_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key
from torchdoctor.types import InputError

JUDGING: tuple[Verb, ...] = ("treat", "checkup", "robustness")  # verbs whose results rest on test images
SAVING: tuple[Verb, ...] = ("train", "treat", "checkup", "demo")  # verbs that write weights with their card
MOST_LEFT_OUT = 3  # images left out that are named before a run; its record names all
SWAPPED = "swapped"  # the test split that is made of another split by exchanging backgrounds


@dataclass(frozen=True)
class Case:
    """A classifier with its data and the plan of a run, checked against each other.

    Attributes:
        plan: Every setting of the run, decided.
        model: The network with its weights, on its device, in evaluation mode.
        data: The images, by split.
        card: What is written beside saved weights: model, categories, preprocessing, training images.
        notes: Sentences about what cannot be known about this case.
        answers: What a person answered about labels; None without answers.
        review: How many answers of a review are used, by kind; None without a review.
        processes: The processes that work on the run together.
        second: Other networks, by which labels of validation images are judged too.
    """

    plan: Plan
    model: nn.Module
    data: Splits
    card: Mapping[str, object]
    notes: tuple[str, ...] = ()
    answers: Answers | None = None
    review: Mapping[str, object] | None = None
    processes: Processes = ALONE
    second: tuple[SecondOpinion, ...] = ()

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
    def remarks(self) -> tuple[str, ...]:
        """What is said before a run begins: what cannot be known, is read in some way, or is left out."""
        skipped = self.data.skipped
        left = [f"left out: {reason}" for reason in skipped[:MOST_LEFT_OUT]]
        more = len(skipped) - MOST_LEFT_OUT
        if more > 0:
            said = count_of(more, "more image that does not decode", "more images that do not decode")
            left.append(f"left out: {said}")
        return (
            *(f"note: {note}" for note in self.notes),
            *(f"data: {note}" for note in self.data.notes),
            *(() if (reading := self.data.train.reading) is None else (f"data: {reading}",)),
            *left,
        )

    @property
    def facts(self) -> dict[str, object]:
        """What was done to the images before the network saw them: preprocessing, and images left out."""
        facts: dict[str, object] = {
            "preprocessing": self.data.preprocessing.to_json(),
            "skipped_images": list(self.data.skipped),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"review": dict(self.review)} if self.review is not None else {}),
        }
        return facts | ({"data_notes": list(self.data.notes)} if self.data.notes else {})


def prepare(
    settings: Settings,
    verb: Verb,
    *,
    needs_weights: bool = True,
    try_out: TryOut | None = None,
    processes: Processes = ALONE,
) -> Case:
    """Build the model, read the data, load the weights, check that they fit, and decide every setting.

    Args:
        settings: What was asked for.
        verb: The command that runs.
        needs_weights: Whether trained weights must be given; `train` does without.
        try_out: Raises InputError for networks that the run cannot use; given where only a plan is made.
            None: `try_out_training` for `train`, and `try_out_network` for other verbs.
        processes: The processes that work on the run together; each prepares the same case.

    Returns:
        The prepared case. Nothing has been written.

    Raises:
        InputError: A flag is missing, a name or layer is unknown, weights or numbers of categories do not
            fit, or the data lack what the constraints need.
    """
    settings = _checked(settings, verb, needs_weights, processes)
    file = None if settings.weights in (PRETRAINED, RANDOM) else settings.weights
    checkpoint, card = (None, None) if file is None else (read_checkpoint(file), weights_card(file))
    name = settings.model or model_of_card(card, str(settings.weights))
    if name is None:
        raise InputError(
            "--model is missing: give a name of `torchdoctor models`, torchvision:NAME, timm:NAME or "
            "package.module:factory"
        )
    if settings.data is None:
        raise InputError(f"--data is missing: give {EXPECTED}")
    read = partial(_data, settings, name, card)
    data = processes.main_first(read) if settings.download else read()
    primary = _primary(settings, data)
    data, notes = in_order_of_weights(settings, data, card, checkpoint)
    if verb in JUDGING:
        refuse_seen_tests(card, data)
    if settings.weights == PRETRAINED and needs_weights:
        check_pretrained_head(name, data)
    model, head = _network(settings, name, data, checkpoint, processes)
    known = settings.new_head or "preprocessing" in (card or {})
    if checkpoint is not None and not known and try_out is None:
        fitting = suited(model, data, settings.part(DataSettings))
        data, head = fitting.data, head + fitting.notes
    settings, data, reviewed, said = with_review(settings, data)
    settings = _with_precision(settings.but(primary=primary), model, processes)
    found = case_of(settings, verb, model, data, name=name, card=card, try_out=try_out)
    if reviewed is not None:
        answers = reviewed.answers if reviewed.answers.given else None
        found = replace(found, answers=answers, review=reviewed.facts)
    unknown = note_on_tests(card, data, own_weights=file is not None) if verb in JUDGING else None
    notes = notes + head + said + found.notes + ((unknown,) if unknown else ())
    second = second_opinions(settings, data, processes) if verb in ("diagnose", "checkup") else ()
    data = loaded_to(found.data, device_of(model), processes)
    return replace(found, data=data, notes=notes, processes=processes, second=second)


def _checked(settings: Settings, verb: Verb, needs_weights: bool, processes: Processes) -> Settings:
    """Return the settings with what a review decided and a folder that all processes agree on."""
    settings = with_run_of_review(settings)
    check_verb(settings, verb)
    if settings.out is None and not processes.alone:  # the folder's name holds the time
        settings = settings.but(out=processes.same(new_folder(verb)))
    if needs_weights and settings.weights is None:
        raise InputError(
            "--weights is missing: give the trained classifier's .safetensors or state dict (train writes it)"
        )
    return settings


def case_of(
    settings: Settings,
    verb: Verb,
    model: nn.Module,
    data: Splits,
    *,
    name: str,
    card: Mapping[str, object] | None = None,
    try_out: TryOut | None = None,
) -> Case:
    """Check a network and data that are at hand against each other, and decide every setting.

    Args:
        settings: What was asked for.
        verb: The command that runs.
        model: The network with its weights, on its device.
        data: The images.
        name: What the network is called.
        card: The card of the weights; None: they have none.
        try_out: As in `prepare`.

    Returns:
        The prepared case. Nothing has been written.

    Raises:
        InputError: A layer is unknown, or network or data lack what constraints, remedies or answers need.
    """
    settings, to_train = _with_precision(settings, model), verb == "train"
    usual = try_out_training if to_train else try_out_network
    layers, notes = layers_of(settings, name, model, data, try_out or usual, to_train=to_train)
    check_constraints(settings, layers, data)
    answers = read_answers(settings.labels, data) if settings.labels is not None else None
    check_remedies(settings, model, data)
    primary = data.primary if settings.primary == "auto" else settings.primary
    plan = _decided(settings, verb, name, data, layers, primary)
    return Case(plan, model, data, _card(plan, data, card, verb), notes, answers)


def _network(
    settings: Settings, name: str, data: Splits, checkpoint: Checkpoint | None, processes: Processes
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network with its weights, on its device and in evaluation mode; and notes on its head."""
    notes: tuple[str, ...] = ()
    torch.manual_seed(key("weights", settings.seed) % (1 << 63))
    drawn = checkpoint is None or settings.new_head or name not in MODELS
    with nullcontext() if drawn else WithoutDrawing():
        model = load_model(
            name,
            data.classes,
            PRETRAINED if settings.weights == PRETRAINED else None,
            channels=data.preprocessing.channels,
            image_size=data.preprocessing.image_size,
        )
    if checkpoint is not None and settings.new_head:
        notes = (load_backbone(model, checkpoint.state, len(data.classes), str(settings.weights)),)
    elif checkpoint is not None:
        load_into(model, checkpoint.state, str(settings.weights))
    return model.to(device_named(settings.device, processes)).eval(), notes


def _with_precision(settings: Settings, model: nn.Module, processes: Processes = ALONE) -> Settings:
    """Return the settings with a precision that is decided."""
    return settings.but(precision=precision_on(settings.precision, device_of(model), processes))


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
        **prescribed(settings, verb, layers, data),
        "model": name,
        "weights": settings.weights or RANDOM,
        "out": settings.out or new_folder(verb),
        "image_size": fitted.image_size,
        "channels": fitted.channels,
        "mean": fitted.mean,
        "std": fitted.std,
        "resize": fitted.resize,
        "crop_share": fitted.crop_share,
        "primary": primary,
        "layers": layers,
        "expand_pixels": default_expansion(fitted.image_size) if growth == "auto" else growth,
        "select": best_select(settings, data),
    }
    return Plan(**{**dict(settings), **decided})


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
    if (asked.mean, asked.std) == ("auto", "auto") and "mean" in trained and "std" in trained:
        asked = asked.but(mean=tuple(trained["mean"]), std=tuple(trained["std"]))
    if (asked.resize, asked.crop_share) == ("auto", "auto"):
        asked = asked.but(**{name: trained[name] for name in ("resize", "crop_share") if name in trained})
    return load_data(
        str(settings.data),
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
