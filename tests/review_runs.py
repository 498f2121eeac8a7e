"""A small finished run with labels and masks to ask about, and a server of its review in a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from processes import Command
from torchdoctor import Suspects
from torchdoctor.case.config import read_config, settings_from
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.suspects_result import Suspect
from torchdoctor.runs.folder import seal
from torchdoctor.verbs.diagnose import run_diagnose
from torchdoctor.verbs.train import run_train

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = (HOSTILE, "blue", "red")  # in the order of their names
WIDTH, HEIGHT = 60, 40


def draw_photographs(root: Path) -> None:
    """Draw photographs of 60 x 40 pixels: a bright square in the colour of the category."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 14), ("test", 4)):
        for channel, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for position in range(number):
                pixels = torch.randint(0, 120, (HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
                pixels[10:30, 20:40, 2 - channel] += 120
                file = f"{position}.png" if position else "<script>alert(2)</script>&\"'.png".replace("/", "")
                Image.fromarray(pixels.numpy()).save(root / split / name / file)


def make_run(folder: Path, suspects: int = 12) -> Path:
    """Train, diagnose, and list the first images of every category as suspicious; return the run."""
    draw_photographs(folder / "photographs")
    data = f"folder:{folder / 'photographs'}"
    base = Settings(
        model="small_resnet", data=data, out=str(folder / "base"), epochs=3, batch_size=16, image_size=32
    )
    assert run_train(base).exit_code == 0
    run = folder / "run"
    weights = str(folder / "base" / "model.safetensors")
    settings = Settings(model="small_resnet", data=data, weights=weights, out=str(run), device="cpu")
    assert run_diagnose(settings).exit_code in (0, 4)
    list_suspects(run, folder / "photographs" / "train", suspects)
    return run


def list_suspects(run: Path, train: Path, number: int) -> None:
    """Write a list of suspicious labels into a run, and seal it again."""
    files = sorted((CLASSES.index(one.parent.name), one.name, one) for one in train.rglob("*.png"))
    names = {place: f"{one.parent.name}/{one.name}" for place, (_, _, one) in enumerate(files)}
    labels = [label for label, _, _ in files]
    table = case_of_run(run).data.train.table
    assert all(names[one] == name for one, name in zip(table.ids.tolist(), table.names, strict=True))
    assert all(labels[one] == label for one, label in zip(table.ids.tolist(), table.labels, strict=True))
    listed = [
        Suspect(
            image, CLASSES[labels[image]], CLASSES[(labels[image] + 1) % 3], 0.99 - place / 100,
            tuple(one for one in table.ids.tolist() if labels[one] == labels[image] and one != image)[:2],
            tuple(one for one in table.ids.tolist() if labels[one] == (labels[image] + 1) % 3)[:2],
        )
        for place, image in enumerate(table.ids.tolist()[:: max(len(table) // number, 1)][:number])
    ]  # fmt: skip
    Suspects(tuple(listed), len(table), 0.2, 90.0).save(run, names=names)
    seal(run)


def mislabel_photographs(source: Path, target: Path, names: Sequence[str], number: int) -> dict[str, str]:
    """Copy images of some categories as Parquet files, every eighth for training under a wrong label.

    Args:
        source: The folder of Parquet files in the Hugging Face convention.
        target: The folder that is written.
        names: The names of the categories.
        number: How many training images of each category are copied; of test images a third.

    Returns:
        The right category of each training image, by its name.
    """
    import pyarrow
    from pyarrow import parquet

    target.mkdir()
    right: dict[str, str] = {}
    for split, count in (("train", number), ("test", number // 3)):
        (file,) = source.glob(f"{split}-*.parquet")
        table = parquet.read_table(file)
        known = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        labels = table["label"].to_numpy()
        categories = [known.index(name) for name in names]
        rows = np.concatenate([np.flatnonzero(labels == one)[:count] for one in categories])
        table, labels = table.take(rows), labels[rows].copy()
        if split == "train":
            files = [image["path"] for image in table["image"].to_pylist()]
            right = {name: known[label] for name, label in zip(files, labels, strict=True)}
            labels[::8] = [categories[categories.index(label) - 1] for label in labels[::8]]
        field = table.schema.field("label")
        table = table.set_column(table.column_names.index("label"), field, pyarrow.array(labels))
        parquet.write_table(table, target / file.name)
    return right


def list_mislabelled(run: Path, right: Mapping[str, str], number: int) -> None:
    """Write a list of images into a run, two of three with a wrong label, and seal the run again."""
    case = case_of_run(run)
    table, names = case.data.train.table, case.classes
    wrong: list[Suspect] = []
    fine: list[Suspect] = []
    for image, name, label in zip(table.ids.tolist(), table.names, table.labels, strict=True):
        given, truth = names[label], right[name]
        proposed = truth if truth != given else names[label - 1]
        like = [
            tuple(table.ids[(table.labels == names.index(one)) & (table.ids != image)][:2].tolist())
            for one in (given, proposed)
        ]
        (fine if truth == given else wrong).append(Suspect(image, given, proposed, 0.9, like[0], like[1]))
    listed = (*wrong[: 2 * number // 3], *fine[: number // 3])
    all_names = dict(zip(table.ids.tolist(), table.names, strict=True))
    Suspects(listed, len(table), 0.2, 90.0).save(run, names=all_names)
    seal(run)


def case_of_run(run: Path) -> Case:
    """Prepare the case of a run again."""
    return prepare(settings_from(read_config(run / "config.yaml")), "diagnose")


@dataclass
class Server:
    """A server of a review in a process of its own: a new one, or one that is forked in less time."""

    run: Path
    words: tuple[str, ...] = ("--no-browser",)
    forked: bool = False
    said: list[str] = field(default_factory=list)
    printed: str = ""  # when it has ended

    def __enter__(self) -> Server:
        """Start it and wait for the address of the page."""
        self.process = self._started("review", str(self.run), *self.words)
        for line in self.process.stderr:
            self.said.append(line)
            found = re.search(r"http://\S+", line)
            if found:
                break
        else:
            raise AssertionError(f"no address: {self.said}")
        self.address = found[0]
        self._rest = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self._rest.start()
        parts = urlsplit(self.address)
        self.host, self.port, self.token = parts.hostname, parts.port, parts.path.strip("/")
        return self

    def _started(self, *words: str) -> Command | subprocess.Popen[str]:
        """Start a command in a process of its own."""
        if self.forked:
            return Command(*words)
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        return subprocess.Popen(
            [sys.executable, "-m", "torchdoctor", *words], env=surroundings, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __exit__(self, *_error: object) -> None:
        """End it, where it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self._rest.join(5)
        self.process.stderr.close()
        self.printed = self.process.stdout.read()
        self.process.stdout.close()

    def kill(self) -> None:
        """Kill it as kill -9 does."""
        self.process.kill()
        self.process.wait(20)
