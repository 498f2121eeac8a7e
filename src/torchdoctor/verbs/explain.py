"""Explain predictions on images of any kind: files, folders, or SPLIT:ID of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from torchdoctor.case.classifier import load_classifier
from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.outcome import check_weights
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import Settings
from torchdoctor.case.surroundings import new_folder
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.settings import SOURCE
from torchdoctor.diagnosis.explanation import explain
from torchdoctor.diagnosis.explanation_result import Explanation
from torchdoctor.diagnosis.grad_cam import grad_cam
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.writing import write_json
from torchdoctor.runs.folder import RunFolder, open_run
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.pictures import displayed_pixels, mask_of, write_figure
from torchdoctor.verbs.predict import image_files, table_of_files


@dataclass(frozen=True)
class Subject:
    """An image to be explained, with what is known about it.

    Attributes:
        name: The file, or the image's name in the data.
        image: The image as the network takes it, [channel, height, width].
        mask: The object's mask, [1, height, width], 1 on the object; None if unknown.
        label: The true category; None if unknown.
        id: The image's number in its data or among the given files.
    """

    name: str
    image: Tensor
    mask: Tensor | None
    label: str | None
    id: int


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to explain its predictions.

    Attributes:
        model: The network with its weights, in evaluation mode.
        classes: The names of its categories.
        preprocessing: How images are prepared for it.
        data: The images of a run or of `--data`; None without.
        diagnosis: The diagnosis of the network, which says what is usual; None without.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    data: Splits | None
    diagnosis: Diagnosis | None


def run_explain(
    settings: Settings,
    images: Sequence[str],
    *,
    label: str | None = None,
    cam: bool = False,
    progress: Progress = silent,
) -> dict[str, object]:
    """Explain images and write `explain.json` and a picture of each (PNG and SVG) into a folder.

    Args:
        settings: What was asked for. With `diagnosis` (a run), the run's weights and data are used, and the
            explanation compares with what is usual for the category; without, any weights do.
        images: Image files, folders of images, and SPLIT:ID for an image of the data.
        label: The true category of all images, where their folders do not say it.
        cam: Whether to draw Grad-CAM maps beside the derivative maps.
        progress: Called with stage, done, of how many.

    Returns:
        What `explain.json` holds: the folder, and an explanation of each image.

    Raises:
        InputError: An image is missing, a category is unknown, or the folder cannot be used.
    """
    classifier = classifier_of(settings)
    if label is not None and label not in classifier.classes:
        raise InputError(
            f"--label {label!r} is none of the categories: {', '.join(classifier.classes[:8])}, ..."
        )
    layers = None if settings.layers == "auto" else settings.layers
    explanations: list[dict[str, object]] = []
    with RunFolder.create(Path(settings.out or new_folder("explain"))) as run:
        for number, subject in enumerate(subjects_of(images, classifier, settings)):
            subject = replace(subject, label=label or subject.label)
            explanation = explain(
                classifier.model, subject.image, classifier.diagnosis, label=subject.label, mask=subject.mask,
                classes=classifier.classes, layers=layers, image_id=subject.id, seed=settings.seed,
            )  # fmt: skip
            heat = None
            if cam:
                category = classifier.classes.index(explanation.prediction)
                heat = grad_cam(classifier.model, subject.image, explanation.layer, category)
            pictures = _draw(run.path, number, subject, explanation, classifier.preprocessing, heat)
            explanations.append({"image": subject.name, **explanation.record(), "pictures": pictures})
            progress("explain", number + 1, number + 1)
        record: dict[str, object] = {"out": str(run.path), "explanations": explanations}
        write_json(run.path / "explain.json", record)
    return record


def classifier_of(settings: Settings) -> Classifier:
    """Load the network that is to be explained.

    Args:
        settings: What was asked for. Where `diagnosis` names a run, the run's settings hold, except for
            weights, model, data and device where they are given.

    Returns:
        The network with its categories, its preprocessing, and its data and diagnosis if there are any.

    Raises:
        InputError: A setting is missing, or the weights are not those of the diagnosis.
    """
    if settings.diagnosis is None and settings.data is None:
        model, classes, preprocessing = load_classifier(settings)
        return Classifier(model, classes, preprocessing, None, None)
    if settings.diagnosis is None:
        case = prepare(settings.but(second_opinion=None), "diagnose")
        return Classifier(case.model, case.classes, case.data.preprocessing, case.data, None)
    folder = open_run(Path(settings.diagnosis))
    diagnosis = Diagnosis.load(folder / "diagnosis")
    recorded = {name: value for name, value in read_config(folder / "config.yaml").items() if name in SHARED}
    default = Settings()
    changed = {
        name: getattr(settings, name)
        for name in ("weights", "model", "data", "device")
        if getattr(settings, name) != getattr(default, name)
    }
    layers = tuple(layer.name for layer in diagnosis.layers)
    case = prepare(settings_from({**recorded, **changed, "layers": layers}), "diagnose")
    check_weights(case, diagnosis, f"--diagnosis {settings.diagnosis!r}")
    return Classifier(case.model, case.classes, case.data.preprocessing, case.data, diagnosis)


SHARED = (
    "model", "weights", "data", "seed", "limit", "batch_size", "device", "primary", "image_size", "channels",
    "classes", "classes_seed", "validation_share", "on_error", "evidence", *SOURCE,
)  # fmt: skip


def subjects_of(images: Sequence[str], classifier: Classifier, settings: Settings) -> list[Subject]:
    """Read the images that are to be explained.

    Args:
        images: Image files, folders of images, and SPLIT:ID for an image of the data.
        classifier: The network that is to be explained, with its data if there are any.
        settings: What was asked for; the batch size.

    Returns:
        The images in the given order.

    Raises:
        InputError: A file, a split, or an image of a split does not exist.
    """
    loaders = _splits(classifier.data)
    subjects: list[Subject] = []
    for text in images:
        split, mark, number = text.rpartition(":")
        if not mark or not loaders or Path(text).exists():
            subjects += _subjects_of_files(text, classifier, settings.batch_size)
        elif split in loaders:
            _check_number(text, split, number, loaders[split])
            subjects += _subjects(loaders[split].select([int(number)]), classifier.classes)
        else:
            raise InputError(
                f"image {text!r}: no such file, and the data has no split {split!r}, but {', '.join(loaders)}"
            )
    return subjects


def _check_number(text: str, split: str, number: str, loader: Loader) -> None:
    """Refuse what is not the number of an image of a split."""
    if not number.isdecimal():
        raise InputError(f"image {text!r}: expected {split}:ID with the number of an image, as in {split}:7")
    known_ids = loader.table.ids
    if int(number) not in known_ids:
        some = ", ".join(map(str, known_ids[:3].tolist()))
        raise InputError(
            f"image {text!r}: {split} has no image {number}; its {len(known_ids)} are numbered {some}, ..."
        )


def _subjects_of_files(path: str, classifier: Classifier, batch_size: int) -> list[Subject]:
    """Return the images of a file or folder; labels are known in folders called like categories."""
    files = image_files([path])
    loader = Loader(table_of_files(files, classifier.classes), classifier.preprocessing, batch_size)
    known = [file.parent.name in classifier.classes for file in files]
    subjects = _subjects(loader, classifier.classes)
    return [
        subject if sure else replace(subject, label=None)
        for subject, sure in zip(subjects, known, strict=True)
    ]


def _splits(data: Splits | None) -> dict[str, Loader]:
    """Return the loaders by name."""
    return {} if data is None else {"train": data.train, "validation": data.validation, **data.tests}


def _subjects(loader: Loader, classes: Sequence[str]) -> list[Subject]:
    """Return the images of a loader."""
    names = dict(zip(loader.table.ids.tolist(), loader.table.names, strict=True))
    subjects = []
    for batch in loader:
        for row, image in enumerate(batch.ids.tolist()):
            label = classes[int(batch.labels[row])]
            subjects.append(Subject(names[image], batch.images[row], mask_of(batch, row), label, image))
    return subjects


def _draw(
    folder: Path,
    number: int,
    subject: Subject,
    explanation: Explanation,
    preprocessing: Preprocessing,
    cam: np.ndarray | None,
) -> list[str]:
    """Write the picture of an explanation; return the files' names."""
    mask = None if subject.mask is None else subject.mask[0].numpy() > 0.5
    figure = explanation.figure(displayed_pixels(subject.image, preprocessing), mask, cam)
    return write_figure(folder, f"{number:03d}", figure)
