"""`estimate`: the bytes are those of real arrays, and k devices share the work as the formulas say."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from torchdoctor import Batch, InputError, diagnose
from torchdoctor.case.scaling import (
    GIGABIT,
    Rates,
    Work,
    bound_from,
    busiest_share,
    diagnosis_time,
    gathered_by_each,
    summed_by_each,
    treatment_time,
)
from torchdoctor.case.settings import Settings
from torchdoctor.cli.app import app
from torchdoctor.cli.estimate import size
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.table import ImageTable
from torchdoctor.diagnosis.footprint import INDEX, diagnosis_bytes
from torchdoctor.network.memory import bytes_for_backward
from torchdoctor.verbs import calibration
from torchdoctor.verbs.estimate import _numbers, estimate

RATES = Rates(
    forward=0.02, survey=0.03, evidence=0.5, summary=1e-4, sifting=1e-5, step_fixed=0.2, step_image=0.06,
    loading=400.0, bandwidth=10 * GIGABIT,
)  # fmt: skip
WORK = Work(
    images=6400, sifted=640, looked_at=6400, batch=64, gathered=10**9, gradients=10**8, steps=500, price=1.2
)
DEVICES = (1, 2, 3, 4, 7, 16, 64, 100)


def test_one_device_takes_what_was_measured():
    one = diagnosis_time(RATES, WORK, 1)
    assert one.network == 0
    assert one.computing == pytest.approx(6400 * (0.03 + 0.02) + 640 * 0.5)
    assert one.seconds == pytest.approx(one.computing + 6400 * 1e-5 + 640 * 1e-4)
    step = 0.2 + 64 * 0.06
    assert treatment_time(RATES, WORK, 1).seconds == pytest.approx(500 * 1.2 * step)


@pytest.mark.parametrize("time", [diagnosis_time, treatment_time])
@pytest.mark.parametrize("devices", DEVICES)
def test_k_devices_are_never_more_than_k_times_as_fast(time, devices):
    for work in (WORK, replace(WORK, images=6401, sifted=65, batch=63)):
        assert time(RATES, work, devices).seconds >= time(RATES, work, 1).seconds / devices - 1e-9


def test_a_batch_that_is_left_over_is_waited_for():
    assert busiest_share(640, 64, 1) == 640
    assert busiest_share(640, 64, 4) == 3 * 64  # ten batches: two processes have three
    assert busiest_share(100, 64, 2) == 64 and busiest_share(100, 64, 5) == 64
    assert busiest_share(10, 64, 1) == 10 and busiest_share(0, 64, 3) == 0


@pytest.mark.parametrize("time", [diagnosis_time, treatment_time])
def test_twice_the_bandwidth_halves_the_traffic(time):
    fast = replace(RATES, bandwidth=2 * RATES.bandwidth)
    slow, quick = time(RATES, WORK, 8), time(fast, WORK, 8)
    assert slow.network == pytest.approx(2 * quick.network) and slow.network > 0
    assert slow.seconds - quick.seconds == pytest.approx(quick.network)


def test_what_each_process_sends():
    assert gathered_by_each(800, 1) == 0 and gathered_by_each(800, 4) == 600
    assert summed_by_each(800, 1) == 0 and summed_by_each(800, 4) == 1200
    assert treatment_time(RATES, WORK, 4).network == pytest.approx(500 * 1.5 * 10**8 / (1.25e9))


def test_loading_that_all_share_is_the_shortest_time():
    slow = replace(RATES, loading=100.0)
    for devices in (64, 1000):
        assert treatment_time(slow, WORK, devices).seconds >= 500 * 64 / 100
    first = bound_from(lambda k: treatment_time(slow, WORK, k), "loading", 64)
    assert first is not None
    assert treatment_time(slow, WORK, first).bound == "loading"
    assert treatment_time(slow, WORK, first - 1).bound == "computing"
    assert bound_from(lambda k: treatment_time(RATES, WORK, k), "one process", 64) is None


def test_faster_devices_leave_loading_and_network_alone():
    fast = RATES.on_faster_devices(10.0)
    one, ten = diagnosis_time(RATES, WORK, 2), diagnosis_time(fast, WORK, 2)
    assert ten.computing == pytest.approx(one.computing / 10)
    assert (ten.loading, ten.network, ten.alone) == (one.loading, one.network, one.alone)


@pytest.fixture
def network():
    """Two convolutions and four categories."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)]
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *head).eval()


def test_bytes_are_those_of_a_real_diagnosis(network, tmp_path):
    parts: dict = {}
    images = Batch(torch.randn(12, 3, 9, 9), torch.arange(12) % 4, torch.arange(12))
    diagnosis = diagnose(network, [images], layers=["0", "2"], draws=2, confidence=0.0, parts=parts)
    sifted = int(diagnosis.counts.sum())
    kept = diagnosis_bytes(12, sifted, [5, 7], 4)
    stored = {
        name: sum(a.nbytes for key, a in arrays.items() if key != "paths") for name, arrays in parts.items()
    }
    rows, survey = (
        [stored[name] for name, arrays in parts.items() if ("paths" in arrays) == whether]
        for whether in (True, False)
    )
    assert sum(rows) == kept.rows and sifted > 0
    # ids and labels travel beside what is stored; of each kernel the moments are summed over a batch's images
    assert sum(survey) == kept.survey - 12 * 16 + 3 * 8 * (5 + 7)
    arrays = [getattr(layer, name) for layer in diagnosis.layers for name in layer.__dataclass_fields__]
    saved = [array for array in arrays if isinstance(array, np.ndarray)]
    whole = sum(array.nbytes for array in saved) + diagnosis.counts.nbytes + diagnosis.confusion.nbytes
    assert kept.statistics == whole
    diagnosis.save(tmp_path)
    assert kept.statistics <= (tmp_path / "diagnosis.safetensors").stat().st_size < kept.statistics + 8000


def test_the_list_of_images_takes_about_what_is_said():
    count = 20_000
    tracemalloc.start()
    names = tuple(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG" for i in range(count))
    none, ids = np.zeros(count, bool), np.arange(count)
    table = ImageTable(
        classes=("a",),
        labels=np.zeros(count, dtype=np.int64),
        names=names,
        ids=ids,
        read=lambda position: pytest.fail(f"image {position} is read"),
        has_mask=none,
    )
    loader = Loader(table, Preprocessing(8, (0.0,) * 3, (1.0,) * 3))
    plan = loader.plan(0, 0)
    places = loader.store.positions(table.ids)
    each = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert len(plan) == math.ceil(count / 64) and len(places) == count
    assert 0.75 * INDEX < each < 1.25 * INDEX


def test_what_a_step_keeps_is_counted(network):
    images = torch.randn(2, 3, 9, 9)
    # the input, two maps that a convolution or a mean reads (after ReLU), and the averages before the head
    expected = 4 * 2 * (3 * 81 + 5 * 49 + 7 * 25 + 7)
    assert bytes_for_backward(network, lambda: network(images)) == expected


@pytest.fixture
def quick(monkeypatch):
    """Measure for a moment only."""
    monkeypatch.setattr(calibration, "SECONDS", 0.01)
    monkeypatch.setattr(calibration, "DECODED", 1)
    monkeypatch.setattr(calibration, "SIFTED", 64)


def settings(**more):
    """Settings of an estimate that takes a moment."""
    chosen = {
        "model": "small_resnet",
        "image_size": 16,
        "batch_size": 4,
        "images_per_category": 5,
        "draws": 1,
    }
    return Settings(**{**chosen, **more})


def test_an_estimate_holds_together(quick):
    plan = estimate(settings(), images=1000, categories=7, devices=6, bandwidth=1.0, loading=50.0)
    assert [line["devices"] for line in plan["seconds"]["diagnosis"]] == [1, 2, 4, 6] == _numbers(6)
    kept = diagnosis_bytes(1000, 35, [plan["kernels"]], 7)
    assert plan["bytes"]["statistics"] >= kept.statistics
    assert plan["traffic"]["gradients_of_a_step"] == pytest.approx(5 / 3 * plan_weights(plan))
    treatment = plan["seconds"]["treatment"]
    assert treatment[0]["network"] == 0 and treatment[-1]["seconds"] >= treatment[-1]["loading"]
    text = " ".join(plan["assumptions"])
    assert "given with --loading" in text and "1 Gbit/s" in text and "summed in a ring" in text
    json.dumps(plan)


def plan_weights(plan):
    """Return the bytes of the network's parameters, from the memory of a step under momentum."""
    from torchdoctor import load_model

    model = load_model("small_resnet", 7, image_size=16)
    weights = sum(value.nbytes for value in model.parameters())
    others = sum(value.nbytes for value in model.buffers())
    assert plan["step_memory"]["weights_gradients_and_optimizer"] == 3 * weights + others
    return weights


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": 0}, "--images 0: expected a whole number of at least 1"),
        ({"categories": 1}, "--categories 1"),
        ({"devices": 0}, "--devices 0"),
        ({"bandwidth": 0.0}, "--bandwidth 0: expected a number above 0"),
        ({"loading": -1.0}, "--loading -1"),
        ({"speed": math.inf}, "--speed inf"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(change, text):
    with pytest.raises(InputError, match=text):
        estimate(settings(), **{"images": 10, "categories": 3, **change})


def test_a_model_must_be_named():
    with pytest.raises(InputError, match="--model is missing"):
        estimate(Settings(), images=10, categories=3)


def test_the_command_prints_tables_and_json(quick):
    flags = ["estimate", "--model", "small_resnet", "--images", "1000", "--categories", "7", "--devices", "2"]
    flags += ["--image-size", "16", "--batch-size", "4", "--draws", "0", "--images-per-category", "5"]
    shown = CliRunner().invoke(app, flags)
    assert shown.exit_code == 0, shown.output
    for part in (
        "Diagnosis",
        "Treatment",
        "sent by each device",
        "Assumptions:",
        "a JPEG of 500 x 375 pixels",
    ):
        assert part in shown.output
    asked = CliRunner().invoke(app, [*flags, "--json", "--loading", "10"])
    assert json.loads(asked.stdout)["measured"]["loading_images_per_second"] == 10


def test_the_numbers_of_images_and_categories_must_be_given():
    missing = CliRunner().invoke(app, ["estimate", "--model", "small_resnet", "--images", "10"])
    assert missing.exit_code == 2 and "--categories" in missing.output
    assert "estimate" in CliRunner().invoke(app, ["--help"]).output


def test_sizes_read_well():
    assert [size(n) for n in (1500, 2.2e6, 5.12e9, 4e11, 2e12)] == [
        "1.5 kB",
        "2.2 MB",
        "5.1 GB",
        "400.0 GB",
        "2.0 TB",
    ]
