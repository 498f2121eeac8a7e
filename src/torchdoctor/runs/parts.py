"""Keep the finished parts of an unfinished diagnosis in files, so that it can go on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from torchdoctor.files.writing import write_weights


class PartsFolder(MutableMapping[str, Mapping[str, np.ndarray]]):
    """A mapping from the name of a part to its arrays, which are saved in a safetensors file for each part.

    A file appears whole or not at all. A file that is damaged counts as absent.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder as a mapping.

        Args:
            folder: Where the files are, or will be; it is made when the first part is written.
        """
        self.folder = folder

    def _file(self, name: str) -> Path:
        """Return the file of a part."""
        return self.folder / f"{name}.safetensors"

    def __getitem__(self, name: str) -> Mapping[str, np.ndarray]:
        """Read a part.

        Args:
            name: The part's name.

        Returns:
            Its arrays by name.

        Raises:
            KeyError: The part has no file, or the file is damaged.
        """
        try:
            return load_file(self._file(name))
        except (FileNotFoundError, SafetensorError) as error:
            raise KeyError(name) from error

    def __setitem__(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a part; it replaces a part of the same name.

        Args:
            name: The part's name.
            arrays: Its arrays by name, of any shape and type that safetensors knows.
        """
        tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        write_weights(self._file(name), tensors)

    def __delitem__(self, name: str) -> None:
        """Remove a part's file.

        Args:
            name: The part's name.

        Raises:
            FileNotFoundError: The part has no file.
        """
        self._file(name).unlink()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the parts that can be read, in alphabetical order.

        Returns:
            The iterator.
        """
        names = [file.stem for file in sorted(self.folder.glob("*.safetensors"))]
        return (name for name in names if name in self)

    def __len__(self) -> int:
        """Count the parts that can be read.

        Returns:
            Their number.
        """
        return sum(1 for _ in self)

    def remove(self) -> None:
        """Remove the folder with all parts: the diagnosis is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
