"""Find the Parquet files of the splits in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from torchdoctor.data.splitting import is_split_name, split_names
from torchdoctor.types import InputError

LAYOUT = "expected train-*.parquet with test-*.parquet or validation-*.parquet, or one .parquet file"
SHARD = re.compile(r"-(\d+)-of-(\d+)$")
NAMED = 5  # of many files, how many a sentence names


def split_files(folder: Path, origin: str) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return the Parquet files of each split.

    Args:
        folder: The folder; without files of splits, its subfolder `data` is searched, then folders that are
            named like splits.
        origin: The `--data` value, for error messages.

    Returns:
        The files by the name of the split, which is the part of the file's name before the first `-` (or the
        name of the folder), in the order of their names; and which files are not used or missing. A single
        file of any other name is `train`.

    Raises:
        InputError: There are no files of training images, or files that may be the test split.
    """
    files, others = _files(folder)
    if "train" not in files:
        found = sorted(files) or [str(path.relative_to(folder)) for path in others[:NAMED]]
        raise InputError(f"{origin}: found {found or 'no .parquet files'}; {LAYOUT}")
    names = ", ".join(str(path.relative_to(folder)) for path in others[:NAMED])
    if others and len(files) == 1:
        raise InputError(
            f"{origin}: found {names} beside the training images, and its name tells no split; call it "
            "test-0.parquet, or move it elsewhere"
        )
    notes = (f"{len(others)} .parquet files whose names tell no split: {names}",) if others else ()
    return files, notes + tuple(note for name, paths in files.items() for note in _missing(name, paths))


def holds_splits(folder: Path) -> bool:
    """Return whether a folder holds Parquet files of images.

    Args:
        folder: The folder.

    Returns:
        Whether there is a file of a split, or a single file.
    """
    return bool(_files(folder)[0])


def _files(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the files of the splits in a folder, and the others."""
    everything = sorted(folder.glob("*.parquet"))
    for place in (folder, folder / "data"):
        files, others = _by_split({path: re.sub(r"-.*", "", path.stem) for path in place.glob("*.parquet")})
        if files:
            return files, others
    if len(everything) == 1:
        return {"train": everything}, []
    files, others = _by_split({path: path.parent.name for path in folder.glob("*/*.parquet")})
    return files, [*everything, *others]


def _by_split(told: dict[Path, str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Sort files by the split that a part of their paths names; those that name none are others."""
    roles = split_names(sorted(set(told.values())))
    if not any(is_split_name(role) for role in roles.values()):
        return {}, sorted(told)
    files: dict[str, list[Path]] = {}
    for path in sorted(told):
        if told[path] in roles:
            files.setdefault(roles[told[path]], []).append(path)
    return files, [path for path in sorted(told) if told[path] not in roles]


def _missing(name: str, paths: list[Path]) -> tuple[str, ...]:
    """Say where a split lacks some of the files that their names count."""
    shards = [match for path in paths if (match := SHARD.search(path.stem)) is not None]
    whole = max((int(match[2]) for match in shards), default=0)
    if len(shards) >= whole:
        return ()
    return (f"the rest of the split {name}: {len(shards)} of its {whole} files are here",)
