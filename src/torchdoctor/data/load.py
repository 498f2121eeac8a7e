"""The data catalogue: where images come from, by a spec such as `folder:PATH` or `scenes`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from torchdoctor.data.augmentation import AUGMENT, Augment
from torchdoctor.data.catalogue import DATASETS, read_named
from torchdoctor.data.checking import without_broken
from torchdoctor.data.fingerprints import fingerprint, image_hashes
from torchdoctor.data.loader import Loader
from torchdoctor.data.mask_folder import with_masks
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.readers.folder import read_folder
from torchdoctor.data.readers.hugging_face import read_datasets
from torchdoctor.data.readers.parquet import read_parquet
from torchdoctor.data.readers.table_file import read_table_file
from torchdoctor.data.readers.torchvision_sets import read_torchvision
from torchdoctor.data.readers.webdataset import read_webdataset
from torchdoctor.data.scenes.scenes import read_scenes
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.table import ImageTable, Tables, choose_classes, limit_per_category, refuse_empty
from torchdoctor.images.normalisation import IMAGENET_MEAN, IMAGENET_STD, per_channel
from torchdoctor.settings import flag_of
from torchdoctor.types import InputError

# A scheme reads (what follows the colon, seed, settings).
SCHEMES: dict[str, Callable[[str, int, DataSettings], Tables]] = {
    "folder": lambda location, seed, settings: read_folder(
        location, seed, settings.validation_share, settings.follow_links
    ),
    "parquet": read_parquet,
    "datasets": read_datasets,
    "table": read_table_file,
    "webdataset": read_webdataset,
    "scenes": lambda location, seed, settings: read_scenes(location, seed, settings.validation_share),
}
# The schemes that use a setting of a source; elsewhere it would change nothing and is refused.
SCHEMES_WITH = {
    "image_column": ("table", "parquet", "datasets"),
    "label_column": ("table", "parquet", "datasets", "webdataset"),
    "box_format": ("table", "parquet"),
    "follow_links": ("folder", "table"),
}
EXPECTED = (
    "folder:PATH, parquet:PATH, table:FILE, NAME@ROOT (see `torchdoctor datasets`), torchvision:CLASS@ROOT, "
    "datasets:NAME_OR_FOLDER, webdataset:SHARDS, scenes or scenes:SEED"
)
KINDS = {".parquet": "parquet", ".csv": "table", ".tsv": "table", ".jsonl": "table", ".tar": "webdataset"}
DEFAULTS = DataSettings()
OTHER_SIZE = 224  # the side of images that are not alike
NEARLY_ALL = 0.9  # the share of alike images from which on their side is used
PREPARING = ("image_size", "mean", "std", "resize", "crop_share")  # settings of how images are prepared
SAMPLED_SIZES = 24  # images looked at to find out whether all are of the same size


@dataclass(frozen=True)
class Splits:
    """A whole data set, ready to be loaded.

    Attributes:
        classes: The names of the categories.
        train: Loads the training split.
        validation: Loads the validation split.
        tests: Loads the test splits, by name.
        primary: The name of the test split that decides the verdict.
        preprocessing: How images become the numbers that the network takes.
        has_masks: Whether any training image has a mask of its object.
        skipped: The images that did not decode and were left out, each with the reason.
        test_divided_off: Whether the test split was divided off, because the data came without one.
        notes: What of the source is not used, and a choice of the size that may surprise, in sentences.
    """

    classes: tuple[str, ...]
    train: Loader
    validation: Loader
    tests: Mapping[str, Loader]
    primary: str
    preprocessing: Preprocessing
    has_masks: bool
    skipped: tuple[str, ...] = ()
    test_divided_off: bool = False
    notes: tuple[str, ...] = ()

    @property
    def loaders(self) -> dict[str, Loader]:
        """The loader of every split by its name: `train`, `validation` and the test splits."""
        return {"train": self.train, "validation": self.validation, **self.tests}

    @cached_property
    def training_hashes(self) -> UInt64[np.ndarray, " image"] | None:
        """A hash of each training image (see `data.fingerprints.image_hashes`); the files are read once."""
        return image_hashes(self.train.table)

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, object]]:
        """What each split holds, as counts and hashes: two runs on the same data have the same."""
        return {name: fingerprint(loader.table) for name, loader in self.loaders.items()}


def load_tables(spec: str, *, seed: int = 0, settings: DataSettings = DEFAULTS) -> Tables:
    """Read the tables of a data set: which images it has, with labels, masks and splits; decode nothing.

    Args:
        spec: `folder:PATH`, `parquet:PATH`, `table:FILE`, `NAME@ROOT`, `torchvision:CLASS@ROOT`,
            `datasets:NAME_OR_FOLDER`, `webdataset:SHARDS` or `scenes`.
        seed: What a division into splits depends on, where the data comes undivided; 0 or more.
        settings: Categories, limits and splits; `batch_size`, `image_size` and so on are not used.

    Returns:
        The tables of the training, validation and test splits; those divided off very few images are empty.

    Raises:
        InputError: There is nothing at that place, or a split or number does not fit.

    Example:
        >>> load_tables("scenes").primary
        'shifted'
    """
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    tables = _read(spec, seed, settings)
    tables = tables if settings.masks is None else with_masks(tables, Path(settings.masks).expanduser())
    if settings.classes != "all":
        tables = choose_classes(tables, settings.classes, settings.classes_seed)
    if settings.limit != "all":
        tables = replace(tables, train=limit_per_category(tables.train, settings.limit, seed))
    if settings.primary == "auto":
        return tables
    if settings.primary not in tables.tests:
        raise InputError(
            f"primary {settings.primary!r}: no such test split; {spec} has {', '.join(tables.tests)}"
            "; swapped makes one where test images have masks"
        )
    return replace(tables, primary=settings.primary)


def load_data(
    spec: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    classes: int | None = None,
    seed: int = 0,
    primary: str | None = None,
    augment: Augment = AUGMENT,
    settings: DataSettings = DEFAULTS,
) -> Splits:
    """Read a data set and make loaders for its splits.

    Args:
        spec: As in `load_tables`.
        image_size: Side in pixels that images are brought to; None as in `settings`, and there `auto` keeps
            images that are square and nearly all alike, and makes others 224 pixels.
        channels: 3, or 1 to make images grey; None as in `settings`.
        mean: Mean of each channel, 0..1, that is subtracted; None as in `settings`, and there `auto` is that
            of ImageNet.
        std: Standard deviation of each channel that is divided by; None likewise.
        batch_size: Images of a batch; None as in `settings`.
        limit: Training images of each category at most; None as in `settings`.
        classes: How many categories to draw at random; None as in `settings`.
        seed: What a division into splits depends on.
        primary: The test split that decides; None as in `settings`.
        augment: How training images are changed at random.
        settings: Everything else, and the values of what is None above.

    Returns:
        A loader for each split, and how images are prepared.

    Raises:
        InputError: There is nothing at that place, or a value does not fit.

    Example:
        >>> load_data("scenes").preprocessing.image_size
        64
    """
    settings = settings.given(
        image_size=image_size, channels=channels, batch_size=batch_size, limit=limit, classes=classes,
        primary=primary, mean=mean, std=std,
    )  # fmt: skip
    return _loaded(refuse_empty(load_tables(spec, seed=seed, settings=settings)), settings, augment)


def _loaded(tables: Tables, settings: DataSettings, augment: Augment) -> Splits:
    """Make a loader for each split; broken images are left out where the settings say so."""
    skipped: tuple[str, ...] = ()
    if settings.on_error == "skip":
        tables, skipped = without_broken(tables)
    _check_categories(tables)
    notes = tables.notes
    size = OTHER_SIZE
    if settings.image_size == "auto":
        size, odd = own_size(tables.train)
        notes += (odd,) if odd else ()
    channels = 3 if settings.channels == "auto" else settings.channels
    usual = Preprocessing(size, per_channel(IMAGENET_MEAN, channels), per_channel(IMAGENET_STD, channels))
    preprocessing = preprocessing_of(settings, usual)

    def loader(table: ImageTable) -> Loader:
        return Loader(
            table, preprocessing, settings.batch_size, settings.workers, augment, classes=tables.classes
        )

    return Splits(
        classes=tables.classes,
        train=loader(tables.train),
        validation=loader(tables.validation),
        tests={name: loader(table) for name, table in tables.tests.items()},
        primary=tables.primary,
        preprocessing=preprocessing,
        has_masks=bool(tables.train.has_mask.any()),
        skipped=skipped,
        test_divided_off=tables.test_divided_off,
        notes=notes,
    )


def _check_categories(tables: Tables) -> None:
    """Raise InputError for category folders that have no training image.

    Sources that bring a list of categories, such as the data sets of torchvision, may hold a part of them.
    """
    if not tables.origin.startswith("folder:"):
        return
    counts = np.bincount(tables.train.labels, minlength=len(tables.classes))
    empty = [name for name, count in zip(tables.classes, counts.tolist(), strict=True) if not count]
    if empty:
        left = f" ({'; '.join(tables.notes)})" if tables.notes else ""
        raise InputError(
            f"{tables.origin}: no training image of {', '.join(map(repr, empty[:5]))}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}{left}; "
            "add images or remove the category"
        )


def preprocessing_of(settings: DataSettings, known: Preprocessing) -> Preprocessing:
    """Return how images are prepared: as the user says, else as is known.

    Args:
        settings: What the user asked for, `auto` where nothing.
        known: The preparation of what the user leaves open, with the number of channels.

    Returns:
        The preparation.

    Raises:
        InputError: Only one of mean and standard deviation is given, or one of them cannot be used.
    """
    given: dict[str, Any] = {
        name: value for name in PREPARING if (value := getattr(settings, name)) != "auto"
    }
    if ("mean" in given) != ("std" in given):
        raise InputError("--mean and --std belong together: give both, such as --mean 0 --std 1, or neither")
    for name in {"mean", "std"} & set(given):
        values = given[name]
        if len(values) not in (1, 3) or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise InputError(
                f"--{name} {','.join(map(str, values))}: expected one number, or three separated by commas"
                f"{', all above 0' if name == 'std' else ''}, for pixels in 0..1"
            )
        given[name] = per_channel(values, known.channels)
    return replace(known, **given)


def own_size(table: ImageTable) -> tuple[int, str | None]:
    """Choose the side of the square that images are made.

    Args:
        table: The images; 24 of them are decoded.

    Returns:
        The side in pixels: that of the images, if at least nine tenths of the sample are square and alike,
        else 224; and a sentence where only some of the images are square and alike.
    """
    positions = np.unique(np.linspace(0, len(table) - 1, SAMPLED_SIZES).astype(int))
    sizes = Counter(table.read(int(position))[0].size for position in positions)
    (width, height), number = sizes.most_common(1)[0]
    if width != height or 2 * number < len(positions):
        return OTHER_SIZE, None
    size = width if number >= NEARLY_ALL * len(positions) else OTHER_SIZE
    if number == len(positions):
        return size, None
    return size, (
        f"images differ in size ({number} of {len(positions)} looked at are {width} x {height}): without "
        f"another size from the weights all are made {size} x {size}; --image-size sets it"
    )


def _read(spec: str, seed: int, settings: DataSettings) -> Tables:
    """Read the tables behind any form of spec."""
    scheme, _, location = spec.partition(":")
    for name, schemes in SCHEMES_WITH.items():
        if getattr(settings, name) != getattr(DEFAULTS, name) and scheme not in schemes:
            expected = " and ".join(f"{each}:" for each in schemes).replace(": and ", ":, ", len(schemes) - 2)
            raise InputError(f"{flag_of(name)} is for {expected} sources; data {spec!r} is none of them")
    if scheme in SCHEMES:
        if scheme not in ("scenes", "datasets", "webdataset"):  # these look for themselves
            _check_path(spec, location)
        return SCHEMES[scheme](location, seed, settings)
    kind, at, root = (location if scheme == "torchvision" else spec).partition("@")
    if scheme != "torchvision" and (not at or "/" in kind):
        raise InputError(_unknown_scheme(spec, scheme))
    if not root:
        raise InputError(f"data {spec!r}: the folder is missing; expected {spec.rstrip('@')}@ROOT")
    if not settings.download:
        _check_path(spec, root, "; --download fetches what torchvision can")
    if scheme == "torchvision":
        return read_torchvision(kind, root, seed, settings.validation_share, download=settings.download)
    return read_named(kind, root, seed, settings)


def _unknown_scheme(spec: str, scheme: str) -> str:
    """Return the text of an error: the spec names no known kind of data; what it may have meant."""
    expected = f"expected {EXPECTED}"
    if spec in DATASETS:
        return f"data {spec!r}: the folder is missing; expected {spec}@ROOT"
    near = get_close_matches(scheme, SCHEMES, n=1)
    if near:
        return f"data {spec!r}: unknown kind {scheme!r}; {expected}; did you mean {near[0]!r}?"
    if Path(spec).expanduser().exists():
        kind = KINDS.get(Path(spec).suffix, "folder")
        return f"data {spec!r}: a path without its kind; {expected}; did you mean '{kind}:{spec}'?"
    return f"data {spec!r}: unknown kind {scheme!r}; {expected}"


def _check_path(spec: str, location: str, hint: str = "") -> None:
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
    raise InputError(message + hint)
