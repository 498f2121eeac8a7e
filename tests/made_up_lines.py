"""Made-up lines of the ledger, for the tests of what is said about them."""

from __future__ import annotations

import json


def made(program, architecture, dataset, arm, variant, seed, accuracy, **more):
    """Return a line as the programs write it."""
    own = {"classes_seed": 0, "image_size": 28, "protocol": "short", "images": 1000, **more}
    return {
        "program": program, "architecture": architecture, "dataset": dataset, "arm": arm, "variant": variant,
        "seed": seed, "accuracy": accuracy, "threads": 1, "device": "cpu, 1 thread(s)", "revision": "abc",
        "versions": {"torch": "2.0"}, "settings": {}, "seconds": 36.0, **own,
    }  # fmt: skip


def write(folder, lines):
    """Write lines into the files of their programs."""
    folder.mkdir(exist_ok=True)
    for line in lines:
        with (folder / f"{line['program']}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return folder


def cell_of(architecture, dataset, accuracies, **more):
    """Return the lines of Table 1's cell: for each arm and variant the accuracies of the seeds."""
    return [
        made("table1", architecture, dataset, arm, variant, seed, value, **more)
        for (arm, variant), values in accuracies.items()
        for seed, value in enumerate(values)
    ]


MNIST = {
    ("base", ""): (90.0, 91.0, 92.0),
    ("control", ""): (91.0, 92.0, 93.0),
    ("channel", "literal"): (92.0, 94.0, 96.0),  # 1, 2, 3 over the control
    ("channel", "ours"): (91.0, 92.0, 93.0),
}
