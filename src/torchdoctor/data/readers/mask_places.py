"""Find folders and files of masks among photographs, under any name, by names and pixels together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torchdoctor.data.readers.flatness import are_masks, is_flat
from torchdoctor.data.readers.naming import (
    MASK_FOLDER,
    MASK_FOLDER_BEFORE,
    files_below,
    is_inner_masks,
    is_own_mask,
    is_readable,
    subfolders,
)
from torchdoctor.types import InputError

MAY_BE_MASKS = re.compile(
    r"label|annot|trimap|alpha|matte|seg|mask|contour|outline|silhouette|ground.?truth|(?<![a-z])(gt|roi)s?(?![a-z])",
    re.IGNORECASE,
)
OF_PHOTOGRAPHS = re.compile(
    r"^(?:images?|imgs?|im|photos?|rgb)[ ._-]+|[ ._-]+(?:images?|imgs?|photos?|rgb)$", re.IGNORECASE
)
LETTER = re.compile(r"[^\W\d_]")
LEAST_PAIRS = 2  # files with the same addition to the name of a photograph, from which on they may be masks


def mask_folders(folder: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Tell the folders of masks from the categories beside them.

    Args:
        folder: The folder of a split.
        names: The folders in it that may be categories.

    Returns:
        The folders of masks: for `masks/dog`, `masks` with None; for `dog_masks` or `masks_dog` beside `dog`,
        `dog`.

    Raises:
        InputError: A folder is called like one of masks and holds masks, in a layout that cannot be used.
    """
    found: dict[str, str | None] = {}
    for name in names:
        if MAY_BE_MASKS.search(name) is None and MASK_FOLDER.match(name) is None:
            continue
        named = MASK_FOLDER.match(name) or MASK_FOLDER_BEFORE.match(name)
        owner = named["image"] if named is not None else None
        others = [other for other in names if other != name]
        inner = {entry.name for entry in subfolders(folder / name)} & set(others)
        if inner:
            pairs = [pair for one in sorted(inner) for pair in _same_names(folder / name / one, folder / one)]
            if (named is not None and owner is None) or are_masks(pairs, soft=named is not None):
                found[name] = None
        elif owner in others:
            pairs = list(_same_names(folder / name, folder / owner))
            if _is_flat_folder(folder / name) or are_masks(pairs, soft=True):
                found[name] = owner
        else:
            _refuse_flat_masks(folder, name, others, named is not None)
    return found


def holds_masks_of(folder: Path, owner: str) -> bool:
    """Return whether a folder holds the masks of another one, such as `test_masks` those of `test`.

    Args:
        folder: The folder.
        owner: The name of the other folder.

    Returns:
        True where it is called so and its first image is flat.
    """
    named = MASK_FOLDER.match(folder.name) or MASK_FOLDER_BEFORE.match(folder.name)
    own = named is not None and str(named["image"]).lower() == owner.lower()
    return own and _is_flat_folder(folder)


def _refuse_flat_masks(folder: Path, name: str, others: Sequence[str], named: bool) -> None:
    """Raise InputError for a folder of masks that belongs to no category."""
    photographs = next(
        (
            other for other in others
            if are_masks(list(_same_names(folder / name, folder / other)), soft=named)
        ),
        None,
    )  # fmt: skip
    if photographs is None and not (named and _is_flat_folder(folder / name)):
        return
    if photographs is not None and subfolders(folder / photographs):
        raise InputError(
            f"{folder}: {name} holds masks of the images in {photographs}; move the folders of categories in "
            f"{photographs} one level up, beside {name}"
        )
    raise InputError(
        f"{folder / name}: holds masks beside the categories; expected {name}/CATEGORY/NAME.png, "
        "or masks beside the images as NAME.mask.png"
    )


def _same_names(masks: Path, photographs: Path) -> Iterator[tuple[Path, Path]]:
    """Yield files of two folders whose paths are alike but for the ending, or for the addition of a mask."""
    if not photographs.is_dir():
        return
    known = {
        file.relative_to(photographs).with_suffix("").as_posix().lower(): file
        for file in files_below(photographs)
        if is_readable(file)
    }
    for file in files_below(masks):
        other = known.get(file.relative_to(masks).with_suffix("").as_posix().lower())
        if other is not None and is_readable(file):
            yield file, other


def _is_flat_folder(folder: Path) -> bool:
    """Return whether the first image in a folder is flat."""
    first = next((file for file in files_below(folder) if is_readable(file)), None)
    return first is not None and is_flat(first)


def hidden_masks(files: Iterable[Path], root: Path) -> dict[Path, list[Path]]:
    """Find masks among the files of categories that no usual name tells.

    Such a file is called like a photograph with an addition (`1_label.png` or `gt_1.png` beside `1.jpg`), or
    like the photograph in a folder of its own (`cat/annotations/1.png`). It is flat, and its photograph is
    not.

    Args:
        files: All files of the categories.
        root: The folder of the split.

    Returns:
        The masks of the photographs that have such.
    """
    readable = [
        file for file in files
        if is_readable(file) and not is_own_mask(file)
        and not any(is_inner_masks(part) for part in file.parent.relative_to(root).parts[1:])
    ]  # fmt: skip
    by_name: dict[Path, dict[str, Path]] = {}
    for file in readable:
        own = by_name.setdefault(file.parent, {})
        own.setdefault(file.stem.lower(), file)
    for file in readable:
        short = OF_PHOTOGRAPHS.sub("", file.stem.lower())
        by_name[file.parent].setdefault(short, file)
    lengths = {
        folder: sorted({len(name) for name in own if name}, reverse=True) for folder, own in by_name.items()
    }
    groups: dict[str, list[tuple[Path, Path]]] = {}
    for file in readable:
        for kind, photograph in _likely_photographs(file, root, by_name, lengths):
            groups.setdefault(kind, []).append((file, photograph))
    found: dict[Path, list[Path]] = {}
    taken: set[Path] = set()
    for pairs in groups.values():
        if len(pairs) >= LEAST_PAIRS and are_masks(pairs):
            for mask, photograph in pairs:
                if mask not in taken:
                    found.setdefault(photograph, []).append(mask)
                    taken.add(mask)
    return {photograph: masks for photograph, masks in found.items() if photograph not in taken}


def _likely_photographs(
    file: Path,
    root: Path,
    by_name: Mapping[Path, Mapping[str, Path]],
    lengths: Mapping[Path, Sequence[int]],
) -> Iterator[tuple[str, Path]]:
    """Yield the photographs that a file may be the mask of by its name, and in which way it is called so."""
    stem = file.stem.lower()
    if len(file.relative_to(root).parts) > 2 and MAY_BE_MASKS.search(file.parent.name):
        around = file.parent.parent
        for place in (around, *(folder for folder in by_name if folder.parent == around)):
            photograph = by_name.get(place, {}).get(stem)
            if photograph is not None and place != file.parent:
                yield f"folder {file.parent.name.lower()}", photograph
                return
    beside = by_name[file.parent]
    for cut in (length for length in lengths[file.parent] if length < len(stem)):
        for name, addition, edge in (
            (stem[:cut], stem[cut:], stem[cut - 1 : cut + 1]),
            (stem[-cut:], stem[:-cut], stem[-cut - 1 : len(stem) - cut + 1]),
        ):
            photograph = beside.get(name)
            if photograph is None or photograph == file or not LETTER.search(addition):
                continue
            if len(LETTER.findall(edge)) == 2 or edge.isdigit():  # a part of a word or of a number
                continue
            yield re.sub(r"[\W\d_]+", "", addition), photograph
            return
