"""Keep what an unfinished diagnosis has computed in files, so that it can go on there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from torchdoctor.files.writing import write_weights


class PartsFolder(MutableMapping[str, Mapping[str, np.ndarray]]):
    """Sets of arrays by name, one file each, written atomically. A file that is damaged counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def __getitem__(self, name: str) -> Mapping[str, np.ndarray]:
        """Return the arrays called `name`; KeyError where there are none to be read."""
        try:
            return load_file(self._file(name))
        except FileNotFoundError as error:
            raise KeyError(name) from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise KeyError(name) from error

    def __setitem__(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays."""
        tensors = {key: torch.from_numpy(np.ascontiguousarray(one)) for key, one in arrays.items()}
        write_weights(self._file(name), tensors)

    def __delitem__(self, name: str) -> None:
        """Remove the arrays."""
        self._file(name).unlink()

    def __iter__(self) -> Iterator[str]:
        """Yield the names of what can be read."""
        names = [one.stem for one in sorted(self.folder.glob("*.safetensors"))]
        return (one for one in names if one in self)

    def __len__(self) -> int:
        """Return how many sets there are."""
        return sum(1 for _ in self)

    def remove(self) -> None:
        """Remove everything: the diagnosis is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
