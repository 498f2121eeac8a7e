"""Let `checkup --auto` choose on three data sets, and keep the comparison of all arms.

    python benchmarks/study/auto.py --data ROOT --runs FOLDER [--sets scenes mini_imagenet10 tiny_imagenet20]
        [--out results]

A small residual network is trained from scratch, then `torchdoctor checkup --auto` tries remedies on the
validation split and compares the one it chose, and all others, with the control over three seeds on the test
split. ROOT holds the folders mini_imagenet30 and tiny_imagenet20 (boxes as masks). What is finished is
skipped, what was interrupted goes on. Results: auto_<set>.json, the comparison (images as counts) and trials.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ARMS = "control,treated,dfr,smoothing,averaging"
MASKED = f"{ARMS},swap,rrr"
TWENTY = ("--masks-per-category", "20")
SETS = {  # name: data, epochs of the base, what the checkup is told
    "scenes": (
        "scenes", (), "14",
        ("--arms", MASKED, "--epochs", "5", "--budget", "4", "--learning-rate", "0.05", *TWENTY),
    ),
    "mini_imagenet10": (
        "mini_imagenet@{root}/mini_imagenet30", ("--classes", "10", "--validation-share", "0.04"), "16",
        ("--arms", ARMS, "--epochs", "4", "--budget", "5"),
    ),
    "tiny_imagenet20": (
        "parquet:{root}/tiny_imagenet20", (), "12",
        ("--arms", MASKED, "--epochs", "3", "--budget", "8", *TWENTY),
    ),
}  # fmt: skip


def torchdoctor(*words: str | Path) -> int:
    """Run a verb in a process of its own; its exit code, or an error where it failed."""
    code = subprocess.run([sys.executable, "-m", "torchdoctor", *map(str, words)], check=False).returncode
    if code not in (0, 3, 4):
        raise SystemExit(f"torchdoctor {words[0]} ended with exit code {code}")
    return code


def kept(run: Path, code: int) -> dict[str, Any]:
    """Return what is kept of a finished checkup: images that were repaired or broken as counts."""
    found = json.loads((run / "compare.json").read_text())
    for split in found["against_control"].values():
        for arm in split.values():
            arm["repaired"], arm["broken"] = len(arm["repaired"]), len(arm["broken"])
    return {"exit_code": code, **found, "trials": json.loads((run / "trials.json").read_text())}


def table(found: dict[str, Any]) -> str:
    """Return the comparison as a Markdown table."""
    rows = ["| split | arm | accuracy | gain (95 %) | p (Holm) | worst category | calibration error |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for split, against in found["against_control"].items():
        for arm, seen in found["arms"].items():
            here = seen[split]
            mean = sum(here["accuracy"]) / len(here["accuracy"])
            gain = against[arm]["gain"] if arm in against else None
            said = (
                f"{gain['mean']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f}) | {gain['p_adjusted']:.3f}"
                if gain
                else "- | -"
            )
            worst, error = here["worst_category"], here["calibration_error"]
            rows.append(f"| {split} | {arm} | {mean:.1f} | {said} | {worst:.1f} | {error:.1f} |")
    return "\n".join(rows)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=".", help="the folder of data sets; not needed for scenes")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        spec, more, epochs, told = SETS[name]
        data = ("--data", spec.format(root=given.data), *more)
        base, run = given.runs / f"{name}-base", given.runs / name
        torchdoctor("train", "--model", "small_resnet", *data, "--epochs", epochs, "--out", base, "--resume")
        code = torchdoctor("checkup", "--auto", "--weights", base / "model.safetensors", *data, *told,
                           "--seeds", "3", "--out", run, "--resume")  # fmt: skip
        found = kept(run, code)
        (given.out / f"auto_{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {found['arm']}, {found['verdict']}: {found['reason']}\n{table(found)}", flush=True)


if __name__ == "__main__":
    main()
