"""Find the images of a data set by the names that masks and annotations give them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torchdoctor.data.checking import splits_of
from torchdoctor.data.mask_formats.annotation import safe_path
from torchdoctor.data.readers.naming import is_readable
from torchdoctor.data.table import ImageTable, Tables


@dataclass(frozen=True)
class DataImage:
    """An image of a data set, as masks are matched to it.

    Attributes:
        split: The name of its split.
        position: Its position in the table of the split.
        name: Its path below the data set's folder, with forward slashes; else the name that the table has.
        place: The same without its ending, unless another image differs in nothing else.
        category: The name of its category.
        file: Its file; None where it does not lie in a file of its own.
    """

    split: str
    position: int
    name: str
    place: str
    category: str
    file: Path | None


class DataImages:
    """The images of a data set, found by their names.

    Attributes:
        images: All of them, split by split.
        classes: The names of the categories.
    """

    def __init__(self, tables: Tables) -> None:
        """Name the images.

        Args:
            tables: The data set.
        """
        root = folder_of(tables.origin)
        rows = [
            (split, position, file_of(table, position), table)
            for split, table in splits_of(tables).items()
            for position in range(len(table))
        ]
        names = [_name(table, position, file, root) for _, position, file, table in rows]
        repeated = Counter(names)
        names = [
            f"{split}/{name}" if repeated[name] > 1 else name
            for name, (split, *_) in zip(names, rows, strict=True)
        ]
        places = places_of(names)
        self.classes = tables.classes
        self.images = tuple(
            DataImage(split, position, name, place, table.classes[int(table.labels[position])], file)
            for (split, position, file, table), name, place in zip(rows, names, places, strict=True)
        )
        categories = {_folded(name) for name in tables.classes}
        self._folders = {part for name in names for part in _folders(name)} - categories
        self._by_name: dict[str, list[DataImage]] = {}
        for image in self.images:
            path = PurePosixPath(_folded(image.name))
            for key in dict.fromkeys((path.name, path.stem)):
                self._by_name.setdefault(key, []).append(image)

    def find(self, names: Sequence[str]) -> list[DataImage]:
        """Find the images that a name may mean.

        Args:
            names: The path or name of the image, and others that it may have; the first that any image has
                counts. Endings and upper and lower case may differ.

        Returns:
            The images with that name and as many of its folders as any has, counted from the name up; one
            where the name is clear, none where no image is called so.
        """
        for name in names:
            path = PurePosixPath(_folded(safe_path(name).as_posix()))
            inner = PurePosixPath(path.stem)  # `1.jpg` of `1.jpg.png`
            keys = [path.name, path.stem] + ([inner.stem] if is_readable(Path(inner)) else [])
            found = {id(image): image for key in keys for image in self._by_name.get(key, [])}
            if not found:
                continue
            ranks = {
                key: (_shared_folders(path, image), _folded(image.name).endswith((path.name, inner.name)))
                for key, image in found.items()
            }
            best = max(ranks.values())
            near = [image for key, image in found.items() if ranks[key] == best]
            return sorted(
                (image for image in near if not self._lies_elsewhere(path, image)), key=lambda one: one.name
            )
        return []

    def _lies_elsewhere(self, path: PurePosixPath, image: DataImage) -> bool:
        """Return whether a path names a folder of the data set, such as `train`, that an image is not in."""
        return bool(self._folders.intersection(path.parts[:-1]) - _folders(image.name))

    def contradiction(self, name: str, image: DataImage) -> str | None:
        """Return the category that a path names and that is not the image's.

        Args:
            name: The path of a mask or annotation.
            image: The image that it was matched to.

        Returns:
            The name of the other category; None where the folders of the path name none, or the image lies in
            folders of these names itself.
        """
        own = {*_folders(image.name), _folded(image.category)}
        for part in PurePosixPath(safe_path(name)).parts[:-1]:
            other = self.category_named(part)
            if other is not None and _folded(part) not in own:
                return other
        return None

    def category_named(self, label: str) -> str | None:
        """Return the category that a label names.

        Args:
            label: A label of an annotation program; upper and lower case do not count.

        Returns:
            The name of the category; None where there is none.
        """
        return next((name for name in self.classes if _folded(name) == _folded(label)), None)


def _folded(name: str) -> str:
    """Return a name as it is compared."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _folders(name: str) -> set[str]:
    """Return the folders in a path, as they are compared."""
    return set(PurePosixPath(_folded(name)).parts[:-1])


def _shared_folders(path: PurePosixPath, image: DataImage) -> int:
    """Return how many folders of two paths are alike, from the name up."""
    own = PurePosixPath(_folded(image.name)).parts[:-1]
    number = 0
    for one, other in zip(reversed(path.parts[:-1]), reversed(own), strict=False):
        if one != other:
            break
        number += 1
    return number


def _name(table: ImageTable, position: int, file: Path | None, root: Path | None) -> str:
    """Return an image's path below the data set's folder, or its name in the table."""
    if file is not None and root is not None and file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return safe_path(table.names[position]).as_posix()


def places_of(names: Sequence[str]) -> list[str]:
    """Return where the masks of images are written: their paths without endings, where that is clear.

    Args:
        names: The paths of the images.

    Returns:
        The path of each without its ending, or with it where another image differs in nothing else.
    """
    short = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    counts = Counter(place.casefold() for place in short)
    return [name if counts[place.casefold()] > 1 else place for name, place in zip(names, short, strict=True)]


def folder_of(origin: str) -> Path | None:
    """Return the folder that a data set was read from.

    Args:
        origin: The `--data` value.

    Returns:
        The folder; None where the data do not come from one.
    """
    scheme, _, location = origin.partition(":")
    if scheme == "folder":
        return Path(location).expanduser()
    if scheme == "table":
        return Path(location).expanduser().parent
    _, at, root = origin.partition("@")
    return Path(root).expanduser() if at else None


def file_of(table: ImageTable, position: int) -> Path | None:
    """Return the file of an image of a table.

    Args:
        table: The table.
        position: The position of the image in it.

    Returns:
        The file; None where the images do not lie in files of their own.
    """
    file = getattr(table.read, "file", None)
    return None if file is None else file(position)
