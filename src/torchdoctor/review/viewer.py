"""Show a training image, what the network says of it, and where its evidence lies in the image."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from torchdoctor.case.preparation import Case
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.network.prediction import predict_logits
from torchdoctor.review.proposals import evidence_maps, layer_to_look_at, proposed_mask
from torchdoctor.types import InputError

LARGEST, SMALL = 2048, 320  # sides in pixels of images that are sent, and of the similar ones beside them
LOSSLESS = 512  # images up to this side are sent as PNG
QUALITY = 90  # of JPEG
SAID = 3  # categories that the network names
KEPT = 64  # maps of evidence that are kept in memory
COLOUR = (255, 64, 0)  # of the evidence over the image


@dataclass(frozen=True)
class Region:
    """The part of an upright image that the network sees, in pixels of the image.

    Attributes:
        left: The left edge.
        top: The upper edge.
        right: The right edge.
        bottom: The lower edge.
    """

    left: float
    top: float
    right: float
    bottom: float


def seen_region(width: int, height: int, how: Preprocessing) -> Region:
    """Return which part of an image the network sees.

    Args:
        width: The width of the upright image in pixels.
        height: Its height.
        how: How images are prepared.

    Returns:
        The part.
    """
    size = how.image_size
    if how.resize == "squash" or ((width, height) == (size, size) and how.crop_share == 1):
        return Region(0.0, 0.0, float(width), float(height))
    shorter = round(size / how.crop_share)
    scale = shorter / min(width, height)
    wide, high = max(int(width * scale), shorter), max(int(height * scale), shorter)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    across, down = width / wide, height / high
    return Region(left * across, top * down, (left + size) * across, (top + size) * down)


class Viewer:
    """Looks at training images of a case; a single thread at a time."""

    def __init__(self, case: Case) -> None:
        """Prepare to look at images; nothing is computed yet.

        Args:
            case: The prepared case.
        """
        self.case = case
        self._table = case.data.train.table
        self._places = {identity: place for place, identity in enumerate(self._table.ids.tolist())}
        self._lock = Lock()
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._layer = ""

    def image(self, image: int) -> Image.Image:
        """Decode an image.

        Args:
            image: Its id.

        Returns:
            The upright RGB image.

        Raises:
            InputError: It is gone or damaged.
        """
        place = self._places[image]
        try:
            return self._table.read(place)[0]
        except OSError as error:
            raise InputError(f"{self._table.names[place]}: cannot be read any more ({error})") from error

    def picture(self, image: int, *, small: bool) -> tuple[bytes, str]:
        """Return an image as the content of a file.

        Args:
            image: Its id.
            small: Whether a small picture is enough.

        Returns:
            The content and its media type; large images are scaled down.

        Raises:
            InputError: It is gone or damaged.
        """
        shown = self.image(image)
        shown.thumbnail((SMALL, SMALL) if small else (LARGEST, LARGEST))
        content = io.BytesIO()
        if max(shown.size) <= LOSSLESS:
            shown.save(content, "PNG")
            return content.getvalue(), "image/png"
        shown.save(content, "JPEG", quality=QUALITY)
        return content.getvalue(), "image/jpeg"

    def says(self, image: int) -> list[tuple[str, float]]:
        """Return what the network says of an image.

        Args:
            image: Its id.

        Returns:
            The three most probable categories with their probabilities, 0..1.

        Raises:
            InputError: The image is gone or damaged.
        """
        with self._lock:
            logits = predict_logits(self.case.model, self.case.data.train.select([image]))[2]
        chances, categories = logits[0].double().softmax(0).topk(min(SAID, logits.shape[1]))
        return [
            (self.case.classes[category], float(chance))
            for category, chance in zip(categories.tolist(), chances.tolist(), strict=True)
        ]

    def evidence(self, image: int) -> Float[np.ndarray, "height width"]:
        """Return where the evidence for the predicted category lies.

        Args:
            image: The id of the image.

        Returns:
            A map at the size of the upright image, 0 to 1 (the highest value); 0 where the network does not
            look.

        Raises:
            InputError: The image is gone or damaged.
        """
        width, height = self.image(image).size
        region = seen_region(width, height, self.case.data.preprocessing)
        scaled = Image.fromarray(self._square_map(image))
        left, top = round(region.left), round(region.top)
        size = max(round(region.right) - left, 1), max(round(region.bottom) - top, 1)
        whole = Image.new("F", (width, height))
        whole.paste(scaled.resize(size, Image.Resampling.BILINEAR), (left, top))
        return np.asarray(whole).clip(0, 1)

    def evidence_picture(self, image: int) -> bytes:
        """Return the map of evidence as a picture to be laid over the image.

        Args:
            image: The id of the image.

        Returns:
            A PNG in one colour, the more opaque the more evidence.

        Raises:
            InputError: The image is gone or damaged.
        """
        opacity = Image.fromarray((255 * self.evidence(image)).astype(np.uint8))
        opacity.thumbnail((LARGEST, LARGEST))
        picture = Image.new("RGB", opacity.size, COLOUR)
        picture.putalpha(opacity)
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()

    def proposal(self, image: int) -> Bool[np.ndarray, "height width"]:
        """Propose a mask (see `proposed_mask`).

        Args:
            image: The id of the image.

        Returns:
            True where the object may be; nowhere without evidence.

        Raises:
            InputError: The image is gone or damaged.
        """
        return proposed_mask(self.evidence(image))

    def _square_map(self, image: int) -> Float[np.ndarray, "size size"]:
        """Return the summed evidence on the square that the network sees, 0 to 1; computed once."""
        with self._lock:
            if image not in self._maps:
                self._maps[image] = self._computed_map(image)
                while len(self._maps) > KEPT:
                    self._maps.popitem(last=False)
            return self._maps[image]

    def _computed_map(self, image: int) -> Float[np.ndarray, "size size"]:
        """Compute the summed evidence of an image at the deepest layer that is fine enough to look at."""
        self._layer = self._layer or layer_to_look_at(self.case)
        (batch,) = self.case.data.train.select([image])
        square: np.ndarray = evidence_maps(self.case, batch, self._layer)[0]
        return square
