"""Explain predictions on images of any kind: files, folders, or SPLIT:ID of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.outcome import check_weights
from torchdoctor.case.preparation import new_folder, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.diagnosis.explanation import explain
from torchdoctor.diagnosis.explanation_result import Explanation
from torchdoctor.diagnosis.grad_cam import grad_cam
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.files.writing import write_json
from torchdoctor.runs.folder import RunFolder, open_run
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.pictures import mask_of, shown_pixels, write_figure
from torchdoctor.verbs.predict import image_files, load_classifier, table_of_files


@dataclass(frozen=True)
class Subject:
    """An image to be explained, as the network takes it, with what is known about it."""

    name: str
    image: Tensor
    mask: Tensor | None
    label: str | None
    id: int


@dataclass(frozen=True)
class Classifier:
    """A network with its categories and preprocessing; data and diagnosis where there are any."""

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

    With `diagnosis` (a run) its weights and data are used, and what is usual is known; without, any
    weights do. `label` is the true category of all images, where their folders do not say it. `cam`
    draws Grad-CAM maps beside ours. Returns what `explain.json` holds.
    """
    classifier = classifier_of(settings)
    if label is not None and label not in classifier.classes:
        raise InputError(
            f"--label {label!r} is none of the categories: {', '.join(classifier.classes[:8])}, ..."
        )
    layers = None if settings.layers == "auto" else settings.layers
    found: list[dict[str, object]] = []
    with RunFolder.create(Path(settings.out or new_folder("explain"))) as run:
        for number, subject in enumerate(subjects_of(images, classifier, settings)):
            subject = replace(subject, label=label or subject.label)
            explanation = explain(
                classifier.model, subject.image, classifier.diagnosis, label=subject.label, mask=subject.mask,
                classes=classifier.classes, layers=layers, image_id=subject.id, seed=settings.seed,
            )  # fmt: skip
            drawn = None
            if cam:
                category = classifier.classes.index(explanation.prediction)
                drawn = grad_cam(classifier.model, subject.image, explanation.layer, category)
            pictures = _draw(run.path, number, subject, explanation, classifier.preprocessing, drawn)
            found.append({"image": subject.name, **explanation.record(), "pictures": pictures})
            progress("explain", number + 1, number + 1)
        record: dict[str, object] = {"out": str(run.path), "explanations": found}
        write_json(run.path / "explain.json", record)
    return record


def classifier_of(settings: Settings) -> Classifier:
    """Load what is to be explained; with a diagnosis, its run says what."""
    if settings.diagnosis is None and settings.data is None:
        model, classes, preprocessing = load_classifier(settings)
        return Classifier(model, classes, preprocessing, None, None)
    if settings.diagnosis is None:
        case = prepare(settings, "diagnose")
        return Classifier(case.model, case.classes, case.data.preprocessing, case.data, None)
    folder = open_run(Path(settings.diagnosis))
    diagnosis = Diagnosis.load(folder / "diagnosis")
    kept = {name: value for name, value in read_config(folder / "config.yaml").items() if name in SHARED}
    default = Settings()
    changed = {
        name: getattr(settings, name)
        for name in ("weights", "model", "data", "device")
        if getattr(settings, name) != getattr(default, name)
    }
    layers = tuple(layer.name for layer in diagnosis.layers)
    case = prepare(settings_from({**kept, **changed, "layers": layers}), "diagnose")
    check_weights(case, diagnosis, f"--diagnosis {settings.diagnosis!r}")
    return Classifier(case.model, case.classes, case.data.preprocessing, case.data, diagnosis)


SHARED = (
    "model", "weights", "data", "seed", "limit", "batch_size", "device", "primary", "image_size", "channels",
    "classes", "classes_seed", "validation_share", "on_error", "evidence",
)  # fmt: skip


def subjects_of(images: Sequence[str], classifier: Classifier, settings: Settings) -> list[Subject]:
    """Read the images: files, folders, and SPLIT:ID or SPLIT:wrong of the data."""
    found: list[Subject] = []
    for one in images:
        split, mark, number = one.rpartition(":")
        loaders = _splits(classifier.data)
        if mark and split in loaders and not Path(one).exists():
            if not number.isdecimal():
                raise InputError(
                    f"image {one!r}: expected {split}:ID with the number of an image, as in {split}:7"
                )
            known_ids = loaders[split].table.ids
            if int(number) not in known_ids:
                some = ", ".join(map(str, known_ids[:3].tolist()))
                raise InputError(
                    f"image {one!r}: {split} has no image {number}; its {len(known_ids)} are numbered "
                    f"{some}, ..."
                )
            found += _subjects(loaders[split].select([int(number)]), classifier.classes)
            continue
        if mark and loaders and not Path(one).exists():
            raise InputError(
                f"image {one!r}: no such file, and the data has no split {split!r}, but {', '.join(loaders)}"
            )
        files = image_files([one])
        table = table_of_files(files, classifier.classes)
        loader = Loader(table, classifier.preprocessing, settings.batch_size)
        known = [file.parent.name in classifier.classes for file in files]
        for subject, sure in zip(_subjects(loader, classifier.classes), known, strict=True):
            found.append(subject if sure else replace(subject, label=None))
    return found


def _splits(data: Splits | None) -> dict[str, Loader]:
    """Return the loaders by name."""
    return {} if data is None else {"train": data.train, "validation": data.validation, **data.tests}


def _subjects(loader: Loader, classes: Sequence[str]) -> list[Subject]:
    """Return the images of a loader."""
    names = dict(zip(loader.table.ids.tolist(), loader.table.names, strict=True))
    found = []
    for batch in loader:
        for row, image in enumerate(batch.ids.tolist()):
            label = classes[int(batch.labels[row])]
            found.append(Subject(names[image], batch.images[row], mask_of(batch, row), label, image))
    return found


def _draw(
    folder: Path,
    number: int,
    subject: Subject,
    explanation: Explanation,
    preprocessing: Preprocessing,
    cam: np.ndarray | None,
) -> list[str]:
    """Write the picture of one explanation; return the files' names."""
    mask = None if subject.mask is None else subject.mask[0].numpy() > 0.5
    figure = explanation.figure(shown_pixels(subject.image, preprocessing), mask, cam)
    return write_figure(folder, f"{number:03d}", figure)
