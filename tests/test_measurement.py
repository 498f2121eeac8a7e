"""Rows obey their laws: divided, interrupted, resumed or short of memory, they are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from reference import tiny_net
from test_diagnosis import batches_of, some_images
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.diagnosis.statistics import correlated_kernels, out_of_step, summarise
from torchdoctor.evidence import probes as evidence_module
from torchdoctor.evidence.measurement import measure
from torchdoctor.evidence.rows import ImageRows, merge
from torchdoctor.images.batches import Batch
from torchdoctor.network.gradients import noisy_tail
from torchdoctor.network.memory import in_halves, out_of_memory
from torchdoctor.types import InputError

DELTAS = {"conv1": 0.1, "conv3": 0.2}
FIELDS = ("correlation", "variance", "interval", "quantiles", "activation", "level", "agreement", "drift")

DELTA = DiagnosisSettings(delta=0.1)


def same(one, other, exact=True):
    """Compare two diagnoses field by field."""
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        for field in FIELDS:
            compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
            compare(getattr(mine, field), getattr(theirs, field), **({} if exact else {"rtol": 1e-12}))
        assert mine.path == theirs.path and mine.flags == theirs.flags


@pytest.mark.parametrize("draws", [0, 3])
def test_shards_merged_in_any_order_are_all_images_at_once(draws):
    model, images = tiny_net(), some_images()
    batches = batches_of(model, images, 6)
    ids = [image for batch in batches for image in batch.ids.tolist()]
    whole, _ = measure(model, batches, ids, DELTAS, draws=draws)
    shards = [measure(model, [one], one.ids.tolist(), DELTAS, draws=draws)[0] for one in batches]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        for layer in DELTAS:
            merged = merge([shards[place][layer] for place in order])
            for name, values in whole[layer].arrays().items():
                np.testing.assert_array_equal(merged.arrays()[name], values)
    pairs = merge(
        [merge([shards[3]["conv1"], shards[0]["conv1"]]), merge([shards[2]["conv1"], shards[1]["conv1"]])]
    )
    np.testing.assert_array_equal(pairs.evidence, whole["conv1"].evidence)


class Stops(dict):
    """Parts that are written, until the power fails."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __setitem__(self, name, arrays):
        if len(self) == self.after:
            raise KeyboardInterrupt
        super().__setitem__(name, arrays)


@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_a_resumed_diagnosis_equals_an_uninterrupted_one(after, monkeypatch):
    model, images = tiny_net(), some_images()
    batches = batches_of(model, images, 5)
    settings = {"layers": ["conv1", "conv3"], "draws": 2, "confidence": 0.0}
    wanted = diagnose(model, batches, **settings)
    parts = Stops(after)
    with pytest.raises(KeyboardInterrupt):
        diagnose(model, batches, parts=parts, **settings)
    again = dict(parts)
    assert len(again) == after
    same(diagnose(model, batches, parts=again, **settings), wanted)
    calls = []
    monkeypatch.setattr("torchdoctor.evidence.measurement._batch_rows", lambda *given: calls.append(given))
    same(diagnose(model, batches, parts=again, **settings), wanted)
    assert calls == []


def test_parts_of_other_images_or_settings_are_not_used():
    model, images = tiny_net(), some_images()
    parts = {}
    settings = {"layers": ["conv1"], "draws": 1, "confidence": 0.0, "parts": parts, "settings": DELTA}
    diagnose(model, batches_of(model, images, 12), **settings)
    known = set(parts)
    changed = images.clone()
    changed[0, 0, 0, 0] += 1e-9
    diagnose(model, batches_of(model, changed, 12), **settings)
    assert len(set(parts) - known) == 2  # the first batch, as predicted and as measured
    known = set(parts)
    batches = batches_of(model, images, 12)
    diagnose(model, batches, **settings, seed=1)
    assert len(set(parts) - known) == 2  # predictions do not depend on the noise


def test_short_memory_takes_smaller_passes_to_the_same_rows(monkeypatch):
    model, images = tiny_net(torch.nn.SiLU), some_images()
    batches = batches_of(model, images, 24)
    settings = {"layers": ["conv1", "conv3"], "draws": 6, "confidence": 0.0, "settings": DELTA}
    wanted = diagnose(model, batches, **settings)
    sizes = []

    def small(one, pixels, layer, noise):
        if len(pixels) * len(noise) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append((len(pixels), len(noise)))
        return noisy_tail(one, pixels, layer, noise)

    monkeypatch.setattr(evidence_module, "noisy_tail", small)
    same(diagnose(model, batches, **settings), wanted, exact=False)
    assert max(images * draws for images, draws in sizes) <= 9
    assert {images for images, _ in sizes} == {6}  # the draws go down to one before the images do


def test_memory_errors_of_all_kinds_are_known_and_others_pass():
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
    )
    assert not out_of_memory(RuntimeError("shape mismatch"))

    def work(start, stop):
        if stop - start > 3:
            raise MemoryError
        return list(range(start, stop))

    parts = in_halves(work, 0, 11)
    assert [one for part in parts for one in part] == list(range(11)) and max(map(len, parts)) <= 3
    with pytest.raises(RuntimeError, match="mismatch"):
        in_halves(lambda start, stop: (_ for _ in ()).throw(RuntimeError("mismatch")), 0, 4)
    with pytest.raises(MemoryError):
        in_halves(lambda start, stop: (_ for _ in ()).throw(MemoryError()), 0, 4)


def some_rows(evidence, labels):
    """Make rows out of evidence alone."""
    number = len(labels)
    ids = np.arange(number)
    table = np.array(evidence, dtype=float)
    return ImageRows(ids, np.array(labels), table, table, table, np.full(number, np.nan))


def summary(evidence, labels, categories, drift=None):
    """Summarise rows."""
    counts = np.bincount(labels, minlength=categories)
    kernels = len(evidence[0])
    drift = np.zeros(kernels) if drift is None else drift
    return summarise(
        "one", some_rows(evidence, labels), counts, theta=0.2, delta=0.0, deviation=1.0, drift=drift, path="x"
    )


def test_intervals_and_quantiles_are_those_of_scipy_and_numpy():
    generator = np.random.default_rng(0)
    values = generator.gamma(2.0, 1.0, (9, 3))
    found = summary(values, [0] * 9, 2)
    wanted = stats.t.interval(0.95, 8, loc=values.mean(0), scale=stats.sem(values, axis=0))
    np.testing.assert_allclose(found.interval[:, 0], wanted)
    np.testing.assert_allclose(
        found.quantiles[:, 0], np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    )
    assert np.isinf(summary(values[:1], [0], 2).interval[1, 0]).all()
    assert not found.correlation[1].any() and np.isnan(found.agreement[:, 1]).all()


def test_intervals_cover_the_mean_as_often_as_they_say():
    generator = np.random.default_rng(1)
    values = generator.gamma(3.0, 1.0, (400, 25, 1))
    inside = [
        low <= 3.0 <= high for low, high in (summary(one, [0] * 25, 1).interval[:, 0, 0] for one in values)
    ]
    assert 0.91 < np.mean(inside) < 0.98


def test_agreement_is_the_cosine_to_the_others():
    alike = summary([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], [0, 0, 0], 1)
    np.testing.assert_allclose(alike.agreement[:, 0], 1.0)
    apart = summary([[1.0, 0.0], [0.0, 1.0]], [0, 0], 1)
    np.testing.assert_allclose(apart.agreement[:, 0], 0.0)


def test_sparsity_is_the_least_share_that_carries_the_evidence():
    table = np.array([[9.0, 0.5, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [8.0, 1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(sparsity(table), [0.25, 1.0, np.nan, 0.5])
    assert sparsity(table, 1.0)[0] == 0.75


def test_rows_without_evidence_divide_nothing_by_nothing():
    with np.errstate(all="raise"):
        found = summary([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]], [0, 0, 1], 3)
    assert not found.correlated[0].any() and found.correlated[1].tolist() == [True, False, True]
    assert found.flags == (
        "category 0: no evidence at all, none correlated",
        "1 of 3 kernels carries no evidence for any category",
    )
    assert not correlated_kernels(np.zeros((2, 0)), 0.2).any()


def test_kernels_out_of_step_with_their_batch_norm_are_found():
    model, images = tiny_net(), some_images(64)
    model.bn1.train()
    for _ in range(400):
        model(images)
    model.eval()
    batches = batches_of(model, images, 32)
    clean = diagnose(model, batches, layers=["conv1", "conv2"], draws=0, confidence=0.0)
    assert clean.layers[0].drift.max() < 0.05 and not out_of_step(clean.layers[0].drift)
    with torch.no_grad():
        model.conv1.weight[3] = model.conv1.weight[3].flip(0, 1, 2) * 3
    hurt = diagnose(model, batches, layers=["conv1", "conv2"], draws=0, confidence=0.0)
    assert out_of_step(hurt.layers[0].drift) == (3,)
    assert any("kernels 3" in flag for flag in hurt.layers[0].flags)
    without = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(108, 4)
    ).double()
    bare = diagnose(
        without, [Batch(images, torch.arange(64) % 4, torch.arange(64))], layers=["0"], confidence=0.0
    )
    assert np.isnan(bare.layers[0].drift).all() and not out_of_step(bare.layers[0].drift)


def test_layers_by_pattern_all_and_last():
    model, images = tiny_net(), some_images()
    batches = batches_of(model, images, 24)

    def names(*layers):
        found = diagnose(model, batches, layers=list(layers), draws=0, confidence=0.0)
        return [one.name for one in found.layers]

    assert names("all") == ["conv1", "conv2", "conv3"]
    assert names("last:2") == ["conv2", "conv3"]
    assert names("conv[13]") == ["conv1", "conv3"]
    assert names("conv3", "last:1", "conv*") == ["conv1", "conv2", "conv3"]
    assert names("bn?") == ["bn1", "bn2", "bn3"]
    with pytest.raises(InputError, match=r"layers 'block\*': 0 modules fit, and no layer is called like it"):
        names("block*")
    with pytest.raises(InputError, match=r"'f\?': 1 modules fit, of which none"):
        names("f?")
    with pytest.raises(InputError, match="expected last:N"):
        names("last:0")
    with pytest.raises(InputError, match=r"expected a list of names, as in layers=\['all'\]"):
        diagnose(model, batches, layers="all")


def test_all_layers_without_noise_take_one_gradient_call(monkeypatch):
    model, images = tiny_net(), some_images()
    batches = batches_of(model, images, 24)
    calls = []
    right = torch.autograd.grad
    found = diagnose(model, batches, layers=["all"], draws=0, confidence=0.0)
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or right(*a, **k))
    measure(model, batches, batches[0].ids.tolist(), dict.fromkeys(["conv1", "conv2", "conv3"], 0.0), draws=0)
    assert len(calls) == 1 and {one.path for one in found.layers} == {"one gradient call"}
