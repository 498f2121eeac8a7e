"""The result of `measure_robustness`: noise curves of normal images and of their adversarial twins."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from torchdoctor.display.cards import Card
from torchdoctor.display.counts import count_of
from torchdoctor.display.curves import CURVES, noise_curves
from torchdoctor.display.style import literal
from torchdoctor.files.reading import Number, Record, read_record
from torchdoctor.files.writing import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Units = Literal["absolute", "deviation"]

FILE = "robustness.json"


@dataclass(frozen=True)
class Robustness:
    """How images and their adversarial twins are classified under noise at a single layer (Fig. 3).

    Percentages are of the `images` that are classified correctly and whose twin is misclassified.

    Attributes:
        ranges: The ranges of the noise, which is uniform in [-range, range].
        normal: The percentage of images that are still classified correctly.
        restored: The percentage of twins that are classified as the true category again.
        fooled: The percentage of twins that are still classified as the same false category.
        layers: The name of the layer that got the noise in each repeat.
        units: The unit of the ranges: that of the map ("absolute"), or its standard deviation ("deviation").
        images: The number of images.
        tried: The number of correctly classified images that were attacked to get them.
        attack_success: `images` in percent of `tried`.
        epsilon: The size of the attack, for pixels in 0..1.
        seed: The seed of the noise and of the layers.
    """

    ranges: tuple[float, ...]
    normal: Float[np.ndarray, "range repeat"]
    restored: Float[np.ndarray, "range repeat"]
    fooled: Float[np.ndarray, "range repeat"]
    layers: tuple[str, ...]
    units: Units
    images: int
    tried: int
    attack_success: float
    epsilon: float
    seed: int

    def __repr__(self) -> str:
        """Return a few lines: the mean over the repeats at each noise range."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the curves."""
        rows = zip(self.ranges, self.normal, self.restored, self.fooled, strict=True)
        return Card(
            f"Robustness of {count_of(self.images, 'image')} ({count_of(len(self.layers), 'repeat')}; "
            "FGSM with epsilon = "
            f"{255 * self.epsilon:.3g}/255 fooled {self.attack_success:.0f} %)",
            columns=("noise range", "normal, right", "adversarial, restored", "adversarial, fooled"),
            rows=tuple((f"{at:g}", *(f"{values.mean():.1f} %" for values in lines)) for at, *lines in rows),
        )

    def figure(self) -> Figure:
        """Draw the noise curves (Fig. 3): the mean over the repeats, and the range of all of them.

        Returns:
            A matplotlib figure.
        """
        kinds = list(dict.fromkeys(self.layers))
        where = literal(kinds[0], 40) if len(kinds) == 1 else f"one of {len(kinds)} layers at a time"
        unit = "standard deviations of the layer's map" if self.units == "deviation" else "units of the map"
        return noise_curves(
            self.ranges,
            {name: getattr(self, name) for name in CURVES},
            title=f"noise at {where}, {len(self.layers)} repeats; FGSM with ε = {255 * self.epsilon:.3g}/255 "
            f"fooled {self.attack_success:.0f} %",
            unit=unit,
            images=self.images,
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `robustness.json`.

        Args:
            folder: Where to write it; made where it is missing.

        Raises:
            ModelDoctorError: Where the file cannot be written.
        """
        write_json(Path(folder) / FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Robustness:
        """Read the curves back that `save` or a run wrote.

        Args:
            folder: The folder with `robustness.json`.

        Returns:
            The curves.

        Raises:
            InputError: Where the file is missing, damaged or of another kind.
        """
        saved = read_record(Path(folder) / FILE, RobustnessRecord).model_dump()
        return cls(**{**saved, **{name: np.array(saved[name], dtype=float) for name in CURVES}})


class RobustnessRecord(Record):
    """What `robustness.json` holds: the fields of a `Robustness`."""

    ranges: tuple[Number, ...]
    normal: tuple[tuple[Number, ...], ...]
    restored: tuple[tuple[Number, ...], ...]
    fooled: tuple[tuple[Number, ...], ...]
    layers: tuple[str, ...]
    units: Units
    images: int
    tried: int
    attack_success: Number
    epsilon: Number
    seed: int
