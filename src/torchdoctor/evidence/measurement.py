"""Reduce batches of images to rows of sums, layer by layer, within memory, and so that it can be resumed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.evidence.per_image import (
    DrawnEvidence,
    Draws,
    Maps,
    Probe,
    background_share,
    clean_evidence,
    evidence_by_place,
    probes,
)
from torchdoctor.evidence.rows import ImageRows, merge
from torchdoctor.images.batches import Batch, Images, only, take
from torchdoctor.network.hooks import map_shapes, measuring, run_tapped
from torchdoctor.network.memory import in_halves, out_of_memory
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.types import Evidence, InputError, Progress, silent

Parts = MutableMapping[str, Mapping[str, np.ndarray]]
Pairs = Iterable[
    tuple[
        Float[Tensor, "draw batch kernel map_height map_width"],
        Float[Tensor, "batch kernel map_height map_width"],
    ]
]


def first_images(model: nn.Module, images: Images) -> Float[Tensor, "batch channel height width"]:
    """Return the first batch's images where the network lies; InputError when there is none."""
    for batch in images:
        return batch.images.to(device_of(model), dtype_of(model))
    raise InputError("there are no images: the source yielded no batch; check the data and its split")


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _part_name(batch: Batch, *settings: object) -> str:
    """Name what is computed of a batch after everything it depends on: nothing stale is ever found."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in (batch.ids, batch.labels, batch.images, batch.masks, batch.annotated):
        digest.update(b"-" if tensor is None else tensor_bytes(tensor))
    return digest.hexdigest()[:32]


class Survey:
    """Predicts batches and keeps on the way the first two moments of the maps, by layer.

    `moments` are of single images, over all kernels; `by_kernel` of all images, for each kernel.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], parts: Parts | None, sha256: str) -> None:
        self.model, self.layers, self.parts, self.sha256 = model, layers, parts, sha256
        self.moments: dict[str, list[Float[np.ndarray, "image moment"]]] = {one: [] for one in layers}
        self.by_kernel: dict[str, Float[np.ndarray, "moment kernel"]] = {}

    def __call__(self, batch: Batch) -> Float[Tensor, "batch category"]:
        """Return the logits of a batch, from `parts` where they are there."""
        name = "" if self.parts is None else _part_name(batch, "survey", self.sha256, tuple(self.layers))
        kept = {} if self.parts is None else dict(self.parts.get(name, {}))
        if not kept:
            kept = self._run(batch)
            if self.parts is not None:
                self.parts[name] = kept
        for number, layer in enumerate(self.layers):
            self.moments[layer].append(kept[f"moments{number}"])
            self.by_kernel[layer] = self.by_kernel.get(layer, 0.0) + kept[f"by_kernel{number}"]
        return torch.from_numpy(kept["logits"])

    def _run(self, batch: Batch) -> dict[str, np.ndarray]:
        """Run the network once."""
        found: dict[str, np.ndarray] = {}

        def tap_for(number: int) -> Callable[[Tensor], Tensor]:
            def tap(output: Tensor) -> Tensor:
                flat = output.flatten(2)
                square = torch.linalg.vector_norm(flat, dim=2, dtype=torch.float64).square()
                total, count = flat.sum(2, dtype=torch.float64), torch.full_like(square, flat.shape[2])
                moments = torch.stack([count, total, square], 1)  # [image, moment, kernel]
                found[f"moments{number}"] = moments.sum(2).cpu().numpy()
                found[f"by_kernel{number}"] = moments.sum(0).cpu().numpy()
                return output.clone()

            return tap

        pixels = batch.images.to(device_of(self.model), dtype_of(self.model))
        taps = {layer: tap_for(number) for number, layer in enumerate(self.layers)}
        found["logits"] = as_logits(run_tapped(self.model, pixels, taps)).float().cpu().numpy()
        return found

    def deviations(self, ids: Sequence[int], chosen: Iterable[int]) -> dict[str, float]:
        """Return the standard deviation of all values of each layer's maps over the chosen images."""
        wanted = np.isin(np.array(ids), np.array(sorted(chosen), dtype=np.int64))
        order = np.argsort(np.array(ids)[wanted], kind="stable")
        found = {}
        for layer in self.layers:
            rows = np.concatenate(self.moments[layer])[wanted][order]
            count, total, square = (math.fsum(column) for column in rows.T)
            found[layer] = math.sqrt(max(square / count - (total / count) ** 2, 0.0)) if count else 0.0
        return found

    def drifts(self, norms: Mapping[str, nn.Module]) -> dict[str, Float[np.ndarray, " kernel"]]:
        """Return how far each kernel's mean and variance are from those its batch-norm remembers.

        The shift of the mean in the remembered standard deviation, plus the absolute logarithm of the
        ratio of the variances; NaN at layers without a batch-norm right behind them.
        """
        found = {}
        for layer in self.layers:
            count, total, square = self.by_kernel[layer]
            found[layer] = np.full(len(count), np.nan)
            if layer in norms:
                norm: Any = norms[layer]
                mean, variance = total / count, np.maximum(square / count - (total / count) ** 2, 0.0)
                was, width = (one.double().cpu().numpy() for one in (norm.running_mean, norm.running_var))
                shift = np.abs(mean - was) / np.sqrt(width + norm.eps)
                found[layer] = shift + np.abs(np.log((variance + norm.eps) / (width + norm.eps)))
        return found


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
) -> tuple[dict[str, ImageRows], dict[str, str]]:
    """Return the rows of these images at every layer of `deltas` (noise range by layer), and the paths.

    Rows of shards of the images, merged by `rows.merge` in any order, are those of all images at once.
    Where memory runs out, a pass takes fewer draws, then fewer images; the rows stay the same.
    """
    layers = list(deltas)
    found: dict[str, list[ImageRows]] = {layer: [] for layer in layers}
    ways: dict[str, Probe] = {}
    paths = dict.fromkeys(layers, "none")
    together = draws != "exact" and (draws == 0 or not any(deltas.values()))
    done = 0
    with measuring(model):
        for batch in only(images, ids):
            name = (
                _part_name(batch, "rows", sha256, deltas, draws, evidence, seed) if parts is not None else ""
            )
            kept = {} if parts is None else dict(parts.get(name, {}))
            if not kept:
                if not ways and not together:
                    pixels = batch.images.to(device_of(model), dtype_of(model))
                    ways = probes(model, pixels, deltas, draws, evidence, seed)
                rows = _batch_rows(model, batch, layers, ways, evidence)
                kept = _packed(rows, [ways[one].path if ways else "one gradient call" for one in layers])
                if parts is not None:
                    parts[name] = kept
            for layer, part, path in _unpacked(kept, layers):
                found[layer].append(part)
                paths[layer] = path
            done += len(batch.ids)
            progress("diagnose", done, len(ids))
    if not done:
        shapes = map_shapes(model, first_images(model, images), layers)
        return {layer: ImageRows.none(shapes[layer][0]) for layer in layers}, paths
    return {layer: merge(found[layer]) for layer in layers}, paths


def _packed(rows: Mapping[str, ImageRows], paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the rows of all layers, and how they were found, as one set of arrays."""
    kept = {
        f"{number}.{name}": values
        for number, one in enumerate(rows.values())
        for name, values in one.arrays().items()
    }
    return {**kept, "paths": np.frombuffer(",".join(paths).encode(), dtype=np.uint8).copy()}


def _unpacked(kept: Mapping[str, np.ndarray], layers: Sequence[str]) -> list[tuple[str, ImageRows, str]]:
    """Return (layer, rows, path) of what `_packed` made."""
    paths = kept["paths"].tobytes().decode().split(",")
    names = [one.name for one in fields(ImageRows)]
    return [
        (layer, ImageRows.of({name: kept[f"{number}.{name}"] for name in names}), path)
        for number, (layer, path) in enumerate(zip(layers, paths, strict=True))
    ]


def _batch_rows(
    model: nn.Module, batch: Batch, layers: Sequence[str], ways: Mapping[str, Probe], evidence: Evidence
) -> dict[str, ImageRows]:
    """Reduce one batch to rows, layer by layer; in halves where it does not fit into memory."""

    def work(start: int, stop: int) -> dict[str, ImageRows]:
        some = take(batch, torch.arange(start, stop))
        if not ways:
            return _rows_together(model, some, layers, evidence)
        return {layer: _rows_with_noise(model, some, ways[layer]) for layer in layers}

    halves = in_halves(work, 0, len(batch.ids))
    return {layer: merge([one[layer] for one in halves]) for layer in layers}


def _rows_together(
    model: nn.Module, batch: Batch, layers: Sequence[str], evidence: Evidence
) -> dict[str, ImageRows]:
    """Reduce a batch without noise: all layers from one gradient call."""
    device = device_of(model)
    pixels, targets = batch.images.to(device, dtype_of(model)), batch.labels.to(device)
    found, maps, _ = clean_evidence(model, pixels, targets, layers, evidence)
    return {layer: _reduced(batch, [(found[layer][None], maps[layer])]) for layer in layers}


def _rows_with_noise(model: nn.Module, batch: Batch, way: Probe) -> ImageRows:
    """Reduce a batch at one layer, some draws at a time: fewer where they do not fit into memory."""
    device = device_of(model)
    pixels, targets = batch.images.to(device, dtype_of(model)), batch.labels.to(device)
    while True:
        try:
            return _reduced(batch, way.draws(pixels, targets, batch.ids.to(device)))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not way.shrink(len(pixels)):
                raise


def _reduced(batch: Batch, pairs: Iterable[tuple[DrawnEvidence, Maps]]) -> ImageRows:
    """Sum the evidence over space, draw by draw in float64, so that the chunks of draws do not matter."""
    by_kernel, everywhere, outside, last = [], [], [], None
    for evidence, maps in pairs:
        by_kernel.append(evidence.sum((-2, -1), dtype=torch.float64))
        total, on_background = evidence_by_place(evidence, batch)
        everywhere.append(total)
        outside.append(on_background)
        last = maps
    assert last is not None
    everything, background = (torch.cat(one).mean(0).cpu().numpy() for one in (everywhere, outside))
    return ImageRows(
        ids=batch.ids.cpu().numpy(),
        labels=batch.labels.cpu().numpy(),
        evidence=torch.cat(by_kernel).mean(0).cpu().numpy(),
        activation=last.abs().mean((-2, -1), dtype=torch.float64).cpu().numpy(),
        level=last.mean((-2, -1), dtype=torch.float64).cpu().numpy(),
        background=background_share(everything, background),
    )
