"""Measure whether loading is the bottleneck: our parquet path against torchvision's ImageFolder, and a step.

    python -m benchmarks.speed.loading --data PARQUET [--images 2000] [--image-size 84] [--out FILE.json]
    python -m benchmarks.speed.loading --data PARQUET --from-disk --image-size 224 --enlarge 256 --workers 2

The same encoded bytes are written out as files for ImageFolder, which gets the same transforms from
torchvision, the same batch size and as many worker processes as there are cores. Rates are images per
second: of the first epoch, which decodes, and of a later one; medians of alternate runs. With `--from-disk`
nothing is kept decoded in memory: both sides decode in every epoch, with the same number of processes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchdoctor import DataSettings, load_data, load_model
from torchdoctor.data import pixels
from torchdoctor.data.loader import Loader
from torchdoctor.images.normalisation import IMAGENET_MEAN, IMAGENET_STD
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

IN_GROUP = 100  # rows of a row group, as the library datasets writes images


def enlarged(content: bytes, side: int) -> bytes:
    """Return an image file as a JPEG whose shorter side has so many pixels."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = side / min(image.size)
    file = io.BytesIO()
    image.resize((round(scale * image.width), round(scale * image.height))).save(file, "JPEG", quality=90)
    return file.getvalue()


def written(folder: Path, parquet: Path, images: int, enlarge: int | None = None) -> tuple[Path, Path]:
    """Write some images as a parquet file and as class folders of the same bytes."""
    file = next(iter(sorted(parquet.glob("train-*.parquet"))))
    rows = pq.read_table(file)
    step = max(1, len(rows) // images)
    rows = rows.take(list(range(0, len(rows), step))[:images])
    if enlarge is not None:
        cells = [
            {"bytes": enlarged(row["bytes"], enlarge), "path": None} for row in rows["image"].to_pylist()
        ]
        rows = rows.set_column(rows.schema.get_field_index("image"), "image", pa.array(cells))
    pq.write_table(rows, folder / "train-00000-of-00001.parquet", row_group_size=IN_GROUP)
    for number, row in enumerate(rows.select(["image", "label"]).to_pylist()):
        content = row["image"]["bytes"]
        ending = str(Image.open(io.BytesIO(content)).format).lower()
        place = folder / "files" / f"{row['label']:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.{ending}").write_bytes(content)
    return folder, folder / "files"


def timed(batches: object) -> float:
    """Go through all batches; return the images per second."""
    started, count = time.perf_counter(), 0
    for batch in batches:  # type: ignore[attr-defined]
        count += len(batch[0] if isinstance(batch, list | tuple) else batch.images)
    return count / (time.perf_counter() - started)


def fresh(loader: Loader) -> Loader:
    """Return the loader with nothing decoded."""
    return Loader(loader.table, loader.preprocessing, loader.batch_size, loader.workers, loader.augment)


def main() -> None:
    """Measure, print a table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=84)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--enlarge", type=int, help="shorter side in pixels that the images are scaled to")
    parser.add_argument("--from-disk", action="store_true", help="keep nothing decoded, and train nothing")
    given = parser.parse_args()
    size = given.image_size
    if given.from_disk:
        pixels.CACHE_BYTES = 0
    with tempfile.TemporaryDirectory() as place:
        parquet, folder = written(Path(place), given.data, given.images, given.enlarge)
        transform = v2.Compose(
            [
                v2.PILToTensor(), v2.Resize(size, antialias=True), v2.CenterCrop(size),
                v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"), v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )  # fmt: skip
        theirs = DataLoader(
            ImageFolder(folder, transform), given.batch_size, shuffle=True, num_workers=given.workers
        )
        how = {"image_size": size, "batch_size": given.batch_size}
        settings = DataSettings(workers=given.workers)
        ours = load_data(f"parquet:{parquet}", settings=settings, **how).train
        files = load_data(f"folder:{folder}", settings=settings, **how).train
        rates: dict[str, list[float]] = {}
        for _ in range(given.repeats):
            for name, loader in (("parquet", fresh(ours)), ("folder", fresh(files))):
                if not given.from_disk:
                    rates.setdefault(f"{name}, first epoch", []).append(timed(loader.epoch(0, 0)))
                rates.setdefault(f"{name}, later epochs", []).append(timed(loader.epoch(1, 0)))
            rates.setdefault("ImageFolder + DataLoader, every epoch", []).append(timed(theirs))
        batch = next(iter(ours.epoch(0, 0)))
        for name in () if given.from_disk else ("small_resnet", "resnet34"):
            model = load_model(name, len(ours.table.classes), image_size=size)
            for _ in range(given.repeats):
                started = time.perf_counter()
                fit(model, lambda _epoch: [batch] * 2, Recipe(epochs=1), steps_per_epoch=2, seed=0)
                rate = 2 * len(batch.labels) / (time.perf_counter() - started)
                rates.setdefault(f"training {name} alone", []).append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    reference = medians["ImageFolder + DataLoader, every epoch"]
    print("| what | images / s | x ImageFolder |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:,.0f} | {value / reference:.1f} |")
    if given.out:
        given.out.write_text(json.dumps({"settings": vars(given) | {"data": given.data.name}, "rates": rates},
                                        default=str, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
