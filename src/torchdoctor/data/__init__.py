"""The data catalogue: where images come from, by a spec such as `folder:PATH` or `scenes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from torchdoctor.data.folder import read_folder
from torchdoctor.data.loader import Loader
from torchdoctor.data.parquet import read_parquet
from torchdoctor.data.pixels import Augment, Preprocessing
from torchdoctor.data.scenes import read_scenes
from torchdoctor.data.table import ImageTable, Tables, carve, limit_per_category
from torchdoctor.types import InputError

__all__ = [
    "SCHEMES",
    "ImageTable",
    "Loader",
    "Preprocessing",
    "Splits",
    "Tables",
    "carve",
    "limit_per_category",
    "load_data",
    "load_tables",
]

# A scheme reads (what follows the colon, seed, share of validation).
SCHEMES: dict[str, Callable[[str, int, float], Tables]] = {
    "folder": read_folder,
    "parquet": read_parquet,
    "scenes": read_scenes,
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SAMPLED_SIZES = 24  # images looked at to find out whether all are of one size


@dataclass(frozen=True)
class Splits:
    """A whole data set, ready to be loaded; `primary` is the test split that decides."""

    classes: tuple[str, ...]
    train: Loader
    validation: Loader
    tests: Mapping[str, Loader]
    primary: str
    preprocessing: Preprocessing
    has_masks: bool


def load_tables(
    spec: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    validation_share: float = 0.1,
    primary: str | None = None,
) -> Tables:
    """Read the tables of `spec`: `folder:PATH`, `parquet:PATH`, `scenes` or `scenes:SEED`.

    `seed` divides what comes undivided; `limit` keeps that many training images per category, after
    validation has been split off. InputError says what was given and what is expected.

    >>> load_tables("scenes").primary
    'shifted'
    """
    scheme, _, location = spec.partition(":")
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    if scheme not in SCHEMES:
        raise InputError(_unknown_scheme(spec, scheme))
    if scheme != "scenes":
        _check_path(spec, location)
    tables = SCHEMES[scheme](location, seed, validation_share)
    if limit is not None:
        tables = replace(tables, train=limit_per_category(tables.train, limit, seed))
    if primary is None:
        return tables
    if primary not in tables.tests:
        raise InputError(f"primary {primary!r}: no such test split; {spec} has {', '.join(tables.tests)}")
    return replace(tables, primary=primary)


def load_data(
    spec: str,
    *,
    image_size: int | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    batch_size: int = 64,
    workers: int = 0,
    limit: int | None = None,
    seed: int = 0,
    primary: str | None = None,
    augment: Augment = "crop_flip",
) -> Splits:
    """Read `spec` as `load_tables` does and make loaders for it.

    Without `image_size` (pixels) images keep their size if they are square and all alike, else 224.

    >>> load_data("scenes").preprocessing.image_size
    64
    """
    tables = load_tables(spec, seed=seed, limit=limit, primary=primary)
    preprocessing = Preprocessing(image_size or own_size(tables.train) or 224, mean, std)

    def loader(table: ImageTable) -> Loader:
        return Loader(table, preprocessing, batch_size, workers, augment)

    return Splits(
        classes=tables.classes,
        train=loader(tables.train),
        validation=loader(tables.validation),
        tests={name: loader(table) for name, table in tables.tests.items()},
        primary=tables.primary,
        preprocessing=preprocessing,
        has_masks=bool(tables.train.has_mask.any()),
    )


def own_size(table: ImageTable) -> int | None:
    """Return the side of the images, in pixels, if a sample of them is square and all alike."""
    positions = np.unique(np.linspace(0, len(table) - 1, SAMPLED_SIZES).astype(int))
    sizes = {table.read(int(position))[0].size for position in positions}
    width, height = next(iter(sizes))
    return width if len(sizes) == 1 and width == height else None


def _unknown_scheme(spec: str, scheme: str) -> str:
    expected = "expected folder:PATH, parquet:PATH, scenes or scenes:SEED"
    near = get_close_matches(scheme, SCHEMES, n=1)
    if near:
        return f"data {spec!r}: unknown kind {scheme!r}; {expected}; did you mean {near[0]!r}?"
    if Path(spec).expanduser().exists():
        kind = "parquet" if spec.endswith(".parquet") else "folder"
        return f"data {spec!r}: a path without its kind; {expected}; did you mean '{kind}:{spec}'?"
    return f"data {spec!r}: unknown kind {scheme!r}; {expected}"


def _check_path(spec: str, location: str) -> None:
    """Raise InputError for a path that does not exist, with near matches from where it should be."""
    path = Path(location).expanduser()
    if location and path.exists():
        return
    message = f"data {spec!r}: {'no such file or folder' if location else 'the path is missing'}"
    place = path.parent
    if location and place.is_dir():
        near = get_close_matches(path.name, [entry.name for entry in place.iterdir()], n=3)
        if near:
            message += f"; did you mean {' or '.join(str(place / name) for name in near)}?"
    raise InputError(message)
