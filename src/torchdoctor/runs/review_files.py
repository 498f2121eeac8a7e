"""Where a review keeps masks in a run folder, and what it records of each of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from torchdoctor.data.readers.naming import ENDINGS
from torchdoctor.display.counts import count_of
from torchdoctor.files.reading import Record, read_record, sha256_of
from torchdoctor.files.writing import write_json
from torchdoctor.types import InputError

REVIEW = "review"  # the folder of a review in a run
MASKS, PROPOSALS = "masks", "proposals"  # folders in it; the lists beside them have the same names
MaskKind = Literal["by hand", "corrected proposal", "accepted proposal", "proposal"]
MaskContent = Literal["object", "whole image", "no object"]
FORBIDDEN = frozenset('<>:"/\\|?*')  # in the name of a file, on one system or another
OUTER = re.compile(r"^[. ]+|[. ]+$")  # with which no name should begin or end
UNSEEN = "CZ"  # the kinds of characters, as Unicode names them, that are not to be seen: controls and spaces
LONGEST = 200  # bytes of a part of a file's name


class MaskRecord(Record):
    """A mask of a training image, as `masks.json` or `proposals.json` names it.

    Attributes:
        id: The id of the image.
        image: The name of the image.
        category: The category that it is labelled as.
        kind: Whether a person drew the mask, corrected a proposal, or accepted it as it was; `proposal`:
            nobody has looked at it.
        content: What is marked; an image with `no object` has no mask file.
        width: The width of the upright image in pixels.
        height: Its height.
        file: The mask file, as a path within `review`; empty without one.
        sha256: The sha256 of the mask file; empty without one.
        source: A hash of the image; empty where the data tells none.
    """

    id: int
    image: str
    category: str
    kind: MaskKind
    content: MaskContent
    width: int
    height: int
    file: str = ""
    sha256: str = ""
    source: str = ""


class MasksRecord(Record):
    """What `masks.json` and `proposals.json` hold."""

    masks: tuple[MaskRecord, ...] = ()


def read_masks(run: Path, listing: str = MASKS) -> dict[int, MaskRecord]:
    """Read what a review recorded of the masks.

    Args:
        run: The run's folder.
        listing: `masks` or `proposals`.

    Returns:
        The records by the image's id; none where nothing was recorded.

    Raises:
        InputError: The list is damaged, or names an image twice.
    """
    file = run / REVIEW / f"{listing}.json"
    if not file.is_file():
        return {}
    records = read_record(file, MasksRecord).masks
    by_id = {record.id: record for record in records}
    if len(by_id) != len(records):
        raise InputError(f"{str(file)!r} names an image twice: remove one of the entries")
    return by_id


def write_masks(run: Path, records: Iterable[MaskRecord], listing: str = MASKS) -> None:
    """Write the list of the masks, in the order of the images' ids.

    Args:
        run: The run's folder.
        records: The records.
        listing: `masks` or `proposals`.

    Raises:
        ModelDoctorError: The list cannot be written.
    """
    ordered = sorted(records, key=lambda record: record.id)
    write_json(run / REVIEW / f"{listing}.json", {"masks": [record.model_dump() for record in ordered]})


def said_of_kinds(kinds: Mapping[str, int]) -> str:
    """Say how many masks there are of each kind.

    Args:
        kinds: The number of masks by kind, as `MaskStore.counts` has them.

    Returns:
        A text such as `1 accepted proposal, 4 by hand`; `none` without masks.
    """
    said = (
        count_of(number, kind, f"{kind}s" if kind.endswith("proposal") else kind)
        for kind, number in kinds.items()
    )
    return ", ".join(said) or "none"


def mask_file(category: str, image: str, number: int, taken: Mapping[str, int]) -> str:
    """Return the name of the mask file of an image, in a folder of its category.

    The name is that of the image with the ending `.png`, so that the folder of masks can stand beside the
    folders of categories as it is.

    Args:
        category: The category of the image.
        image: The name of the image, such as a path.
        number: Its id.
        taken: The ids of the images that have a mask file, by its name in small letters.

    Returns:
        A path of a folder and a file; no part of it can lead elsewhere.
    """
    parts = PurePosixPath(image.replace("\\", "/")).parts
    inner = list(parts[1:] if len(parts) > 1 and parts[0] == category else parts[-1:])
    last = PurePosixPath(inner[-1] if inner else str(number))
    inner[-1:] = [last.stem if last.suffix.lower() in ENDINGS else last.name]
    names = [_safe(part) for part in (category, *inner)]
    whole = "/".join(names)
    if names != [category, *inner] or taken.get(f"{whole}.png".lower(), number) != number:
        whole = f"{whole}-{number}"  # another image could have the same name
    return f"{whole}.png"


def _safe(part: str) -> str:
    """Return a name of a file or folder without anything that means something to a file system."""
    seen = (
        letter == " " or (letter not in FORBIDDEN and unicodedata.category(letter)[0] not in UNSEEN)
        for letter in part
    )
    kept = "".join(letter if one else "_" for letter, one in zip(part, seen, strict=True))
    return OUTER.sub("_", kept).encode()[:LONGEST].decode(errors="ignore") or "_"


def check_mask_file(run: Path, record: MaskRecord, listing: str = MASKS) -> Path:
    """Return the mask file that a record names, after checking that it is what was written.

    Args:
        run: The run's folder.
        record: A record with a file.
        listing: `masks` or `proposals`.

    Returns:
        The file.

    Raises:
        InputError: The name leads out of the folder of masks, or the file is missing or changed.
    """
    home = run / REVIEW / listing
    file = run / REVIEW / record.file
    if not file.resolve().is_relative_to(home.resolve()):
        raise InputError(
            f"{listing}.json of {str(run)!r} names {record.file!r}, which lies outside of {home}"
        )
    if not file.is_file() or sha256_of(file) != record.sha256:
        state = "changed after" if file.is_file() else "missing since"
        raise InputError(
            f"{str(file)!r}: the mask of {record.image!r} is {state} the review; `torchdoctor review {run}` "
            "takes over masks that were changed, and asks again for those that are missing"
        )
    return file
