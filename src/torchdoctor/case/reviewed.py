"""Use what a person answered in the review of a run: labels, and masks of training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torchdoctor.case.answers import Answers, answers_in
from torchdoctor.case.config import read_config
from torchdoctor.case.settings import Settings
from torchdoctor.data.given_masks import image_hash, with_masks
from torchdoctor.data.load import Splits
from torchdoctor.data.settings import DataSettings
from torchdoctor.diagnosis.suspects_result import LIST, read_labels
from torchdoctor.display.counts import count_of
from torchdoctor.models.settings import ModelSettings
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.review_files import MaskRecord, check_mask_file, read_masks, said_of_kinds
from torchdoctor.treatment.arms import LEAST_MASKS
from torchdoctor.treatment.labels_by_hand import ANSWERED
from torchdoctor.types import InputError

OF_RUN = (*ModelSettings.model_fields, *DataSettings.model_fields)  # settings that a review brings along


@dataclass(frozen=True)
class Reviewed:
    """What a person answered in the review of a run.

    Attributes:
        answers: The answers about labels.
        accepted: How many of them took the category that the run had proposed.
        masks: The mask files by the image's id; proposals that nobody looked at are not among them.
        kinds: The number of masks by kind, and of images without an object as `no object`.
        file: The list of the answers about labels.
    """

    answers: Answers
    accepted: int
    masks: Mapping[int, Path]
    kinds: Mapping[str, int]
    file: str

    @property
    def facts(self) -> dict[str, object]:
        """What the record of a run says of the review, as numbers by kind."""
        given = {"accepted proposal": self.accepted, "by hand": self.answers.given - self.accepted}
        return {"labels": given, "masks": dict(self.kinds)}

    @property
    def note(self) -> str:
        """The same in a sentence."""
        by_hand = self.answers.given - self.accepted
        accepted = count_of(self.accepted, "proposal")
        labels = f"{count_of(self.answers.given, 'label')} ({by_hand} by hand, {accepted} accepted)"
        kinds = said_of_kinds(self.kinds)
        drawn = f"{count_of(len(self.masks), 'image')} ({kinds})"
        return f"a person answered in a review about {labels} and drew masks of {drawn}"


def with_run_of_review(settings: Settings) -> Settings:
    """Take network and data from the run of a review, where neither is given.

    Args:
        settings: What was asked for.

    Returns:
        The settings, with those of the run wherever the user gave none.

    Raises:
        InputError: The run cannot be read.
    """
    if settings.review is None or settings.data is not None or settings.weights is not None:
        return settings
    folder = open_run(Path(settings.review))
    recorded = read_config(folder / "config.yaml")
    usual = Settings()
    taken = {
        name: recorded[name]
        for name in OF_RUN
        if name in recorded and getattr(settings, name) == getattr(usual, name)
    }
    return settings.but(**taken)


def read_review(run: str, data: Splits) -> Reviewed:
    """Read what a person answered in the review of a run.

    Args:
        run: The run's folder.
        data: The images, which must hold those of the run.

    Returns:
        The answers.

    Raises:
        InputError: The run is unfinished or damaged, nobody has answered anything that changes a training, an
            image is missing or changed, or a mask file is.
    """
    folder = open_run(Path(run))
    file = folder / LIST
    answers, accepted = Answers(), 0
    if file.is_file():
        answers = answers_in(str(file), data, f"--review {run!r}: {str(file)!r}")
        accepted = sum(line.answer == line.proposed != line.given for line in read_labels(file))
    records = read_masks(folder)
    for record in records.values():
        _check_image(run, record, data)
    masks = {image: check_mask_file(folder, record) for image, record in records.items() if record.file}
    if not answers.changes and not masks:
        said = "nobody has answered anything yet" if not answers.given and not records else (
            "no answer changes a label, and there is no mask, so there is nothing to train anew"
        )  # fmt: skip
        raise InputError(f"--review {run!r}: {said}; `torchdoctor review {run}` asks")
    kinds = Counter("no object" if not record.file else record.kind for record in records.values())
    return Reviewed(answers, accepted, masks, dict(sorted(kinds.items())), str(file))


def _check_image(run: str, record: MaskRecord, data: Splits) -> None:
    """Refuse a mask whose image is not there any more, or is another one."""
    table = data.train.table
    place = {identity: place for place, identity in enumerate(table.ids.tolist())}.get(record.id)
    if place is None or str(table.names[place]) != record.image:
        raise InputError(
            f"--review {run!r}: {record.image!r} is not among the {len(table)} training images: give the "
            "data of that run, and the same --limit, --classes and --split-seed"
        )
    if record.source and image_hash(table, place) not in ("", record.source):
        raise InputError(
            f"--review {run!r}: {record.image!r} has changed since its mask was drawn: bring the image back"
        )


def answered_arms(settings: Settings, masked: int) -> tuple[str, ...]:
    """Return the arms that use what a person answered.

    Args:
        settings: What was asked for, or a plan.
        masked: The number of training images with masks, those of the review and of the data together.

    Returns:
        `relabelled` where there are answers about labels; `swap` where a review left masks and there are 20
        or more in all.
    """
    arms = () if settings.labels is None else (ANSWERED,)
    records = () if settings.review is None else read_masks(Path(settings.review)).values()
    drawn = any(record.file for record in records)
    return (*arms, "swap") if drawn and masked >= LEAST_MASKS else arms


def with_review(
    settings: Settings, data: Splits
) -> tuple[Settings, Splits, Reviewed | None, tuple[str, ...]]:
    """Give the data the masks of a review, and the settings its answers about labels.

    Args:
        settings: What was asked for.
        data: The images.

    Returns:
        Settings and data with what was answered, the answers (None where no review is named), and notes.

    Raises:
        InputError: The review cannot be used, or other answers about labels are given too.
    """
    if settings.review is None:
        return settings, data, None, ()
    reviewed = read_review(settings.review, data)
    if settings.labels is not None and Path(settings.labels) != Path(reviewed.file):
        raise InputError(
            f"--labels {settings.labels!r} and --review {settings.review!r} both hold answers about labels: "
            "give one of them"
        )
    notes: tuple[str, ...] = (reviewed.note,)
    uses_labels = settings.arms == "auto" or ANSWERED in settings.arms
    if reviewed.answers.changes and not uses_labels:
        notes += ("the answers about labels are not used: --arms does not name relabelled",)
    labels = reviewed.file if reviewed.answers.changes and uses_labels else None
    if reviewed.masks:
        table = with_masks(data.train.table, reviewed.masks)
        train = replace(data.train, table=table, store=replace(data.train.store, table=table))
        data = replace(data, train=train, has_masks=True)
    return settings.but(labels=labels), data, reviewed, notes
