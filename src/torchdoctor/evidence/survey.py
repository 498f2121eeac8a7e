"""Predict images and keep on the way the first two moments of the layers' maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.evidence.measurement import Parts, kept_part
from torchdoctor.images.batches import Batch
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import run_tapped


class Survey:
    """Predicts batches and keeps on the way the first two moments of the maps, by layer.

    A moment is [count, sum, sum of squares] of a map's values, in float64.

    Attributes:
        model: The network, in evaluation mode while batches are predicted.
        layers: The names of the layers.
        parts: What was computed before, by batch; what is computed now is added. None: nothing is stored.
        sha256: The checksum of the network's weights, part of the name of each part.
        moments: By layer, for each batch the moments of each image over all kernels.
        by_kernel: By layer, the moments of each kernel over all images.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], parts: Parts | None, sha256: str) -> None:
        """Start with no moments.

        Args:
            model: The network, in evaluation mode while batches are predicted.
            layers: Names of layers.
            parts: What was computed before, by batch; what is computed now is added. None: nothing is stored.
            sha256: The checksum of the network's weights, part of the name of each part.
        """
        self.model, self.layers, self.parts, self.sha256 = model, layers, parts, sha256
        self.moments: dict[str, list[Float[np.ndarray, "image moment"]]] = {layer: [] for layer in layers}
        self.by_kernel: dict[str, Float[np.ndarray, "moment kernel"]] = {}

    def look(self, batch: Batch) -> tuple[Float[Tensor, "batch category"], dict[str, np.ndarray]]:
        """Predict a batch and compute its moments, which `add` adds.

        Args:
            batch: Normalised images.

        Returns:
            The logits, float32 on the CPU, and the moments; from `parts` where they are there.

        Raises:
            InputError: A layer does not exist, is not called once, or gives no 4-dimensional map.
        """
        arrays = dict(kept_part(self.parts, batch, self._run, "survey", self.sha256, tuple(self.layers)))
        return torch.from_numpy(arrays.pop("logits")), arrays

    def add(self, moments: Mapping[str, np.ndarray]) -> None:
        """Add the moments of a batch: batch by batch, in the order in which they are predicted.

        Args:
            moments: What `look` computed, in this process or in another.
        """
        for number, layer in enumerate(self.layers):
            self.moments[layer].append(moments[f"moments{number}"])
            self.by_kernel[layer] = self.by_kernel.get(layer, 0.0) + moments[f"by_kernel{number}"]

    def _run(self, batch: Batch) -> dict[str, np.ndarray]:
        """Run the network once."""
        arrays: dict[str, np.ndarray] = {}

        def tap_for(number: int) -> Callable[[Tensor], Tensor]:
            def tap(output: Tensor) -> Tensor:
                flat = output.flatten(2)
                square = torch.linalg.vector_norm(flat, dim=2, dtype=torch.float64).square()
                total, count = flat.sum(2, dtype=torch.float64), torch.full_like(square, flat.shape[2])
                moments = torch.stack([count, total, square], 1)  # [image, moment, kernel]
                arrays[f"moments{number}"] = moments.sum(2).cpu().numpy()
                arrays[f"by_kernel{number}"] = moments.sum(0).cpu().numpy()
                return output.clone()

            return tap

        pixels = batch.images.to(device_of(self.model), dtype_of(self.model))
        taps = {layer: tap_for(number) for number, layer in enumerate(self.layers)}
        arrays["logits"] = run_tapped(self.model, pixels, taps).float().cpu().numpy()
        return arrays

    def deviations(self, ids: Sequence[int], chosen: Iterable[int]) -> dict[str, float]:
        """Return how much the values of each layer's maps scatter over chosen images.

        Args:
            ids: The ids of all images, in the order in which they were predicted.
            chosen: The ids of the chosen images.

        Returns:
            By layer, the standard deviation of all values of the maps, in units of the map; 0 without images.
        """
        wanted = np.isin(np.array(ids), np.array(sorted(chosen), dtype=np.int64))
        order = np.argsort(np.array(ids)[wanted], kind="stable")
        deviation_of = {}
        for layer in self.layers:
            rows = np.concatenate(self.moments[layer])[wanted][order]
            count, total, square = (math.fsum(column) for column in rows.T)
            variance = max(square / count - (total / count) ** 2, 0.0) if count else 0.0
            deviation_of[layer] = math.sqrt(variance)
        return deviation_of

    def drifts(self, norms: Mapping[str, nn.Module]) -> dict[str, Float[np.ndarray, " kernel"]]:
        """Return how far each kernel's mean and variance are from those its batch-norm remembers.

        Args:
            norms: By layer, the batch-norm right behind it (see `norms_behind`).

        Returns:
            By layer and kernel, the shift of the mean in remembered standard deviations, plus the absolute
            logarithm of the ratio of the variances; NaN at layers without a batch-norm.
        """
        drift_of = {}
        for layer in self.layers:
            count, total, square = self.by_kernel[layer]
            drift_of[layer] = np.full(len(count), np.nan)
            if layer in norms:
                norm: Any = norms[layer]
                mean, variance = total / count, np.maximum(square / count - (total / count) ** 2, 0.0)
                old_mean, old_variance = (
                    values.double().cpu().numpy() for values in (norm.running_mean, norm.running_var)
                )
                shift = np.abs(mean - old_mean) / np.sqrt(old_variance + norm.eps)
                ratio = (variance + norm.eps) / (old_variance + norm.eps)
                drift_of[layer] = shift + np.abs(np.log(ratio))
        return drift_of
