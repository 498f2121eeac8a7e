"""Reduce batches of images to rows of sums, layer by layer, within memory, and so that it can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.evidence.per_image import background_share, clean_evidence, evidence_by_place
from torchdoctor.evidence.probes import Draws, Probe, probes
from torchdoctor.evidence.rows import ImageRows, merge
from torchdoctor.images.batches import Batch, Images, only, take
from torchdoctor.network.frozen import FrozenModel, frozen_eval
from torchdoctor.network.memory import in_halves, out_of_memory
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import map_shapes, token_grids
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import Evidence, InputError, Progress, silent

Parts = MutableMapping[
    str, Mapping[str, np.ndarray]
]  # what was computed of batches, by a name for all it depends on
DrawnEvidence = Float[Tensor, "draw batch kernel map_height map_width"]
Maps = Float[Tensor, "batch kernel map_height map_width"]


def first_images(model: nn.Module, images: Images) -> Float[Tensor, "batch channel height width"]:
    """Return the first batch's images where a network can take them.

    Args:
        model: The network.
        images: Batches of normalised images.

    Returns:
        The images, on the network's device and in its floating type.

    Raises:
        InputError: There is no batch.
    """
    for batch in images:
        return batch.images.to(device_of(model), dtype_of(model))
    raise InputError("there are no images: the source yielded no batch; check the data and its split")


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values.

    Args:
        tensor: A tensor on any device.

    Returns:
        Its values in memory order, without its shape and type.
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def kept_part(
    parts: Parts | None, batch: Batch, compute: Callable[[Batch], dict[str, np.ndarray]], *settings: object
) -> Mapping[str, np.ndarray]:
    """Return what is computed of a batch, from what was stored where that is there.

    Args:
        parts: What was computed before, by batch; what is computed now is added. None: nothing is stored.
        batch: The batch.
        compute: Computes the arrays of the batch.
        settings: What else they depend on; their `repr` counts, so that nothing stale is ever used.

    Returns:
        The arrays.
    """
    if parts is None:
        return compute(batch)
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in (batch.ids, batch.labels, batch.images, batch.masks, batch.annotated):
        digest.update(b"-" if tensor is None else tensor_bytes(tensor))
    name = digest.hexdigest()[:32]
    arrays = dict(parts.get(name, {}))
    if not arrays:
        arrays = compute(batch)
        parts[name] = arrays
    return arrays


def measure(
    model: nn.Module,
    images: Images,
    ids: Sequence[int],
    deltas: Mapping[str, float],
    *,
    draws: Draws = 10,
    evidence: Evidence = "gradient",
    seed: int = 0,
    parts: Parts | None = None,
    sha256: str = "",
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> tuple[dict[str, ImageRows], dict[str, str]]:
    """Measure the evidence of images for their labels, and sum it over space (the inside of Eq. 4).

    Rows of shards of the images, merged by `rows.merge`, are those of all images at once. Where memory runs
    out, a pass takes fewer draws, then fewer images; the rows stay the same.

    Args:
        model: The network; it is left as it was.
        images: Batches of normalised images.
        ids: The ids of the images to measure.
        deltas: The range of the noise by layer, in units of the layer's map.
        draws: The number J of draws; 0: no noise; `exact`: the limit of many.
        evidence: abs(dy/dm), or abs(m dy/dm) where m is the map with its noise.
        seed: What the noise is keyed by.
        parts: What was computed before, by batch; what is computed now is added. None: nothing is stored.
        sha256: What stands for the network's weights in the names of the parts.
        progress: Told after every batch how many of the images are done.
        processes: The processes that work together: each measures a share of the
            batches, and every process gets the measurements of all.

    Returns:
        By layer the rows, and by layer the way they were computed (see `probes`).

    Raises:
        InputError: A layer cannot be used, or `draws` is `exact` and it has no closed form.
    """
    layers, ways, done = list(deltas), dict[str, Probe](), 0
    together = draws != "exact" and (draws == 0 or not any(deltas.values()))
    with frozen_eval(model) as frozen:

        def compute(batch: Batch) -> dict[str, np.ndarray]:
            if not ways and not together:
                # All processes try the ways on the same images, as a single process does.
                first = first_images(model, [batch] if processes.alone else only(images, ids))
                ways.update(probes(frozen, first, deltas, draws, evidence, seed))
            rows = _batch_rows(frozen, batch, layers, ways, evidence)
            return _packed(rows, [ways[layer].path if ways else "one gradient call" for layer in layers])

        def measured(batch: Batch) -> Mapping[str, np.ndarray]:
            nonlocal done
            arrays = kept_part(parts, batch, compute, "rows", sha256, deltas, draws, evidence, seed)
            done = min(done + processes.count * len(batch.ids), len(ids))
            progress("diagnose", done, len(ids))
            return arrays

        by_batch = list(processes.in_order(map(measured, only(images, ids, processes))))
    return _put_together(by_batch, layers) if by_batch else _no_rows(model, images, layers)


def _put_together(
    by_batch: Iterable[Mapping[str, np.ndarray]], layers: Sequence[str]
) -> tuple[dict[str, ImageRows], dict[str, str]]:
    """Return by layer the rows of all batches, and the way in which they were computed."""
    parts_of: dict[str, list[ImageRows]] = {layer: [] for layer in layers}
    paths: dict[str, str] = {}
    for arrays in by_batch:
        for layer, part, path in _unpacked(arrays, layers):
            parts_of[layer].append(part)
            paths[layer] = path
    return {layer: merge(parts_of[layer]) for layer in layers}, paths


def _no_rows(
    model: nn.Module, images: Images, layers: Sequence[str]
) -> tuple[dict[str, ImageRows], dict[str, str]]:
    """Return by layer the rows of no image, and that they were not computed in any way."""
    shapes = map_shapes(model, first_images(model, images), layers)
    return {layer: ImageRows.none(shapes[layer][0]) for layer in layers}, dict.fromkeys(layers, "none")


def _packed(rows: Mapping[str, ImageRows], paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the rows of all layers, and how they were computed, as one set of arrays."""
    arrays = {
        f"{number}.{name}": values
        for number, part in enumerate(rows.values())
        for name, values in part.arrays().items()
    }
    return {**arrays, "paths": np.frombuffer(",".join(paths).encode(), dtype=np.uint8).copy()}


def _unpacked(arrays: Mapping[str, np.ndarray], layers: Sequence[str]) -> list[tuple[str, ImageRows, str]]:
    """Return (layer, rows, path) of what `_packed` made."""
    paths = arrays["paths"].tobytes().decode().split(",")
    names = [column.name for column in fields(ImageRows)]
    return [
        (layer, ImageRows.of({name: arrays[f"{number}.{name}"] for name in names}), path)
        for number, (layer, path) in enumerate(zip(layers, paths, strict=True))
    ]


def _batch_rows(
    frozen: FrozenModel, batch: Batch, layers: Sequence[str], ways: Mapping[str, Probe], evidence: Evidence
) -> dict[str, ImageRows]:
    """Reduce one batch to rows, layer by layer; in halves where it does not fit into memory."""

    def work(start: int, stop: int) -> dict[str, ImageRows]:
        part = take(batch, torch.arange(start, stop))
        if not ways:
            return _rows_together(frozen, part, layers, evidence)
        return {layer: _rows_with_noise(ways[layer], part) for layer in layers}

    halves = in_halves(work, 0, len(batch.ids))
    return {layer: merge([half[layer] for half in halves]) for layer in layers}


def _rows_together(
    frozen: FrozenModel, batch: Batch, layers: Sequence[str], kind: Evidence
) -> dict[str, ImageRows]:
    """Reduce a batch without noise: all layers from one gradient call."""
    device = device_of(frozen.model)
    pixels, targets = batch.images.to(device, dtype_of(frozen.model)), batch.labels.to(device)
    evidence, maps, _ = clean_evidence(frozen, pixels, targets, layers, kind)
    places = token_grids(frozen.model, pixels, layers)
    return {
        layer: _reduced(batch, [(evidence[layer][None], maps[layer])], places.get(layer)) for layer in layers
    }


def _rows_with_noise(way: Probe, batch: Batch) -> ImageRows:
    """Reduce a batch at one layer, some draws at a time: fewer where they do not fit into memory."""
    model = way.frozen.model
    device = device_of(model)
    pixels, targets = batch.images.to(device, dtype_of(model)), batch.labels.to(device)
    grid = token_grids(model, pixels, [way.noise.layer]).get(way.noise.layer)
    while True:
        try:
            return _reduced(batch, way.draws(pixels, targets, batch.ids.to(device)), grid)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not way.shrink(len(pixels)):
                raise


def _reduced(
    batch: Batch, pairs: Iterable[tuple[DrawnEvidence, Maps]], grid: tuple[int, int] | None
) -> ImageRows:
    """Sum the evidence over space, draw by draw in float64, so that the chunks of draws do not matter."""
    by_kernel, everywhere, outside, last = [], [], [], None
    for evidence, maps in pairs:
        by_kernel.append(evidence.sum((-2, -1), dtype=torch.float64))
        total, on_background = evidence_by_place(evidence, batch, grid)
        everywhere.append(total)
        outside.append(on_background)
        last = maps
    assert last is not None
    everything, background = (torch.cat(sums).mean(0).cpu().numpy() for sums in (everywhere, outside))
    return ImageRows(
        ids=batch.ids.cpu().numpy(),
        labels=batch.labels.cpu().numpy(),
        evidence=torch.cat(by_kernel).mean(0).cpu().numpy(),
        activation=last.abs().mean((-2, -1), dtype=torch.float64).cpu().numpy(),
        level=last.mean((-2, -1), dtype=torch.float64).cpu().numpy(),
        background=background_share(everything, background),
    )
