"""Measure what `--dry-run` costs for every model of the catalogue, and how far its estimate is off.

    python benchmarks/speed/dry_run.py [--models vgg16 ...] [--real [--treated vgg16 ...]] [--out FILE.jsonl]

Each model gets new weights and is planned by `torchdoctor checkup --data scenes --image-size 64 --dry-run` in
a process of its own: `processor_seconds` is what the system says that this process used, imports included,
over all threads. `import_processor_seconds` is what importing torch, torchvision and torchdoctor takes alone,
which tells how fast and how busy the machine is.

With `--real`, a second process estimates the seconds of a step as the dry run does (`estimated_seconds`),
then takes three steps with the full batch of 64 images and times the last two (`real_seconds`, their mean).
For the models of `--treated` it does the same under the default constraints: `real_price`, in steps without,
stands beside the `estimated_price` of the dry run. OMP_NUM_THREADS sets the threads of all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchdoctor import load_model
from torchdoctor.case.config import settings_from
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.timing import (
    StepTime,
    constraint_price,
    constraints_of,
    course_on,
    one_thread,
    tail_shares,
    time_one_step,
    timed,
)
from torchdoctor.files.writing import write_weights
from torchdoctor.images.batches import Batch
from torchdoctor.models.catalogue import MODELS
from torchdoctor.treatment.loop import Loop
from torchdoctor.treatment.recipe import PLAIN, Course
from torchdoctor.verbs.forecast import QuickTrial

IMAGE_SIZE, CATEGORIES = 64, 8
IMPORTS = "import torchvision, torchdoctor.cli.app, torchdoctor.verbs.forecast"


def used(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """Run a command and return the processor seconds of its process, and what it printed."""
    with (folder / "stdout").open("w+") as out:
        child = subprocess.Popen(command, cwd=folder, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
        out.seek(0)
        return usage.ru_utime + usage.ru_stime, out.read()


def flags(name: str, weights: Path) -> list[str]:
    """Return the flags that say what is planned."""
    size = str(IMAGE_SIZE)
    return ["--model", name, "--weights", str(weights), "--data", "scenes", "--image-size", size]


def planned(name: str, folder: Path) -> dict[str, Any]:
    """Plan a checkup of one model and return what that cost and what it said."""
    torch.manual_seed(0)
    weights = folder / f"{name}.safetensors"
    write_weights(weights, load_model(name, CATEGORIES, image_size=IMAGE_SIZE).state_dict())
    imports, _ = used([sys.executable, "-c", IMPORTS], folder)
    started = time.perf_counter()
    command = [sys.executable, "-m", "torchdoctor", "checkup", *flags(name, weights), "--dry-run", "--json"]
    seconds, printed = used(command, folder)
    plan = json.loads(printed)
    return {
        "model": name,
        "processor_seconds": round(seconds, 1),
        "import_processor_seconds": round(imports, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "planned_seconds": plan["seconds"],
        "timed": plan["how_sure"]["timed"],
    }


def real(name: str, folder: Path, treated: bool) -> dict[str, Any]:
    """Take real steps and return how long they took, beside the estimate of a dry run in the same process."""
    given = {
        "model": name,
        "weights": str(folder / f"{name}.safetensors"),
        "data": "scenes",
        "image_size": IMAGE_SIZE,
    }
    trial = QuickTrial()
    with one_thread():
        case = prepare(settings_from(given), "checkup", try_out=trial)
    batch = case.data.train.first_batch(0)
    estimate: StepTime = time_one_step(case, batch, trial.forward)
    seconds = mean_step(case, batch, PLAIN)
    line = {
        "images_timed": estimate.images,
        "estimated_seconds": round(estimate.seconds, 3),
        "real_seconds": round(seconds, 3),
        "estimate_over_real": round(estimate.seconds / seconds, 2),
    }
    if treated:
        marked = replace(batch, annotated=torch.arange(len(batch.labels)) < len(batch.labels) // 8)
        texts = constraints_of(case)
        price = mean_step(case, marked, course_on(case, marked, case.model)) / seconds
        line["estimated_price"] = round(constraint_price(case, texts, tail_shares(case, case.layers)), 2)
        line["real_price"] = round(price, 2)
    return line


def mean_step(case: Case, batch: Batch, course: Course) -> float:
    """Take three steps and return the mean seconds of the last two."""
    loop = Loop(case.model, replace(case.plan.recipe, epochs=1), course, 0, 3)
    loop.step_on(batch)
    return sum(timed(lambda: loop.step_on(batch)) for _ in range(2)) / 2


def main() -> None:
    """Print a line per model as it comes, and write all of them at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--real", action="store_true", help="also take real steps, which takes long")
    parser.add_argument("--treated", nargs="*", default=[], help="models whose treated steps are timed too")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to write")
    parser.add_argument("--steps-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps_of:
        print(json.dumps(real(options.steps_of, options.folder, options.steps_of in options.treated)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in options.models:
            line = planned(model, folder)
            if options.real:
                again = [sys.executable, str(Path(__file__).resolve()), "--steps-of", model, "--folder", name]
                line |= json.loads(used([*again, "--treated", *options.treated], folder)[1])
            lines.append({**line, "threads": torch.get_num_threads(), "torch": torch.__version__})
            print(json.dumps(lines[-1]), flush=True)
            (folder / f"{model}.safetensors").unlink()
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
