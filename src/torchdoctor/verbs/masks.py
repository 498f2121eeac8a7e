"""Import, export and check object masks in the formats of annotation programs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchdoctor.case.settings import Settings
from torchdoctor.data.annotations import MaskError
from torchdoctor.data.checking import splits_of
from torchdoctor.data.decoding import orientation_of
from torchdoctor.data.image_names import DataImage, DataImages
from torchdoctor.data.load import load_tables
from torchdoctor.data.mask_check import MaskCheck, check_data_masks, check_drawn_masks
from torchdoctor.data.mask_folder import RECORD, match_masks
from torchdoctor.data.mask_formats.annotation import Area, MaskedImage, MaskSet, Notes, Problem
from torchdoctor.data.mask_formats.registry import (
    AUTO,
    FORMATS,
    check_libraries,
    formats_listed,
    read_annotations,
)
from torchdoctor.data.mask_import import DrawnMasks, draw_annotations, only_labels
from torchdoctor.data.settings import DataSettings, OnError
from torchdoctor.data.table import Tables
from torchdoctor.display.counts import count_of
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_bytes, write_json
from torchdoctor.types import InputError, Progress, silent

NAMED = 5  # problems that an error message lists


@dataclass(frozen=True)
class MaskImport:
    """What an import of masks has written.

    Attributes:
        format: The format that was read.
        source: The file or folder that was read.
        out: The folder that the masks were written into.
        drawn: The masks, and what has none.
        overwritten: How many files were there before.
    """

    format: str
    source: str
    out: str
    drawn: DrawnMasks
    overwritten: int

    def to_json(self) -> dict[str, Any]:
        """Describe the import by values that JSON can hold.

        Returns:
            The masks with their images, and every image without one with the reason.
        """
        return {
            "format": self.format, "source": self.source, "out": self.out, "overwritten": self.overwritten,
            "written": len(self.drawn.masks), **self.drawn.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class MaskExport:
    """What an export of masks has written.

    Attributes:
        format: The format.
        out: The folder.
        files: The files, by their paths in it.
        images: How many images have a mask in them.
        without_mask: How many images of the data set have no mask.
        problems: The masks that could not be read.
        notes: What one should know of the export, in sentences.
    """

    format: str
    out: str
    files: tuple[str, ...]
    images: int
    without_mask: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe the export by values that JSON can hold.

        Returns:
            The fields by name.
        """
        return {
            "format": self.format, "out": self.out, "images": self.images,
            "without_mask": self.without_mask, "files": list(self.files),
            "problems": [problem.to_json() for problem in self.problems], "notes": list(self.notes),
        }  # fmt: skip


def import_masks(
    source: str | Path,
    out: str | Path,
    *,
    format: str = AUTO,
    settings: Settings | None = None,
    on_error: OnError = "fail",
    ids: bool = False,
    labels: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> MaskImport:
    """Write a PNG mask for each image that an annotation program's files hold shapes of.

    A mask is 255 on all shapes of its image and 0 elsewhere. It has the path of its image, below `--data` or
    else below the source, with the ending `.png`: `--masks` reads such a folder. `masks.json` in it says what
    each mask was drawn from.

    Args:
        source: The file or folder of the annotations.
        out: The folder of the masks.
        format: The name of the format, or `auto`.
        settings: The data set that the images belong to, as `data` and how it is read; None, or settings
            without `data`: the names in the annotations count.
        on_error: What happens where a file or shape cannot be used: `fail` writes nothing, `skip` writes the
            masks of the other images.
        ids: Whether the values of mask files are numbers, of which only 0 is the background.
        labels: The labels whose shapes are drawn, as the annotations write them; empty: those of all.
        overwrite: Whether masks that are there already are replaced.
        progress: Called after every image.

    Returns:
        What was written, and why other images have no mask.

    Raises:
        InputError: The source cannot be read, an annotation cannot be used and `on_error` is `fail`, no
            shape has one of the labels, no mask is left, or a file exists and `overwrite` is False.
    """
    tables = _tables(settings)
    name, annotations = read_annotations(Path(source).expanduser(), format, ids)
    if labels:
        annotations = only_labels(annotations, labels)
    drawn = draw_annotations(annotations, tables, progress)
    if on_error == "fail":
        _refuse(drawn.problems, f"{str(source)!r}: nothing was written: ")
    if not drawn.masks:
        raise InputError(f"{str(source)!r}: no mask to write: {_why_none(drawn)}")
    folder = Path(out).expanduser()
    targets = {folder / f"{mask.place}.png": mask for mask in drawn.masks}
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        raise InputError(
            f"{len(there)} of {count_of(len(targets), 'mask')} "
            f"{'exists' if len(there) == 1 else 'exist'} already, such as {there[0]}; nothing was written. "
            "Give another --out, or --overwrite to replace them"
        )
    for target, mask in targets.items():
        write_bytes(target, mask.png)
    _write_record(folder, name, drawn)
    return MaskImport(name, str(source), str(out), drawn, len(there))


def _tables(settings: Settings | None, *, masks: bool = False) -> Tables | None:
    """Read the tables of a data set, with the masks in a folder of their own or not; None without a name."""
    if settings is None or settings.data is None:
        return None
    part = settings.part(DataSettings)
    part = part if masks else part.model_copy(update={"masks": None})
    return load_tables(settings.data, seed=settings.split_seed, settings=part)


def _refuse(problems: tuple[Problem, ...], start: str) -> None:
    """Raise InputError where there are problems; the message lists the first."""
    if problems:
        listed = "\n  ".join(problem.text for problem in problems[:NAMED])
        more = f"\n  and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise InputError(
            f"{start}{count_of(len(problems), 'annotation')} cannot be used; repair them, or leave "
            f"these images out with --on-error skip\n  {listed}{more}"
        )


def _why_none(drawn: DrawnMasks) -> str:
    """Say why no mask was drawn."""
    reasons = []
    if drawn.problems:
        number = count_of(len(drawn.problems), "annotation")
        reasons.append(f"{number} cannot be used, first {drawn.problems[0].text}")
    if drawn.unmatched:
        names = ", ".join(drawn.unmatched[:NAMED])
        number = f"({len(drawn.unmatched)})"
        reasons.append(f"the data set has none of the images that are named {number}: {names}")
    if drawn.without_shapes:
        reasons.append(count_of(len(drawn.without_shapes), "image has no shapes", "images have no shapes"))
    return "; ".join(reasons) or "there are no annotations in it"


def _write_record(folder: Path, name: str, drawn: DrawnMasks) -> None:
    """Write, or add to, the file that says what each mask was drawn from."""
    file = folder / RECORD
    earlier = read_json(file).get("masks") if file.is_file() else {}
    masks = dict(earlier) if isinstance(earlier, dict) else {}
    for mask in drawn.masks:
        masks[f"{mask.place}.png"] = {
            "format": name, "labels": list(mask.labels), "sources": list(mask.sources),
        }  # fmt: skip
    write_json(file, {"masks": masks})


def export_masks(
    settings: Settings,
    out: str | Path,
    *,
    format: str,
    on_error: OnError = "fail",
    overwrite: bool = False,
    progress: Progress = silent,
) -> MaskExport:
    """Write the masks of a data set in the format of an annotation program.

    Args:
        settings: The data set, as `data`, `masks` and how it is read.
        out: The folder to write into.
        format: The name of the format.
        on_error: What happens where a mask cannot be read: `fail` stops, `skip` leaves the image out.
        overwrite: Whether files may be written into a folder that holds some, and replace these.
        progress: Called after every image.

    Returns:
        What was written.

    Raises:
        InputError: The format is unknown, there is no mask, a mask cannot be read and `on_error` is `fail`,
            or the folder holds files and `overwrite` is False.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format!r}: expected one of {formats_listed()}")
    check_libraries(format)  # type: ignore[arg-type]
    tables = _tables(settings, masks=True)
    if tables is None:
        raise InputError("--data is missing: give the data set whose masks are exported")
    data, folder, notes = DataImages(tables), Path(out).expanduser(), Notes()
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out {str(out)!r} holds files; give a new folder, or --overwrite to add to it")
    splits = splits_of(tables)
    masked = [image for image in data.images if splits[image.split].has_mask[image.position]]
    if not masked:
        raise InputError(f"{tables.origin}: no image has a mask; give a folder of masks with --masks")
    turned = sum(image.file is not None and orientation_of(image.file) != 1 for image in masked)
    notes.add("images turned upright by EXIF: areas belong to the upright image", turned)
    problems: list[Problem] = []
    images = _each(masked, tables, None if on_error == "fail" else problems, progress)
    written = []
    for path, content in FORMATS[format].write(MaskSet(images, tables.classes, folder)):  # type: ignore[index]
        write_bytes(folder / path, content)
        written.append(path.as_posix())
    return MaskExport(
        format, str(out), tuple(written), len(masked) - len(problems), len(data.images) - len(masked),
        tuple(problems), notes.sentences,
    )  # fmt: skip


def _each(
    masked: Sequence[DataImage], tables: Tables, problems: list[Problem] | None, progress: Progress
) -> Iterator[MaskedImage]:
    """Yield images with masks; what cannot be read is added to the problems, or raised without these."""
    for done, image in enumerate(masked, 1):
        progress("masks", done, len(masked))
        try:
            yield _masked(image, tables)
        except InputError as error:
            if problems is None:
                raise
            kind = error.kind if isinstance(error, MaskError) else "unreadable"
            problems.append(Problem(kind, image.name, str(error)))


def _masked(image: DataImage, tables: Tables) -> MaskedImage:
    """Decode an image and its mask."""
    if any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in image.name):
        raise InputError(f"{image.name!r}: a name that the files of the format cannot hold; rename the image")
    pixels, mask = splits_of(tables)[image.split].read(image.position)
    if mask is None:
        raise InputError(f"{image.name}: its mask is not there any more")
    area: Area = np.asarray(mask) > 0

    def encoded() -> bytes:
        content = io.BytesIO()
        pixels.save(content, "png")
        return content.getvalue()

    return MaskedImage(image.name, image.place, image.category, area, image.file, encoded)


def check_masks(
    settings: Settings,
    source: str | Path | None = None,
    *,
    format: str = AUTO,
    ids: bool = False,
    progress: Progress = silent,
) -> MaskCheck:
    """Check masks: which images have none, which masks do not fit, and how large objects are.

    Args:
        settings: The data set, as `data`, `masks` and how it is read; without `data` a source is needed.
        source: A file or folder of annotations, which are checked without being imported; None checks the
            masks of the data set.
        format: The name of the format of the source, or `auto`.
        ids: Whether the values of mask files are numbers, of which only 0 is the background.
        progress: Called after every image.

    Returns:
        What was found.

    Raises:
        InputError: Neither a data set nor a source is given, or they cannot be read.
    """
    tables = _tables(settings)
    if source is not None:
        if settings.masks is not None:
            raise InputError("SOURCE and --masks: give one of them")
        name, annotations = read_annotations(Path(source).expanduser(), format, ids)
        return check_drawn_masks(
            draw_annotations(annotations, tables, progress), f"{source} ({name})", tables
        )
    if tables is None:
        raise InputError("nothing to check: give --data, or a file or folder of annotations")
    if format != AUTO or ids:
        raise InputError("--format and --ids are for a file or folder of annotations: give one as SOURCE")
    if settings.masks is None:
        return check_data_masks(tables, progress=progress)
    folder = Path(settings.masks).expanduser()
    matches = match_masks(DataImages(tables), folder)
    return check_data_masks(tables, folder, matches, _labels(folder), progress)


def _labels(folder: Path) -> dict[str, list[str]]:
    """Return the labels that the masks in a folder were drawn from, by their paths in it."""
    file = folder / RECORD
    masks = read_json(file).get("masks") if file.is_file() else {}
    return {
        str(path): [str(label) for label in entry.get("labels") or ()]
        for path, entry in (masks.items() if isinstance(masks, dict) else ())
        if isinstance(entry, dict)
    }
