"""Check outlines, turn them into pixels and pixels into outlines; shapely and pycocotools do the geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.mask_formats.annotation import Area
from torchdoctor.data.mask_formats.coordinates import number_of
from torchdoctor.types import InputError

Points = Sequence[tuple[float, float]]
Draw = Callable[[int, int], Area]
LONGEST = 4_000_000  # pixels of an outline; its memory grows with it
SMALL = 1_000_000  # pixels of a canvas that is never too large
ARC = 64  # segments of a quarter of a circle


def needed(module: str) -> Any:
    """Import a library that only masks in the formats of annotation programs need.

    Args:
        module: Its name, such as `shapely`.

    Returns:
        The module.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"the shapes of annotation programs are read with {module.partition('.')[0]}, which is not "
            "installed: pip install torchdoctor[masks]"
        ) from error


def polygon(points: Points) -> Draw:
    """Return what draws a polygon; where its outline crosses itself, parts enclosed twice are outside.

    Args:
        points: Its corners, at least 3, in pixels: 0, 0 is the upper left corner of the first pixel.

    Returns:
        The function that draws it: a pixel belongs to it where its centre does. It raises MaskError where the
        polygon lies off the image, or reaches too far beyond it while it crosses itself.

    Raises:
        MaskError: There are fewer than 3 different points, they lie on a line, or the outline is too long.
    """
    different = len(set(points))
    if different < 3:
        raise MaskError(f"{different} different points; a polygon needs at least 3", "shape")
    shapely = needed("shapely")
    if shapely.MultiPoint(points).convex_hull.area == 0:
        raise MaskError("a polygon whose points lie on a line; it has no area", "shape")
    corners = np.asarray(points, dtype=np.float64)

    def draw(width: int, height: int) -> Area:
        low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
        if low[0] >= width or low[1] >= height or high[0] <= 0 or high[1] <= 0:
            raise MaskError(f"lies off the image of {width} x {height} pixels", "off the image")
        left, top = -min(int(low[0]), 0), -min(int(low[1]), 0)
        wide, tall = max(int(high[0]), width) + left, max(int(high[1]), height) + top
        if wide * tall <= max(2 * width * height, SMALL):  # crossing lines need no care on a larger canvas
            return _filled(corners + np.array([left, top]), wide, tall)[
                top : top + height, left : left + width
            ]
        shape = shapely.Polygon(corners)
        if not shape.is_valid:
            text = f"crosses itself and reaches far beyond the image of {width} x {height} pixels"
            raise MaskError(text, "off the image")
        return drawn([shape])(width, height)

    return draw


def box(left: float, top: float, right: float, bottom: float) -> Draw:
    """Return what draws a box.

    Args:
        left: Its left edge in pixels.
        top: Its upper edge.
        right: Its right edge, where the first pixel ends at 1.
        bottom: Its lower edge, likewise.

    Returns:
        The function that draws it.

    Raises:
        MaskError: An edge is not finite, or the box has no area.
    """
    edges = [number_of(edge, "an edge") for edge in (left, top, right, bottom)]
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        found = ", ".join(f"{edge:g}" for edge in edges)
        raise MaskError(f"box {found}; expected a width and height above 0", "shape")
    return drawn([needed("shapely").box(*edges)])


def ellipse(x: float, y: float, wide: float, high: float, degrees: float = 0.0) -> Draw:
    """Return what draws an ellipse or, where both radii are equal, a circle.

    Args:
        x: The centre in pixels.
        y: The centre in pixels.
        wide: The radius in the direction of x before it is turned.
        high: The radius in the direction of y before it is turned.
        degrees: By how much it is turned clockwise around its centre.

    Returns:
        The function that draws it.

    Raises:
        MaskError: A radius is not above 0.
    """
    if min(wide, high) <= 0:
        raise MaskError(f"radii {wide:g} and {high:g}; expected numbers above 0", "shape")
    needed("shapely")
    affinity = needed("shapely.affinity")
    circle = needed("shapely").Point(x, y).buffer(1, quad_segs=ARC)
    shape = affinity.rotate(affinity.scale(circle, wide, high, origin=(x, y)), degrees, origin=(x, y))
    return drawn([shape])


def turned_box(left: float, top: float, width: float, height: float, degrees: float, about: Points) -> Draw:
    """Return what draws a box that is turned.

    Args:
        left: Its left edge before it is turned, in pixels.
        top: Its upper edge, likewise.
        width: Its width.
        height: Its height.
        degrees: By how much it is turned, clockwise as one sees it.
        about: The point around which it is turned, in a list.

    Returns:
        The function that draws it.

    Raises:
        MaskError: It has no area.
    """
    if min(width, height) <= 0:
        raise MaskError(f"box of {width:g} x {height:g}; expected a width and height above 0", "shape")
    plain = needed("shapely").box(left, top, left + width, top + height)
    return drawn([needed("shapely.affinity").rotate(plain, degrees, origin=about[0])])


def thick_line(points: Points, width: float) -> Draw:
    """Return what draws a line of some width.

    Args:
        points: Its points in pixels.
        width: Its width in pixels.

    Returns:
        The function that draws it; it raises MaskError where the line lies off the image.
    """
    return _painted(lambda canvas: canvas.line(list(points), fill=1, width=round(width)))


def discs(points: Points, radius: float) -> Draw:
    """Return what draws a disc around each point.

    Args:
        points: The points in pixels.
        radius: The radius of each disc in pixels.

    Returns:
        The function that draws them; it raises MaskError where they lie off the image.
    """

    def paint(canvas: ImageDraw.ImageDraw) -> None:
        for x, y in points:
            right, bottom = max(x + radius - 1, x - radius), max(y + radius - 1, y - radius)
            canvas.ellipse((x - radius, y - radius, right, bottom), fill=1)

    return _painted(paint)


def _painted(paint: Callable[[ImageDraw.ImageDraw], None]) -> Draw:
    """Return what draws with Pillow, for what has no area of its own."""

    def draw(width: int, height: int) -> Area:
        image = Image.new("L", (width, height))
        paint(ImageDraw.Draw(image))
        area = np.asarray(image) > 0
        if not area.any():
            raise MaskError(f"lies off the image of {width} x {height} pixels", "off the image")
        return area

    return draw


def pixels_at(left: int, top: int, read: Callable[[], Area]) -> Draw:
    """Return what puts pixels at a place of the image.

    Args:
        left: The column of their first pixel.
        top: The row of their first pixel.
        read: Returns the pixels; called when they are drawn.

    Returns:
        The function that draws them. It raises MaskError where they lie off the image.
    """

    def draw(width: int, height: int) -> Area:
        pixels = read()
        area = np.zeros((height, width), dtype=bool)
        rows = slice(max(top, 0), max(min(top + pixels.shape[0], height), 0))
        columns = slice(max(left, 0), max(min(left + pixels.shape[1], width), 0))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            raise MaskError(f"lies off the image of {width} x {height} pixels", "off the image")
        area[rows, columns] = pixels[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        return area

    return draw


def drawn(areas: Iterable[Any]) -> Draw:
    """Return what draws polygons of shapely.

    Args:
        areas: The polygons.

    Returns:
        The function that draws them: a pixel belongs to a polygon where its centre does. It raises MaskError
        where they lie off the image; what reaches beyond the image is cut off.
    """
    polygons = list(areas)

    def draw(width: int, height: int) -> Area:
        shapely = needed("shapely")
        area = np.zeros((height, width), dtype=bool)
        on_image = False
        for shape in polygons:
            if (
                shape.bounds[0] < -1
                or shape.bounds[1] < -1
                or shape.bounds[2] > width + 1
                or (shape.bounds[3] > height + 1)
            ):
                pieces = _areas_of(shape.intersection(shapely.box(-1, -1, width + 1, height + 1)))
            else:
                pieces = [shape]
            frame = shapely.box(0, 0, width, height)
            for piece in pieces:
                on_image |= piece.intersects(frame) and not piece.touches(frame)
                covered = _filled(np.asarray(piece.exterior.coords)[:-1], width, height)
                for hole in piece.interiors:
                    covered &= ~_filled(np.asarray(hole.coords)[:-1], width, height)
                area |= covered
        if not on_image:
            raise MaskError(f"lies off the image of {width} x {height} pixels", "off the image")
        return area

    return draw


def _filled(corners: np.ndarray, width: int, height: int) -> Area:
    """Return the pixels inside a ring that is at most a little larger than the image."""
    length = float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())
    if length > LONGEST:
        raise MaskError(f"an outline of {length:.0f} pixels; expected at most {LONGEST}", "shape")
    library = needed("pycocotools.mask")
    runs = library.frPyObjects([corners.ravel().tolist()], height, width)
    return library.decode(runs)[:, :, 0].astype(bool)


def _areas_of(geometry: Any) -> list[Any]:
    """Return the polygons in a geometry, without lines and points."""
    if geometry.geom_type == "Polygon":
        return [] if geometry.is_empty or geometry.area == 0 else [geometry]
    return [area for part in getattr(geometry, "geoms", ()) for area in _areas_of(part)]


def outlines(area: Area) -> list[Any]:
    """Return the outlines of the parts of a mask, exactly along the edges of pixels.

    Args:
        area: The pixels.

    Returns:
        A polygon of shapely for each connected part, with its holes; drawing them gives the same pixels.
    """
    shapely = needed("shapely")
    beside = np.zeros((area.shape[0], area.shape[1] + 2), dtype=np.int8)
    beside[:, 1:-1] = area
    steps = np.diff(beside, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    if not len(rows):
        return []
    whole = shapely.union_all(shapely.box(starts, rows, ends, rows + 1))
    return _areas_of(shapely.simplify(whole, 0))


def without_holes(shape: Any) -> Iterator[Any]:
    """Cut a polygon so that no part of it has a hole; the cuts lie between columns of pixels.

    Args:
        shape: A polygon of shapely.

    Yields:
        Polygons without holes that together cover the same area.
    """
    shapely = needed("shapely")
    pending = [shape]
    while pending:
        piece = pending.pop()
        if not piece.interiors:
            yield piece
            continue
        left, top, right, bottom = piece.bounds
        hole = piece.interiors[len(piece.interiors) // 2].bounds
        cut = float(np.clip(round((hole[0] + hole[2]) / 2), hole[0], hole[2]))
        cut = cut if left < cut < right else (hole[0] + hole[2]) / 2
        for half in (shapely.box(left, top, cut, bottom), shapely.box(cut, top, right, bottom)):
            pending += _areas_of(shapely.simplify(piece.intersection(half), 0))


def corners_of(shape: Any) -> list[tuple[float, float]]:
    """Return the corners of a polygon's outer ring.

    Args:
        shape: A polygon of shapely.

    Returns:
        The corners; the first is not repeated.
    """
    return [(float(x), float(y)) for x, y in shape.exterior.coords[:-1]]
