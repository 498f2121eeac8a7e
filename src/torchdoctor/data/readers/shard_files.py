"""Find the files of the splits in a folder: Parquet files, or tar archives."""

from __future__ import annotations

import re
from pathlib import Path

from torchdoctor.data.splitting import is_split_name, split_names
from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

PARQUET = ".parquet"
SHARD = re.compile(r"-(\d+)-of-(\d+)$")
NAMED = 5  # of many files, how many a sentence names


def layout(ending: str) -> str:
    """Say which files are expected in a folder.

    Args:
        ending: The ending of the files, such as `.parquet`.

    Returns:
        Words for error messages.
    """
    return f"expected train-*{ending} with test-*{ending} or validation-*{ending}, or one {ending} file"


def split_files(
    folder: Path, origin: str, ending: str = PARQUET, undivided: bool = False
) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return the files of each split.

    Args:
        folder: The folder; without files of splits, its subfolder `data` is searched, then folders that are
            named like splits.
        origin: The `--data` value, for error messages.
        ending: The ending of the files.
        undivided: Whether files of which no name tells a split are all training images.

    Returns:
        The files by the name of the split, which is the part of the file's name before the first `-` (or the
        name of the folder), in the order of their names; and which files are not used or missing. A single
        file of any other name is `train`.

    Raises:
        InputError: There are no files of training images, or files that may be the test split.
    """
    files, others = _files(folder, ending)
    if undivided and not files and others:
        files, others = {"train": others}, []
    if "train" not in files:
        found = sorted(files) or [str(path.relative_to(folder)) for path in others[:NAMED]]
        raise InputError(f"{origin}: found {found or f'no {ending} files'}; {layout(ending)}")
    names = ", ".join(str(path.relative_to(folder)) for path in others[:NAMED])
    if others and len(files) == 1:
        raise InputError(
            f"{origin}: found {names} beside the training images, and its name tells no split; call it "
            f"test-0{ending}, or move it elsewhere"
        )
    one, many = f"{ending} file whose name tells no split", f"{ending} files whose names tell no split"
    notes = (f"{count_of(len(others), one, many)}: {names}",) if others else ()
    return files, notes + tuple(note for name, paths in files.items() for note in _missing(name, paths))


def holds_splits(folder: Path) -> bool:
    """Return whether a folder holds Parquet files of images.

    Args:
        folder: The folder.

    Returns:
        Whether there is a file of a split, or a single file.
    """
    return bool(_files(folder, PARQUET)[0])


def _files(folder: Path, ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the files of the splits in a folder, and the others."""
    everything = sorted(folder.glob(f"*{ending}"))
    for place in (folder, folder / "data"):
        files, others = _by_name(list(place.glob(f"*{ending}")))
        if files:
            return files, others
    if len(everything) == 1:
        return {"train": everything}, []
    files, others = _by_split({path: path.parent.name for path in folder.glob(f"*/*{ending}")})
    return files, [*everything, *others]


def files_by_split(paths: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Sort files by the split that their names, or else the names of their folders, tell.

    Args:
        paths: The files.

    Returns:
        The files by the name of the split, and those that tell none.
    """
    files, others = _by_name(paths)
    return (files, others) if files else _by_split({path: path.parent.name for path in paths})


def _by_name(paths: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Sort files by the split that their names tell before the first `-`."""
    return _by_split({path: re.sub(r"-.*", "", path.stem) for path in paths})


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
