"""Index the samples of a tar archive in the layout of WebDataset: where each member lies."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torchdoctor.data.readers.naming import ENDINGS, is_litter
from torchdoctor.types import InputError, first_line

MASK = "mask.png"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
BLOCK = 512  # a tar archive consists of blocks of so many bytes; one of zeros marks its end


@dataclass(frozen=True)
class Member:
    """A file in a tar archive.

    Attributes:
        name: Its path in the archive.
        offset: Where its content begins, in bytes.
        size: The length of its content in bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """The members of a tar archive that have a name in common up to the first dot.

    Attributes:
        key: The path up to that dot.
        members: The members by what follows the dot, in lower case, such as `jpg` and `mask.png`.
    """

    key: str
    members: dict[str, Member]

    def image(self, archive: Path) -> Member:
        """Return the image of the sample.

        Args:
            archive: The archive, for error messages.

        Returns:
            Its one member with the ending of an image.

        Raises:
            InputError: There is none, or there are several.
        """
        images = [member for ending, member in self.members.items() if f".{ending}" in ENDINGS]
        first = next(iter(self.members.values()))
        if not images:
            raise InputError(
                f"{archive}: member {first.name!r} has no image beside it; expected {self.key}.jpg or so"
            )
        if len(images) > 1:
            raise InputError(
                f"{archive}: members {images[0].name!r} and {images[1].name!r} are two images of one sample; "
                "expected one"
            )
        return images[0]


def read_member(archive: Path, member: Member) -> bytes:
    """Read the content of a member.

    Args:
        archive: The archive.
        member: The member.

    Returns:
        Its content.

    Raises:
        InputError: The archive cannot be read, or ends before the member does.
    """
    try:
        with archive.open("rb", buffering=0) as file:
            file.seek(member.offset)
            content = file.read(member.size)
    except OSError as error:
        raise InputError(f"{archive}: cannot be read ({error.strerror or error})") from error
    if len(content) != member.size:
        raise InputError(f"{archive}: ends inside the member {member.name!r}; fetch the archive again")
    return content


def samples_of(archive: Path) -> Iterator[Sample]:
    """Go through the samples of a tar archive.

    Args:
        archive: The archive.

    Yields:
        The samples in order; the members of a sample follow each other in the archive.

    Raises:
        InputError: The archive is compressed, damaged or cut off, or two members have one name.
    """
    sample: Sample | None = None
    for member in _members(archive):
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")
        key = (path.parent / stem).as_posix()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = Sample(key, {})
        if ending.lower() in sample.members:
            raise InputError(f"{archive}: two members are called {member.name!r}; remove one of them")
        sample.members[ending.lower()] = member
    if sample is not None:
        yield sample


def ends_with_mark(archive: Path) -> bool:
    """Return whether an archive ends with the mark of its end; without it, it may be cut off.

    Args:
        archive: The archive.

    Returns:
        Whether its last block is of zeros.
    """
    with archive.open("rb") as file:
        file.seek(-min(BLOCK, archive.stat().st_size), os.SEEK_END)
        return not any(file.read())


def _members(archive: Path) -> Iterator[Member]:
    """Yield the files in an archive, without those that tools left."""
    last = "its beginning"
    try:
        length = archive.stat().st_size
        with archive.open("rb") as start:
            kind = COMPRESSED.get(start.read(2))
        if kind is not None:
            raise InputError(
                f"{archive}: is compressed ({kind}), so that no image in it can be read by itself; "
                "unpack it to a plain .tar"
            )
        with tarfile.open(archive, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member
                if info.isfile() and info.offset_data + info.size > length:
                    raise InputError(
                        f"{archive}: is cut off: it ends inside the member {info.name!r}; fetch it again"
                    )
                last = f"the member {info.name!r}"
                if info.isfile() and not is_litter(PurePosixPath(info.name).name):
                    yield Member(info.name, info.offset_data, info.size)
            end = tar.offset
        with archive.open("rb") as file:  # tarfile takes a damaged head of a member for the end
            file.seek(end)
            if any(block := file.read(BLOCK)) or len(block) not in (0, BLOCK):
                raise InputError(f"{archive}: is damaged or cut off after {last}; fetch it again")
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{archive}: cannot be read as a tar archive after {last} ({first_line(error)}); fetch it again"
        ) from error
