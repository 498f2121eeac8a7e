"""Find the folders of the splits in a folder, and refuse layouts in which splits would be mistaken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torchdoctor.data.readers.mask_places import holds_masks_of
from torchdoctor.data.readers.naming import MASK_FOLDER, subfolders
from torchdoctor.data.splitting import (
    VALIDATION_NAMES,
    is_split_name,
    role_and_rest,
    split_names,
    split_role,
)
from torchdoctor.types import InputError


def split_folders(root: Path, origin: str) -> dict[str, Path]:
    """Find the folders of the splits in a folder.

    Args:
        root: The folder.
        origin: The `--data` value of the data set.

    Returns:
        The folders by the name of the split, sorted by their own names; none where no folder that is named
        like a split holds categories.

    Raises:
        InputError: Two folders are the same split.
    """
    folders = subfolders(root)
    named = split_names(
        entry.name for entry in folders if not any(holds_masks_of(entry, other.name) for other in folders)
    )
    if not any(is_split_name(role) and subfolders(root / name) for name, role in named.items()):
        return {}
    found: dict[str, Path] = {}
    for folder, name in named.items():
        if name in found or (name in VALIDATION_NAMES and set(found) & set(VALIDATION_NAMES)):
            other = found.get(name) or next(found[one] for one in VALIDATION_NAMES if one in found)
            raise InputError(
                f"{origin}: {other.name} and {folder} are the same split; keep one of them or call "
                "a further test split test_NAME"
            )
        found[name] = root / folder
    return {name: _undoubled(folder) for name, folder in found.items()}


def _undoubled(folder: Path) -> Path:
    """Return the folder inside a folder of a split that is alone there and named like the same split."""
    inner = subfolders(folder)
    doubled = len(inner) == 1 and split_role(inner[0].name) == split_role(folder.name)
    return inner[0] if doubled else folder


def other_folders(root: Path, found: Mapping[str, Path], origin: str) -> tuple[str, ...]:
    """Name the folders beside the splits that are none.

    Args:
        root: The folder that the splits are in.
        found: The folders of the splits by their names.
        origin: The `--data` value of the data set.

    Returns:
        Sentences for the notes; folders of masks are not named.

    Raises:
        InputError: There is a training split alone, and another folder holds its categories: it may be the
            test split.
    """
    splits = {folder.relative_to(root).parts[0] for folder in found.values()}
    others = [
        entry for entry in subfolders(root)
        if entry.name not in splits and MASK_FOLDER.match(entry.name) is None
    ]  # fmt: skip
    if list(found) == ["train"]:
        categories = {entry.name for entry in subfolders(found["train"])}
        for entry in others:
            if categories & {inner.name for inner in subfolders(entry)}:
                raise InputError(
                    f"{origin}: the folder {entry.name} holds the categories of "
                    f"{found['train'].relative_to(root)}, but its name tells no split; call it test or val, "
                    "or move it elsewhere"
                )
    return tuple(f"the folder {entry.name}, which is no split" for entry in others)


def check_no_splits(root: Path, origin: str) -> tuple[str, ...]:
    """Check a folder of categories for splits that are not recognised as such.

    Args:
        root: The folder, in which no splits were found.
        origin: The `--data` value of the data set.

    Returns:
        A sentence for the notes where all categories hold the same folders: which are the categories?

    Raises:
        InputError: Each category is divided into splits, or folders named like splits hold images without
            folders of categories.
    """
    folders = subfolders(root)
    for first, second in _pairs_of_splits(folders):
        raise InputError(
            f"{origin}: found the folders {first} and {second}, named like splits, but without folders of "
            "categories in them that are alike; expected train/CATEGORY/*.jpg and test/CATEGORY/*.jpg"
        )
    inner = {entry.name: subfolders(entry) for entry in folders}
    for category, parts in inner.items():
        roles = {split_role(part.name): part.name for part in parts}
        roles.pop(None, None)
        if "train" in roles and len(roles) > 1:
            listed = " and ".join(f"{category}/{name}" for name in sorted(roles.values()))
            if subfolders(root / category / roles["train"]):
                raise InputError(
                    f"{origin}: found the splits {listed} in the folder {category}; give that folder: "
                    f"{origin.rstrip('/')}/{category}"
                )
            raise InputError(
                f"{origin}: found {listed}, that is splits inside a category; expected the split first, as "
                f"in train/{category} and test/{category}: move the folders"
            )
    kinds = [
        {part.name for part in parts if MASK_FOLDER.match(part.name) is None} for parts in inner.values()
    ]
    if len(kinds) > 1 and len(kinds[0]) > 1 and all(kind == kinds[0] for kind in kinds):
        return (
            f"the folders {', '.join(sorted(kinds[0]))} inside each of {', '.join(sorted(inner))}: "
            "the latter are taken for the categories (if they are splits, call them train and test)",
        )
    return ()


def _pairs_of_splits(folders: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield two folders that are named as training and as other split and are alike otherwise."""
    told = {entry.name: role_and_rest(entry.name) for entry in folders}
    for first, (role, rest) in told.items():
        for second, (other, more) in told.items():
            if role == "train" and other not in (None, "train") and rest in (more, ""):
                yield first, second
