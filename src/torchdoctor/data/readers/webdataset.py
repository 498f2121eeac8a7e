"""Read `webdataset:SHARDS`: tar archives of images and labels in the layout of the library webdataset."""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL.Image import Image

from torchdoctor.data.fingerprints import stamp_of_bytes
from torchdoctor.data.labels import categories_of, label_text, notes_on_labels
from torchdoctor.data.masked_image import decode_masked
from torchdoctor.data.readers.columns import LABELS, find_column
from torchdoctor.data.readers.shard_files import files_by_split, split_files
from torchdoctor.data.readers.tar_members import (
    MASK,
    Member,
    Sample,
    ends_with_mark,
    read_member,
    samples_of,
)
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.splitting import divide
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

ENDING = ".tar"
LAYOUT = "expected a folder of .tar files, one .tar file, or a pattern such as shards-{000..009}.tar"
NAMES = ("classes.txt", "classnames.txt")  # beside the archives: the names of categories, one on each line
RANGE, CHOICE = re.compile(r"\{(\d+)\.\.(\d+)\}"), re.compile(r"\{([^{}]*,[^{}]*)\}")
NO_MASK = -1


@dataclass(frozen=True)
class TarImages:
    """The images of a split in tar archives, read and decoded by themselves, in any order.

    Attributes:
        archives: The archives of the split.
        archive: The archive of each image.
        places: Where each image and its mask lie: offset and size of the image, then those of the mask, which
            are -1 where there is none; in bytes.
        names: The name of each image: those of its archive and its member.
    """

    archives: tuple[Path, ...]
    archive: Int[np.ndarray, " image"]
    places: Int[np.ndarray, "image 4"]
    names: tuple[str, ...]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image and its mask.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and its mask (an L image) or None.

        Raises:
            InputError: The image or its mask is damaged, or the mask has another size.
        """
        content, mask = self._contents(position)
        name = f"{self.archives[self.archive[position]].parent}/{self.names[position]}"
        return decode_masked(content, name, mask)

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamps of the image and of its mask.
        """
        content, mask = self._contents(position)
        return stamp_of_bytes(content), b"" if mask is None else stamp_of_bytes(mask)

    def _contents(self, position: int) -> tuple[bytes, bytes | None]:
        """Return an encoded image, and its encoded mask or None."""
        archive, name = self.archives[self.archive[position]], self.names[position]
        start, size, mask_start, mask_size = self.places[position].tolist()
        content = read_member(archive, Member(name, start, size))
        return content, None if mask_start == NO_MASK else read_member(
            archive, Member(name, mask_start, mask_size)
        )


@dataclass
class Index:
    """The samples of a split, gathered archive by archive.

    Attributes:
        archives: The archives.
        archive: The archive of each image.
        places: Four numbers for each image, as in `TarImages`.
        names: The name of each image.
        labels: The label of each image as it is written.
    """

    archives: tuple[Path, ...]
    archive: array[int] = field(default_factory=lambda: array("i"))
    places: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def table(self, classes: tuple[str, ...], numbers: Mapping[str, int]) -> ImageTable:
        """Return the images of the split.

        Args:
            classes: The names of the categories.
            numbers: The number of the category by the label as written.

        Returns:
            The table; ids number the samples in the order of the archives' names.
        """
        places = np.array(self.places, dtype=np.int64).reshape(-1, 4)
        names = tuple(self.names)
        return ImageTable(
            classes=classes,
            labels=np.array([numbers[label] for label in self.labels], dtype=np.int64),
            names=names,
            ids=np.arange(len(names)),
            read=TarImages(self.archives, np.array(self.archive, dtype=np.int32), places, names),
            has_mask=places[:, 2] != NO_MASK,
        )


def read_webdataset(location: str, seed: int, settings: DataSettings) -> Tables:
    """Read tar archives of images.

    Args:
        location: A .tar file, a folder of such files, or a pattern: `{000..009}` stands for these numbers,
            `{a,b}` for either, `*` for anything; `~` is the home folder. Names of files or folders tell
            splits.
        seed: The seed by which missing splits are divided off.
        settings: The field of labels, and the share of the training images that becomes the validation split
            where the source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: An archive is missing, damaged or cut off, or a sample has no image or no label.
    """
    origin = f"webdataset:{location}"
    files, notes = _archives(location, origin)
    index = {name: _indexed(tuple(paths), settings.label_column) for name, paths in files.items()}
    for paths in files.values():
        notes += tuple(
            f"{path.name}: ends without the mark of its end, so it may be cut off"
            for path in paths if not ends_with_mark(path)
        )  # fmt: skip
    written = {name: Counter(split.labels) for name, split in index.items()}
    named = _names(files)
    if named is None:
        classes, numbers = categories_of(written, origin)
        notes += notes_on_labels(classes)
    else:
        classes, numbers = named[1], _numbers(written, *named)
    splits = {name: split.table(classes, numbers) for name, split in index.items()}
    return replace(divide(splits, origin, seed, settings.validation_share), notes=notes)


def _archives(location: str, origin: str) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return the archives of each split, and what is not used."""
    path = Path(location).expanduser()
    if path.is_dir():
        return split_files(path, origin, ENDING, undivided=True)
    if path.is_file():
        return {"train": [path]}, ()
    found: list[Path] = []
    for text in expanded(str(path)):
        each = Path(text)
        matches = sorted(each.parent.glob(each.name)) if "*" in each.name else [each]
        missing = next((match for match in matches if not match.is_file()), None)
        if missing is not None or not matches:
            raise InputError(f"{origin}: no such file: {missing or each}; {LAYOUT}")
        found += matches
    files, others = files_by_split(found)
    if not files:
        return {"train": found}, ()
    if others or "train" not in files:
        raise InputError(
            f"{origin}: found the splits {sorted(files)}"
            + (f", and {others[0].name}, whose name tells no split" if others else " without train")
            + "; expected names such as train-000.tar and test-000.tar"
        )
    return files, ()


def expanded(pattern: str) -> list[str]:
    """Write out the braces of a pattern.

    Args:
        pattern: Text such as `shards-{000..009}.tar` or `{train,test}-0.tar`.

    Returns:
        Every text that it stands for, in order; numbers are as long as the first one is written.
    """
    for braces in (RANGE, CHOICE):
        match = braces.search(pattern)
        if match is None:
            continue
        if braces is RANGE:
            first, last = match.groups()
            parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        else:
            parts = match[1].split(",")
        before, after = pattern[: match.start()], pattern[match.end() :]
        return [text for part in parts for text in expanded(before + part + after)]
    return [pattern]


def _indexed(archives: tuple[Path, ...], label_column: str | None) -> Index:
    """Go through the archives of a split once, reading nothing but labels."""
    index = Index(archives)
    known: dict[str, str] = {}
    for number, archive in enumerate(archives):
        for sample in samples_of(archive):
            image, mask = sample.image(archive), sample.members.get(MASK)
            label = _label(archive, sample, image, label_column)
            index.archive.append(number)
            index.places.extend((image.offset, image.size))
            index.places.extend((NO_MASK, NO_MASK) if mask is None else (mask.offset, mask.size))
            index.names.append(f"{archive.name}/{image.name}")
            index.labels.append(known.setdefault(label, label))  # one text for each category
    return index


def _label(archive: Path, sample: Sample, image: Member, label_column: str | None) -> str:
    """Return the label of a sample as text."""
    place = f"{archive}: member {image.name!r}"
    told = sample.members.get(label_column or "cls")
    if told is not None:
        return label_text(_text(archive, told), f"{archive}: member {told.name!r}")
    fields = sample.members.get("json")
    if fields is None:
        raise InputError(
            f"{place} has no label; expected a member {sample.key}.{label_column or 'cls'} with its "
            f"category, or {sample.key}.json with a field {label_column or LABELS[0]}"
        )
    place = f"{archive}: member {fields.name!r}"
    try:
        content = json.loads(_text(archive, fields))
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{place}: expected a JSON object with a field {LABELS[0]}")
    return label_text(
        content[find_column(list(content), label_column, LABELS, "--label-column", place)], place
    )


def _text(archive: Path, member: Member) -> str:
    """Return the content of a member as text."""
    try:
        return read_member(archive, member).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{archive}: member {member.name!r}: is no text in UTF-8") from error


def _names(files: Mapping[str, list[Path]]) -> tuple[Path, tuple[str, ...]] | None:
    """Return the file beside the archives that names the categories, and the names; None without one."""
    folder = files["train"][0].parent
    found = [place / name for place in (folder, folder.parent) for name in NAMES if (place / name).is_file()]
    if not found:
        return None
    names = tuple(line.strip() for line in found[0].read_text(encoding="utf-8").splitlines() if line.strip())
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{found[0]}: names {twice[0]!r} twice; give each category a name of its own")
    return found[0], names


def _numbers(written: Mapping[str, Counter[str]], file: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Return the number of the category that each label means: a name in the file, or its number from 0."""
    known = {name: number for number, name in enumerate(names)}
    numbers: dict[str, int] = {}
    for label in sorted(set().union(*written.values())):
        number = known.get(label, int(label) if re.fullmatch(r"\d{1,9}", label) else len(names))
        if number >= len(names):
            raise InputError(
                f"{file}: names {count_of(len(names), 'category', 'categories')}, and the archives "
                f"have the label {label!r}; expected "
                f"one of these names, or a number from 0 to {len(names) - 1}"
            )
        numbers[label] = number
    return numbers
