"""Keep masks of a review as PNG files in the run, each on the disk before it counts."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from threading import RLock
from typing import Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from torchdoctor.data.annotations import mask_from_png
from torchdoctor.data.given_masks import image_hash
from torchdoctor.data.mask_folder import PROPOSED
from torchdoctor.data.splitting import split_role
from torchdoctor.data.table import ImageTable
from torchdoctor.files.reading import sha256_of
from torchdoctor.files.writing import write_bytes
from torchdoctor.runs.review_files import (
    PROPOSALS,
    REVIEW,
    MaskContent,
    MaskKind,
    MaskRecord,
    mask_file,
    read_masks,
    write_masks,
)
from torchdoctor.types import InputError

Listing = Literal["masks", "proposals"]
Marked = Bool[np.ndarray, "height width"]


class MaskStore:
    """The masks of a run: those of a person in `review/masks`, mere proposals in `review/proposals`.

    A mask file is written before the list that names it. What the list does not name was never called saved.
    """

    def __init__(self, run: Path, table: ImageTable, listing: Listing = "masks") -> None:
        """Read what is there; nothing is written.

        Args:
            run: The run's folder.
            table: The training images.
            listing: Whether this holds masks of a person, or proposals.

        Raises:
            InputError: The list is damaged, or it is about other images.
        """
        self.run, self.table, self.listing = run, table, listing
        self._places = {identity: place for place, identity in enumerate(table.ids.tolist())}
        self._home = f"{listing}/{split_folder(table)}"
        self._lock = RLock()
        self.records = read_masks(run, listing)
        for record in self.records.values():
            self._check(record)

    def _check(self, record: MaskRecord) -> None:
        """Refuse a record of an image that is gone or changed."""
        place = self._places.get(record.id)
        if place is None or str(self.table.names[place]) != record.image:
            state = "is not among the training images of the run"
        elif record.source and image_hash(self.table, place) not in ("", record.source):
            state = "has changed since its mask was drawn"
        else:
            return
        raise InputError(
            f"{str(self.run / REVIEW / f'{self.listing}.json')!r}: {record.image!r} {state}: bring the "
            "images back, or move the list and its folder away to begin anew"
        )

    def take_over_changes(self) -> list[str]:
        """Take over mask files that somebody changed beside the review, and forget those that are gone.

        Returns:
            What was done, in sentences.

        Raises:
            InputError: A changed file is no mask of its image.
        """
        said = []
        with self._lock:
            for record in list(self.records.values()):
                file = self.run / REVIEW / record.file
                if not record.file or (file.is_file() and sha256_of(file) == record.sha256):
                    continue
                if not file.is_file():
                    self.remove(record.id)
                    said.append(f"the mask of {record.image} is gone, so it is asked for again")
                    continue
                mask = np.asarray(mask_from_png(file, str(file))) > 0
                if mask.shape != (record.height, record.width):
                    raise InputError(
                        f"{str(file)!r} is {mask.shape[1]} x {mask.shape[0]} pixels and its image "
                        f"{record.width} x {record.height}: draw it anew, or remove the file"
                    )
                self.write(record.id, mask, "by hand")
                said.append(f"the mask of {record.image} was changed outside of the review and is taken over")
        return said

    def read(self, image: int) -> Marked | None:
        """Return the mask of an image.

        Args:
            image: The id of the image.

        Returns:
            True on the object; None where there is no mask file, not any more either.

        Raises:
            InputError: The file is damaged.
        """
        record = self.records.get(image)
        file = self.run / REVIEW / (record.file if record is not None else "")
        if not file.is_file():
            return None
        marked: Marked = np.asarray(mask_from_png(file, str(file))) > 0
        return marked

    def write(self, image: int, mask: Marked, kind: MaskKind, *, no_object: bool = False) -> MaskRecord:
        """Write a mask, so that it is on the disk when this returns.

        Args:
            image: The id of the image.
            mask: True on the object, at the size of the upright image.
            kind: Who made it.
            no_object: Whether a person says that the image shows no object of its category; then the mask is
                empty, and no mask file is written.

        Returns:
            What is recorded of it.

        Raises:
            InputError: The image is unknown, the mask is empty without `no_object`, or a proposal is stored
                among masks of a person, or the other way round.
            ModelDoctorError: It cannot be written.
        """
        if image not in self._places:
            raise InputError(f"image {image} is not among the training images of the run")
        if (kind == "proposal") != (self.listing == PROPOSALS):
            raise InputError(f"a mask of kind {kind!r} does not belong into {self.listing}")
        if mask.any() == no_object:
            raise InputError("the mask marks no pixel: mark the object, or say that there is none")
        content: MaskContent = "no object" if no_object else "whole image" if mask.all() else "object"
        place = self._places[image]
        category, name = self.table.classes[self.table.labels[place]], str(self.table.names[place])
        with self._lock:
            self.records = read_masks(self.run, self.listing)  # where folders have no locks, others may write
            file, png = "", b""
            if not no_object:
                home = self._home.lower()
                taken = {
                    one.file.lower().removeprefix(home): one.id for one in self.records.values() if one.file
                }
                inner = mask_file(category, name, image, taken)
                file, png = f"{self._home}{inner}", png_of(mask, proposed=kind == "proposal")
                write_bytes(self.run / REVIEW / file, png)
            record = MaskRecord(
                id=image, image=name, category=category, kind=kind, content=content,
                width=mask.shape[1], height=mask.shape[0], file=file,
                sha256=hashlib.sha256(png).hexdigest() if png else "", source=image_hash(self.table, place),
            )  # fmt: skip
            earlier = self.records.get(image)
            write_masks(self.run, {**self.records, image: record}.values(), self.listing)
            self.records[image] = record
            if earlier is not None and earlier.file not in ("", file):
                (self.run / REVIEW / earlier.file).unlink(missing_ok=True)
            return record

    def remove(self, image: int) -> None:
        """Take a mask back, so that the image is asked for again.

        Args:
            image: The id of the image; nothing happens where it has no mask.

        Raises:
            ModelDoctorError: The list cannot be written.
        """
        with self._lock:
            self.records = read_masks(self.run, self.listing)
            record = self.records.get(image)
            if record is None:
                return
            left = {number: one for number, one in self.records.items() if number != image}
            write_masks(self.run, left.values(), self.listing)
            self.records = left
            if record.file:
                (self.run / REVIEW / record.file).unlink(missing_ok=True)

    def counts(self) -> dict[str, int]:
        """Count the masks by kind.

        Returns:
            The number of each kind that occurs, and of images without an object as `no object`.
        """
        kinds = ["no object" if one.content == "no object" else one.kind for one in self.records.values()]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def split_folder(table: ImageTable) -> str:
    """Return the folder of the training split within the data, where it has one.

    Args:
        table: The training images.

    Returns:
        For instance `train/`; empty where the folders of the categories lie in no folder of a split, or the
        source has no folders.
    """
    read: object = table.read
    while hasattr(read, "read") or hasattr(read, "images"):
        read = getattr(read, "read", None) or getattr(read, "images", None)
    root = getattr(read, "root", None)
    named = isinstance(root, Path) and split_role(root.name) is not None
    return f"{root.name}/" if isinstance(root, Path) and named else ""


def png_of(mask: Marked, *, proposed: bool = False) -> bytes:
    """Return a mask as the content of a PNG file.

    Args:
        mask: True on the object.
        proposed: Whether the file says that nobody has looked at the mask.

    Returns:
        A grey PNG: 255 on the object, 0 elsewhere.
    """
    content = io.BytesIO()
    told = PngInfo()
    if proposed:
        told.add_text(*PROPOSED)
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    picture.save(content, "PNG", optimize=True, pnginfo=told)
    return content.getvalue()
