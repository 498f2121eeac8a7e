"""Replay measured times of single batches over k workers, and compare with the formula of `estimate`.

    python -m benchmarks.speed.scaling [--model small_resnet] [--image-size 32] [--times FILE] [--out FILE]

Batches of random images are measured one by one on this machine: prediction, evidence, and training steps of
several sizes. Without a GPU processor seconds of one thread are taken, so that other work on the machine does
not count. The replay then deals these times out by chance:

- diagnosis: batch i is of worker i mod k; one loader prepares all batches in order, two ahead of each worker;
  at the end all parts go round the ring; then one process works alone;
- training: in each step every worker draws a time of its own for its part, all wait for the slowest, and the
  gradients go round the ring in 2 (k - 1) pieces.

The formula knows only the means. `ratio` is the replay's time divided by the formula's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchdoctor.case.preparation import Case
from torchdoctor.case.scaling import GIGABIT, Rates, Work, diagnosis_time, treatment_time
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.footprint import row_bytes, survey_bytes
from torchdoctor.evidence.measurement import measure
from torchdoctor.evidence.survey import Survey
from torchdoctor.images.batches import Batch, take
from torchdoctor.network.prediction import predict_logits
from torchdoctor.network.taps import map_shapes
from torchdoctor.treatment.loop import Loop
from torchdoctor.treatment.recipe import PLAIN
from torchdoctor.verbs.calibration import random_case

AHEAD = 2  # batches that are loaded before each worker asks for them
WORKERS = (1, 2, 4, 8, 16, 32)
BATCHES, STEPS = (5000, 390), 1000  # of ImageNet-1k in batches of 256: all, and 100 images of each category


def pass_time(times: Sequence[float], workers: int, load: float, ahead: int = AHEAD) -> float:
    """Replay a pass over batches: every k-th is of one worker, and one loader prepares them in order.

    Args:
        times: Seconds that each batch is computed.
        workers: The number k of workers.
        load: Seconds in which the loader prepares a batch.
        ahead: How many batches wait for each worker at most.

    Returns:
        When the last worker is done, in seconds.
    """
    taken, done, ready = [0.0] * len(times), [0.0] * len(times), 0.0
    for batch, seconds in enumerate(times):
        room = taken[batch - workers * ahead] if batch >= workers * ahead else 0.0
        ready = max(ready, room) + load
        taken[batch] = max(ready, done[batch - workers] if batch >= workers else 0.0)
        done[batch] = taken[batch] + seconds
    return max(done, default=0.0)


def ring_gather(parts: Sequence[float], bandwidth: float) -> float:
    """Replay a gathering: in each of k - 1 rounds every worker hands one part on.

    Args:
        parts: The bytes of each worker.
        bandwidth: Bytes per second.

    Returns:
        Seconds: every round takes as long as the largest part.
    """
    return (len(parts) - 1) * max(parts) / bandwidth


def ring_sum(size: float, workers: int, bandwidth: float) -> float:
    """Replay the summing of gradients: 2 (k - 1) rounds, in each of which a k-th part is handed on.

    Args:
        size: The bytes of the gradients.
        workers: The number k of workers.
        bandwidth: Bytes per second.

    Returns:
        Seconds.
    """
    return sum(size / workers / bandwidth for _ in range(2 * (workers - 1)))


def diagnosis_replay(
    survey: Sequence[float], evidence: Sequence[float], rates: Rates, work: Work, workers: int
) -> float:
    """Replay a diagnosis.

    Args:
        survey: Seconds of the prediction of each batch.
        evidence: Seconds of the evidence of each batch.
        rates: Loading, bandwidth, and what one process does alone.
        work: What is to be done; its labels are not looked at.
        workers: The number k of workers.

    Returns:
        Seconds.
    """
    load = work.batch / rates.loading
    computed = pass_time(survey, workers, load) + pass_time(evidence, workers, load)
    batches = np.bincount(np.arange(len(survey)) % workers, minlength=workers)
    parts = work.gathered * batches / len(survey)
    alone = work.images * rates.sifting + work.sifted * rates.summary
    return computed + ring_gather(parts.tolist(), rates.bandwidth) + alone


def training_replay(
    draw: Callable[[int], np.ndarray], rates: Rates, work: Work, workers: int, ahead: int = AHEAD
) -> float:
    """Replay a training.

    Args:
        draw: Returns the seconds that each of k workers computes in a step.
        rates: Loading and bandwidth.
        work: What is to be done.
        workers: The number k of workers.
        ahead: How many batches are loaded before they are used.

    Returns:
        Seconds.
    """
    load, exchange = work.batch / rates.loading, ring_sum(work.gradients, workers, rates.bandwidth)
    ready, over, taken = 0.0, 0.0, [0.0] * work.steps
    for step in range(work.steps):
        ready = max(ready, taken[step - ahead] if step >= ahead else 0.0) + load
        taken[step] = max(ready, over)
        over = taken[step] + float(draw(workers).max()) + exchange
    return over


def clock() -> float:
    """Return seconds: by the clock with a GPU, else of the processor."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measured_batches(case: Case, batch: Batch, repeats: int) -> dict[str, list[float]]:
    """Measure prediction and evidence of the same batch several times."""

    def predict() -> object:
        return predict_logits(case.model, [batch], Survey(case.model, case.layers, None, ""))

    predict()
    survey, evidence, marks = [], [], [0.0]
    for _ in range(repeats):
        started = clock()
        predict()
        survey.append(clock() - started)
    parts = [replace(batch, ids=batch.ids + len(batch.ids) * number) for number in range(repeats + 1)]
    measure(
        case.model, parts, torch.cat([part.ids for part in parts]).tolist(), dict.fromkeys(case.layers, 0.1),
        draws=case.plan.diagnosis_draws, progress=lambda *_done: marks.append(clock()),
    )  # fmt: skip
    evidence = np.diff(marks[1:]).tolist()
    return {"survey": survey, "evidence": evidence}


def measured_steps(case: Case, batch: Batch, repeats: int) -> dict[int, list[float]]:
    """Measure training steps of the whole batch, its half, quarter and so on."""
    loop = Loop(case.model, replace(case.plan.recipe, epochs=1, learning_rate=0.0), PLAIN, 0, 1)
    sizes = [len(batch.ids) // workers for workers in WORKERS if len(batch.ids) // workers >= 2]
    times: dict[int, list[float]] = {}
    for size in sizes:
        part = take(batch, torch.arange(size))
        loop.step_on(part)
        for _ in range(repeats):
            started = clock()
            loop.step_on(part)
            times.setdefault(size, []).append(clock() - started)
    case.model.eval()
    return times


def line_through(steps: dict[int, list[float]]) -> tuple[float, float]:
    """Return the seconds of a step that do not depend on its images, and those of each image."""
    sizes = np.array(list(steps), dtype=float)
    means = np.array([np.mean(times) for times in steps.values()])
    slope, fixed = np.polyfit(sizes, means, 1, w=1 / means)
    return max(0.0, float(fixed)), float(slope)


def compared(
    batches: dict[str, list[float]], steps: dict[int, list[float]], rates: Rates, work: Work
) -> list[dict[str, object]]:
    """Compare formula and replay on every number of workers."""
    random, lines = np.random.default_rng(0), []
    count = {
        name: -(-number // work.batch)
        for name, number in (("survey", work.images), ("evidence", work.sifted))
    }
    dealt = {name: random.choice(batches[name], count[name]) for name in count}
    for workers in WORKERS:
        replayed = diagnosis_replay(
            dealt["survey"].tolist(), dealt["evidence"].tolist(), rates, work, workers
        )
        line = {"workers": workers, "job": "diagnosis", "replay": replayed}
        lines.append({**line, "formula": diagnosis_time(rates, work, workers).seconds})
        size = work.batch // workers
        if size in steps:
            own = np.array(steps[size])
            replayed = training_replay(lambda k, own=own: random.choice(own, k), rates, work, workers)
            line = {"workers": workers, "job": "training", "replay": replayed}
            lines.append({**line, "formula": treatment_time(rates, work, workers).seconds})
    return [{**line, "ratio": round(line["replay"] / line["formula"], 3)} for line in lines]  # type: ignore[operator]


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Measure batches of random images on a network of random weights."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    asked = Settings(
        model=given.model, image_size=given.image_size, batch_size=given.batch_size, draws=given.draws
    )
    case = random_case(asked, given.categories)
    batch = next(iter(case.data.train))
    batches = measured_batches(case, batch, given.repeats)
    steps = measured_steps(case, batch, given.repeats)
    pixels = batch.images[:1].to(next(case.model.parameters()).device)
    kernels = [shape[0] for shape in map_shapes(case.model, pixels, case.layers).values()]
    return {
        "settings": {name: value for name, value in vars(given).items() if name not in ("out", "times")},
        "batches": batches,
        "steps": steps,
        "survey_bytes": survey_bytes(len(kernels), given.categories),
        "row_bytes": sum(row_bytes(number) for number in kernels),
        "weights": sum(value.nbytes for value in case.model.parameters()),
    }


def compared_in_regimes(times: dict[str, Any]) -> list[dict[str, object]]:
    """Compare formula and replay where computing, loading or the network is scarce."""
    batch = times["settings"]["batch_size"]
    steps = {int(size): values for size, values in times["steps"].items()}
    fixed, by_image = line_through(steps)
    images, sifted = (number * batch for number in BATCHES)
    gathered = images * times["survey_bytes"] + sifted * times["row_bytes"]
    work = Work(images, sifted, 0, batch, gathered, times["weights"], STEPS)
    survey, evidence = (float(np.mean(times["batches"][name])) / batch for name in ("survey", "evidence"))
    rates = Rates(survey, survey, evidence, 0.0, 0.0, fixed, by_image, 1e9, 10 * GIGABIT)
    slow = (
        8 * times["weights"] / (fixed + by_image * batch)
    )  # the sum takes a quarter of a step of one worker
    regimes = {
        "computing alone": rates,
        "loading for eight workers": replace(rates, loading=8 / survey),
        "slow network": replace(rates, bandwidth=slow),
    }
    return [
        {"regime": name, **line}
        for name, regime in regimes.items()
        for line in compared(times["batches"], steps, regime, work)
    ]


def main() -> None:
    """Measure, compare, print a table, and write the lines where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="small_resnet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--categories", type=int, default=50)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--times", type=Path, help="an earlier output, whose times are replayed")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    times = measured(given) if given.times is None else json.loads(given.times.read_text().splitlines()[0])
    lines = compared_in_regimes(times)
    print("| regime | job | workers | replay, s | formula, s | ratio |\n|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line['regime']} | {line['job']} | {line['workers']} | {line['replay']:.1f} | "
            f"{line['formula']:.1f} | {line['ratio']} |"
        )
    if given.out:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in [times, *lines]))


if __name__ == "__main__":
    main()
