"""Read `datasets:NAME` or `datasets:FOLDER`: a data set of the library datasets, with labels and images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from torchdoctor.data.blocks import OnDisk
from torchdoctor.data.decoding import decode_image
from torchdoctor.data.fingerprints import stamp_of_bytes, stamp_of_file
from torchdoctor.data.readers.arrow_blocks import ArrowBlocks, arrow_blocks, damaged_file
from torchdoctor.data.readers.columns import IMAGES, LABELS, find_column
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.splitting import divide, split_names
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError, first_line


@dataclass(frozen=True)
class DatasetImages:
    """The encoded images of a split of the library datasets, decoded when they are read.

    Attributes:
        rows: The column of images, with the bytes or the path of each.
        names: The name of each image.
        place: The data set and the split, for error messages.
        blocks: The blocks that the images lie in, where they are too large to be read in any order.
    """

    rows: Any
    names: tuple[str, ...]
    place: str = ""
    blocks: ArrowBlocks | None = None

    @property
    def on_disk(self) -> OnDisk | None:
        """The images in the blocks that they lie in; None where any can be read by itself."""
        return None if self.blocks is None else OnDisk(self.blocks, np.arange(len(self.names)))

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image.

        Args:
            position: The position of the image in the split.

        Returns:
            The RGB image, and None: such data sets have no masks.

        Raises:
            InputError: The image is damaged, or its file is missing.
        """
        content, file = self._source(position)
        if content is None:
            try:
                content = Path(str(file)).read_bytes()
            except OSError as error:
                raise InputError(
                    f"{self.place}: {self.names[position]}: the data set holds neither the image nor a file "
                    f"of it that can be read ({error.strerror or error})"
                ) from error
        return decode_image(content, f"{self.place}: {self.names[position]}"), None

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image (see `data.fingerprints`).

        Args:
            position: The position of the image in the split.

        Returns:
            The stamp of the image, and an empty stamp of the mask.
        """
        content, file = self._source(position)
        return (stamp_of_bytes(content) if content is not None else stamp_of_file(Path(str(file)))), b""

    def _source(self, position: int) -> tuple[bytes | None, str | None]:
        """Return the content of an image's file, or None and the file's path."""
        cell = self.rows[position]["image"]
        return cell["bytes"], cell["path"]


def read_datasets(location: str, seed: int, settings: DataSettings) -> Tables:
    """Read a data set through the library datasets.

    Args:
        location: A folder that `save_to_disk` wrote, a folder that `load_dataset` reads (such as one of
            Parquet files), or a name on the Hugging Face hub; `~` is the home folder.
        seed: The seed by which missing splits are divided off.
        settings: The columns, and the share of the training images that becomes the validation split where
            the source has none.

    Returns:
        The data set, not yet decoded.

    Raises:
        InputError: The library is not installed, there is no such data set, or it has no column of images
            or none of ClassLabel.
    """
    origin = f"datasets:{location}"
    loaded = _loaded(location, origin)
    known = split_names(sorted(loaded))
    notes = tuple(f"the split {name}, whose name tells no split" for name in loaded if name not in known)
    if "train" not in known.values():
        raise InputError(f"{origin}: found the splits {sorted(loaded)}; expected train among them")
    tables: dict[str, ImageTable] = {}
    for name, role in known.items():
        table = _table(loaded[name], f"{origin} (split {name})", settings)
        if role != "train" and len(table) and bool((table.labels < 0).all()):
            notes += (f"the split {name}, whose labels are hidden",)
            continue
        _check_labels(table, f"{origin} (split {name})")
        tables[role] = table
    different = [name for name, table in tables.items() if table.classes != tables["train"].classes]
    if different:
        raise InputError(f"{origin}: the split {different[0]} names other categories than train")
    divided = divide(tables, origin, seed, settings.validation_share)
    return replace(divided, notes=notes)


def _loaded(location: str, origin: str) -> dict[str, Any]:
    """Return the splits of a data set by name."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data {origin!r} needs the package datasets: pip install 'torchdoctor[hf]'"
        ) from error
    path = Path(location).expanduser()
    expected = "expected a folder, or a name of the Hugging Face hub"
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    try:
        source = str(path) if path.exists() else location
        found = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # the library raises errors of its own and of the network in many classes
        damaged = damaged_file(path) if saved else None
        raise InputError(
            f"data {origin!r}: datasets could not load it ({type(error).__name__}: {first_line(error)}); "
            + (f"{damaged or 'a file is missing or damaged'}: copy the folder anew" if saved else expected)
        ) from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _table(split: Any, place: str, settings: DataSettings) -> ImageTable:
    """Return the images of a split."""
    import datasets

    kinds = split.features
    images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        missing, function = ("Image", "Image()") if not images else ("ClassLabel", "ClassLabel(names=[...])")
        raise InputError(
            f"{place}: no column is of the kind {missing}; found {', '.join(kinds)}. "
            f"Cast it with cast_column(NAME, datasets.{function}) and save the data set anew"
        )
    image = _column(images, settings.image_column, IMAGES, "--image-column", place)
    label = _column(labels, settings.label_column, LABELS, "--label-column", place)
    rows = split.select_columns([image]).rename_columns({image: "image"} if image != "image" else {})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    numbers = [-1 if number is None else number for number in split[label]]
    names = tuple(f"row {number}" for number in range(len(split)))
    return ImageTable(
        classes=tuple(kinds[label].names),
        labels=np.array(numbers, dtype=np.int64),
        names=names,
        ids=np.arange(len(names)),
        read=DatasetImages(rows, names, place, arrow_blocks(rows)),
        has_mask=np.zeros(len(names), dtype=bool),
    )


def _column(fitting: list[str], asked: str | None, usual: tuple[str, ...], flag: str, place: str) -> str:
    """Return the column that was asked for, the only one of its kind, or the one with a usual name."""
    if asked is None and len(fitting) == 1:
        return fitting[0]
    return find_column(fitting, asked, usual, flag, place)


def _check_labels(table: ImageTable, place: str) -> None:
    """Raise InputError for images without a label."""
    missing = np.flatnonzero(table.labels < 0)
    if len(missing):
        raise InputError(
            f"{place}: row {missing[0]} has no label ({len(missing)} rows of {len(table)}); remove such rows"
        )
