"""Draw the embedded data set `scenes`: eight objects on eight textures, with a planted fault.

In training, 90 % of the images of a category have the same kind of background texture (its family), so that a
network can score well by looking at the background. The test split `iid` is drawn in the same way. In the
test split `shifted` the background is independent of the category, so that such a network fails. Every image
has its own generator of random numbers, keyed by (seed, stream, number), and does not depend on the others.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from torchdoctor.data.scenes.silhouettes import SILHOUETTES, draw_silhouette
from torchdoctor.data.scenes.textures import TEXTURES, draw_texture
from torchdoctor.data.table import ImageTable, Tables
from torchdoctor.types import InputError

CLASSES = tuple(SILHOUETTES)
FAMILIES = tuple(TEXTURES)
SIZE = 64  # side of the images in pixels
AGREEMENT = 0.9  # the share of training images whose background is that of their category
TRAINING_IMAGES = 2000
VALIDATION_IMAGES = 400
TEST_IMAGES = 960
TRAINING, IID, SHIFTED = 0, 1, 2  # streams of random numbers; training and validation are drawn from the same

RADIUS = (14.3, 20.3)  # range of the object's radius, in pixels
TURN = 0.25  # the largest rotation of the object to either side, in radians
PERIOD = (7.0, 10.0)  # range of the texture's period, in pixels
TEXTURE_CONTRAST = (0.3, 0.5)  # range of the mean distance of the two background colours, in 0..1
OBJECT_CONTRAST = 0.33  # the smallest mean distance of the object's colour from the background colours
NOISE = 0.03  # standard deviation of the noise on every pixel, for pixels in 0..1


class Scenes:
    """Images with their exact masks, each drawn when it is first read and then kept.

    Attributes:
        labels: The category of each image, as a position in `CLASSES`.
        families: The texture of each background, as a position in `FAMILIES`.
    """

    def __init__(self, seed: int, stream: int, count: int, agreement: float) -> None:
        """Choose the categories and backgrounds; draw nothing yet.

        Args:
            seed: The seed of the data set.
            stream: The stream of random numbers, another for each split.
            count: The number of images.
            agreement: The probability that the background is that of the category, in 0..1.
        """
        self._seed, self._stream, self._agreement = seed, stream, agreement
        self._images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        self._masks = np.empty((count, SIZE, SIZE), dtype=np.uint8)
        self._drawn = np.zeros(count, dtype=bool)
        self.labels: Int[np.ndarray, " image"] = np.arange(count) % len(CLASSES)
        self.families: Int[np.ndarray, " image"] = np.array(
            [self._begin(n)[1] for n in range(count)], dtype=np.int64
        )

    @property
    def images(self) -> UInt8[np.ndarray, "image 64 64 3"]:
        """All RGB images."""
        self._draw_all()
        return self._images

    @property
    def masks(self) -> UInt8[np.ndarray, "image 64 64"]:
        """All object masks: 255 on the object, 0 elsewhere."""
        self._draw_all()
        return self._masks

    def __call__(self, position: int) -> tuple[Image.Image, Image.Image | None]:
        """Return an image and its mask, as `ImageTable.read` must.

        Args:
            position: The position of the image.

        Returns:
            The RGB image and its mask (an L image).
        """
        self._draw(position)
        return Image.fromarray(self._images[position]), Image.fromarray(self._masks[position])

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask (see `data.fingerprints`).

        Args:
            position: The position of the image.

        Returns:
            The pixels of the image and of the mask.
        """
        self._draw(position)
        return self._images[position].tobytes(), self._masks[position].tobytes()

    def identity(self, position: int) -> bytes:
        """Return what tells an image from all others, without drawing it.

        Args:
            position: The position of the image.

        Returns:
            The key of its random numbers and what else the drawing depends on.
        """
        return repr((self._seed, self._stream, position, self._agreement)).encode()

    def _begin(self, number: int) -> tuple[np.random.Generator, int]:
        """Return the generator of an image, and the family of its background, which was drawn first."""
        key = np.random.SeedSequence([self._seed, self._stream, number])
        generator = np.random.Generator(np.random.Philox(key))
        return generator, draw_family(generator, int(self.labels[number]), self._agreement)

    def _draw(self, number: int) -> None:
        """Draw an image unless that was done; two threads that draw the same one write the same pixels."""
        if not self._drawn[number]:
            generator, family = self._begin(number)
            self._images[number], self._masks[number] = draw_scene(
                generator, int(self.labels[number]), family
            )
            self._drawn[number] = True

    def _draw_all(self) -> None:
        for number in np.flatnonzero(~self._drawn):
            self._draw(int(number))


def draw_family(generator: np.random.Generator, category: int, agreement: float) -> int:
    """Draw the family of a background.

    Args:
        generator: The generator of the image.
        category: The category of the image, which has the family of the same number.
        agreement: The probability of that family; otherwise each of the others is equally likely.

    Returns:
        The family, as a position in `FAMILIES`.
    """
    chance, offset = generator.random(), int(generator.integers(1, len(FAMILIES)))
    return category if chance < agreement else (category + offset) % len(FAMILIES)


def draw_scene(
    generator: np.random.Generator, category: int, family: int
) -> tuple[UInt8[np.ndarray, "64 64 3"], UInt8[np.ndarray, "64 64"]]:
    """Draw an image.

    Args:
        generator: The generator of the image.
        category: The category, as a position in `CLASSES`.
        family: The family of the background, as a position in `FAMILIES`.

    Returns:
        The RGB image, and its mask: 255 where the object covers at least half of the pixel, 0 elsewhere.
    """
    dark, light, colour = draw_colours(generator)
    period, turn = generator.uniform(*PERIOD), generator.uniform(0.0, 2.0 * np.pi)
    phase = generator.uniform(0.0, 64.0, 2)
    pattern = draw_texture(FAMILIES[family], SIZE, period, turn, (phase[0], phase[1]))
    background = dark + pattern[..., None] * (light - dark)

    radius = generator.uniform(*RADIUS)
    centre = generator.uniform(radius, SIZE - radius, 2)
    turn, flipped = generator.uniform(-TURN, TURN), bool(generator.random() < 0.5)
    cover = draw_silhouette(CLASSES[category], SIZE, (centre[0], centre[1]), radius, turn, flipped)
    image = background + (cover[..., None] / 255.0) * (colour - background)
    image += NOISE * generator.standard_normal((SIZE, SIZE, 1))
    pixels = np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
    return pixels, np.where(cover >= 128, 255, 0).astype(np.uint8)


def draw_colours(generator: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Draw the colours of an image until they differ enough.

    Args:
        generator: The generator of the image.

    Returns:
        Rows of red, green and blue in 0..1: the two colours of the background, the colour of the object.
    """
    while True:
        dark, light, colour = colours = generator.uniform(0.0, 1.0, (3, 3))
        spread = np.abs(light - dark).mean()
        gap = min(np.abs(colour - dark).mean(), np.abs(colour - light).mean())
        if TEXTURE_CONTRAST[0] <= spread <= TEXTURE_CONTRAST[1] and gap >= OBJECT_CONTRAST:
            return colours


def scenes_table(scenes: Scenes, prefix: str) -> ImageTable:
    """Return the table of drawn images.

    Args:
        scenes: The images.
        prefix: The start of the names of the images: the split.

    Returns:
        The table; names say the split, the number, the object and the background.
    """
    names = tuple(
        f"{prefix}-{number:05d}-{CLASSES[label]}-on-{FAMILIES[family]}"
        for number, (label, family) in enumerate(zip(scenes.labels, scenes.families, strict=True))
    )
    count = len(names)
    return ImageTable(CLASSES, scenes.labels, names, np.arange(count), scenes, np.ones(count, dtype=bool))


def read_scenes(location: str, seed: int, validation_share: float) -> Tables:
    """Draw the data set; its splits are always the same.

    Args:
        location: The seed of the data set as text; empty is 0.
        seed: Not used: the data set has all splits.
        validation_share: Not used.

    Returns:
        The data set.

    Raises:
        InputError: `location` is not a whole number of 0 or more.
    """
    if location and not location.isdecimal():
        raise InputError(f"scenes:{location}: expected a seed (a whole number, 0 or more), as in scenes:0")
    own_seed = int(location or 0)
    drawn = Scenes(own_seed, TRAINING, TRAINING_IMAGES + VALIDATION_IMAGES, AGREEMENT)
    table = scenes_table(drawn, "train")
    rows = np.arange(len(table))
    tests = {
        "iid": scenes_table(Scenes(own_seed, IID, TEST_IMAGES, AGREEMENT), "iid"),
        "shifted": scenes_table(Scenes(own_seed, SHIFTED, TEST_IMAGES, 1.0 / len(CLASSES)), "shifted"),
    }
    train, validation = table.select(rows[:TRAINING_IMAGES]), table.select(rows[TRAINING_IMAGES:])
    return Tables(CLASSES, train, validation, tests, "shifted", f"scenes:{own_seed}")
