"""Which files and folders of a data set are photographs, which are masks, and which are left by tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

FURTHER_ENDINGS = (".jfif", ".jpe", ".gif", ".avif", ".jp2", ".dib", ".tga")
ENDINGS = (*IMG_EXTENSIONS, *(end for end in FURTHER_ENDINGS if end in Image.registered_extensions()))
WORDS = r"(?:masks?|segm?|segs|segmentations?|segmented|ground_?truths?|gt|mattes?|silhouettes?)"
MASK_NAME = re.compile(rf"(?P<image>.+?)[ ._-]+{WORDS}(?P<number>[ ._-]*\d+)?$", re.IGNORECASE)
MASK_FOLDER = re.compile(rf"(?:(?P<image>.+?)[ ._-]+)?{WORDS}$", re.IGNORECASE)
MASK_FOLDER_BEFORE = re.compile(rf"{WORDS}[ ._-]+(?P<image>.+)$", re.IGNORECASE)
RUNS, RUN_FILES = "runs", ("config.yaml", "environment.json")  # what a run of this program leaves
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".7z")
OWN_MASK = (".mask.png", "_mask.png")  # never a photograph, also without an image beside it
LITTER = {
    "@eadir", "@recycle", "@tmp", "@recently-snapshot", "#recycle", "#snapshot", "lost+found", "$recycle.bin",
    "recycler", "recycled", "@__thumb", "_gsdata_", "_vti_cnf", "wandb", "mlruns", "lightning_logs",
    "system volume information", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r",
}  # fmt: skip


def is_litter(name: str) -> bool:
    """Return whether a file or folder was left by a system or tool.

    Args:
        name: Its name.

    Returns:
        True for names that start with `.`, `~` or `__`, and for those that systems and tools give, such as
        `lost+found`.
    """
    return name.startswith((".", "~", "__")) or name.lower() in LITTER


def is_readable(file: Path) -> bool:
    """Return whether a file has the ending of an image.

    Args:
        file: The file; only its name is looked at.

    Returns:
        True for the endings in `ENDINGS`, in upper and lower case.
    """
    return file.suffix.lower() in ENDINGS


def files_below(folder: Path) -> list[Path]:
    """List the files in a folder and its subfolders, without those that tools left.

    Args:
        folder: The folder.

    Returns:
        The files, sorted by path.
    """
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if is_litter(entry.name):
            continue
        found += files_below(entry) if entry.is_dir() else [entry]
    return found


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, without those that tools left and those of this program's own runs.

    Args:
        folder: The folder.

    Returns:
        The folders, sorted by name; all their names can be written.

    Raises:
        InputError: The name of a folder is not in UTF-8.
    """
    found = [
        entry for entry in sorted(folder.iterdir())
        if entry.is_dir() and not is_litter(entry.name) and not _holds_runs(entry)
    ]  # fmt: skip
    for entry in found:
        _refuse_unwritable(entry)
    return found


def _refuse_unwritable(folder: Path) -> None:
    """Raise InputError for a name that is no text: it could not be written beside the weights."""
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{str(folder.parent)!r}: the name of the folder {folder.name!r} is not in UTF-8, and could not "
            "be written beside the weights as the name of a category or split; rename the folder"
        ) from error


def _holds_runs(folder: Path) -> bool:
    """Return whether a folder is that of a run of this program, or of several."""
    inner = folder.iterdir() if folder.name == RUNS else ()
    return any(all((place / name).is_file() for name in RUN_FILES) for place in (folder, *inner))


def loose_files(folder: Path) -> tuple[str, ...]:
    """Say which images and archives lie beside the folders of categories or splits.

    Args:
        folder: The folder that they are in.

    Returns:
        Sentences for the notes; none where there are no such files.
    """
    loose = [entry for entry in sorted(folder.iterdir()) if entry.is_file() and not is_litter(entry.name)]
    kinds = (
        ("image", " beside the folders, which tell the categories", list(filter(is_readable, loose))),
        ("archive", ", not unpacked", [one for one in loose if one.name.lower().endswith(ARCHIVES)]),
    )  # fmt: skip
    return tuple(
        f"{count_of(len(files), noun)}{said}: {files[0].name}{' ...' if len(files) > 1 else ''}"
        for noun, said, files in kinds if files
    )  # fmt: skip


def photographs(files: Iterable[Path], root: Path, hidden: Collection[Path] = ()) -> list[Path]:
    """Return the files that are images of a data set: not masks, and not of other endings.

    Args:
        files: All files of the data set.
        root: The folder that they are in; the names of the folders below it count.
        hidden: Files that were found to be masks although no usual name tells it.

    Returns:
        The images, in the order of the files.
    """
    readable = [file for file in files if is_readable(file)]
    known = {key for file in readable for key in _keys(file)}
    chosen = []
    for file in readable:
        named = MASK_NAME.match(file.stem)
        beside = named is not None and (file.parent, named["image"].lower()) in known
        in_folder = any(is_inner_masks(part) for part in file.parent.relative_to(root).parts[1:])
        if not (beside or in_folder or is_own_mask(file) or file in hidden):
            chosen.append(file)
    return chosen


def is_own_mask(file: Path) -> bool:
    """Return whether a file is a mask by its name, also without an image beside it.

    Args:
        file: The file; only its name is looked at.

    Returns:
        True for the endings in `OWN_MASK`.
    """
    return file.name.lower().endswith(OWN_MASK)


def is_inner_masks(name: str) -> bool:
    """Return whether a folder inside a category holds masks by its name.

    Args:
        name: The name of the folder.

    Returns:
        True where it is called `masks` or so.
    """
    named = MASK_FOLDER.match(name)
    return named is not None and named["image"] is None


def _keys(file: Path) -> tuple[tuple[Path, str], ...]:
    """Return the beginnings that the names of an image's masks have: `dog` and `dog.jpg`."""
    return (file.parent, file.stem.lower()), (file.parent, file.name.lower())


def masks_of(
    files: Sequence[Path],
    places: Sequence[Sequence[Path]] | None = None,
    hidden: Mapping[Path, Sequence[Path]] | None = None,
) -> tuple[tuple[Path, ...], ...]:
    """Find the mask files of images.

    Beside `dog.jpg` these are `dog.mask.png`, `dog_mask.jpg`, `dog-seg.png`, `dog.jpg.mask.png` and so on,
    and `dog_mask_1.png`, `dog_mask_2.png` for several objects; in a folder of masks also `dog.png`.

    Args:
        files: The images.
        places: For each image the folders of masks in which its masks may lie; None: only beside it and in
            folders called `masks` or so beside it.
        hidden: The masks of images that no usual name tells.

    Returns:
        The mask files of each image.

    Raises:
        InputError: An image has masks under several names.
    """
    beside: dict[Path, dict[str, list[Path]]] = {}
    inner: dict[Path, list[Path]] = {}
    found = []
    for position, file in enumerate(files):
        folder = file.parent
        if folder not in inner:
            inner[folder] = [
                entry for entry in sorted(folder.iterdir()) if entry.is_dir() and is_inner_masks(entry.name)
            ]
        extra = [] if places is None else places[position]
        masks: list[Path] = []
        for place in (folder, *inner[folder], *extra):
            if place not in beside:
                beside[place] = _by_image(place)
            names = {key for _, key in _keys(file)}
            masks += [mask for name in sorted(names) for mask in beside[place].get(name, ())]
            if place != folder:
                masks += [mask for mask in beside[place].get("", ()) if mask.stem.lower() in names]
        masks += [mask for mask in (hidden or {}).get(file, ()) if mask not in masks]
        kinds = {(mask.parent, _kind(mask, file)) for mask in masks}
        if len(kinds) > 1:
            listed = ", ".join(map(str, masks))
            raise InputError(
                f"{file}: masks under several names: {listed}; keep one of them, "
                f"or number them like {file.stem}_mask_1.png if each marks a part of the object"
            )
        found.append(tuple(masks))
    return tuple(found)


def _kind(mask: Path, image: Path) -> str:
    """Return what tells a mask's name from those of the other parts of the same object."""
    named = MASK_NAME.match(mask.stem)
    if named is not None:
        return mask.name[len(named["image"]) :].replace(named["number"] or "", "", 1)
    addition = mask.stem.lower().replace(image.stem.lower(), "", 1)
    return re.sub(r"[ ._-]*\d+$", "", addition) if addition else mask.name


def _by_image(folder: Path) -> dict[str, list[Path]]:
    """Return the mask files in a folder by the image's name in theirs; all files under an empty name."""
    found: dict[str, list[Path]] = {"": []}
    if not folder.is_dir():
        return found
    for file in sorted(folder.iterdir()):
        if is_litter(file.name) or not is_readable(file) or not file.is_file():
            continue
        found[""].append(file)
        named = MASK_NAME.match(file.stem)
        if named is not None:
            found.setdefault(named["image"].lower(), []).append(file)
    return found


def left_out(
    files: Iterable[Path], masks: Iterable[tuple[Path, ...]], images: Iterable[Path]
) -> tuple[str, ...]:
    """Say which files of a folder are neither images nor their masks.

    Args:
        files: All files in it.
        masks: The masks that were found.
        images: The images.

    Returns:
        Sentences that count the files by their endings; none where every file is used.
    """
    used = {mask for group in masks for mask in group} | set(images)
    others = [file for file in files if file not in used]
    masks_alone = [file for file in others if is_readable(file)]
    endings = Counter(file.suffix.lower() or "no ending" for file in others if not is_readable(file))
    notes = [
        f"{count_of(count, 'file')} of {end}: not read as {'an image' if count == 1 else 'images'}"
        for end, count in sorted(endings.items())
    ]
    if masks_alone:
        one, many = "file named like a mask that belongs", "files named like masks that belong"
        more = " ..." if len(masks_alone) > 1 else ""
        notes.append(f"{count_of(len(masks_alone), one, many)} to no image: {masks_alone[0]}{more}")
    moving = sum(file.suffix.lower() == ".gif" for file in used)
    if moving:
        notes.append(
            f"{count_of(moving, 'file')} of .gif: the first picture of each is used, the others are left out"
        )
    return tuple(notes)
