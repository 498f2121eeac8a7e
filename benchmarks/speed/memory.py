"""Measure the memory that an epoch of training images takes, for data of one and of ten times the size.

    python -m benchmarks.speed.memory [--images 2000] [--times 10] [--kinds folder parquet] [--out FILE.json]

Random JPEG files of 64 px are written in each format. A process of its own reads one shuffled epoch with
budgets so small that nothing fits into memory (`BUDGET` bytes of encoded images, no decoded ones), and tells
its peaks: `resident` is what the system counts (VmHWM, with pages of files that it may drop at any time),
`own` is the memory that belongs to the process alone (RssAnon, looked at after every batch). `base` is `own`
before the data set is opened. The index is what each further image adds to `own`.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

KINDS = ("folder", "parquet", "webdataset", "datasets")
BUDGET = 2**21
SIZE, DISTINCT, CATEGORIES, IN_GROUP, IN_FILE = 64, 100, 10, 100, 1000


def pictures(count: int) -> list[bytes]:
    """Return the content of JPEG files of random pixels; every file differs."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(DISTINCT):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file, "JPEG")
        made.append(file.getvalue())
    return [made[number % DISTINCT] + number.to_bytes(4, "little") for number in range(count)]


def write(kind: str, folder: Path, contents: list[bytes]) -> str:
    """Write training images in a format, and one test image for each ten; return the `--data` value."""
    tenth = contents[: max(CATEGORIES * 2, len(contents) // 10)]
    if kind == "datasets":
        import datasets

        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=[f"c{n}" for n in range(CATEGORIES)])
        )
        splits = {
            split: datasets.Dataset.from_dict(
                {"image": [{"bytes": content, "path": None} for content in part],
                 "label": [number % CATEGORIES for number in range(len(part))]},
                features=features,
            )
            for split, part in (("train", contents), ("test", tenth))
        }  # fmt: skip
        datasets.DatasetDict(splits).save_to_disk(str(folder))
        return f"datasets:{folder}"
    for split, part in (("train", contents), ("test", tenth)):
        for start in range(0, len(part), IN_FILE):
            rows = range(start, min(len(part), start + IN_FILE))
            _write_part(kind, folder, f"{split}-{start // IN_FILE:04d}", [(row, part[row]) for row in rows])
    return f"{kind}:{folder}"


def _write_part(kind: str, folder: Path, name: str, rows: list[tuple[int, bytes]]) -> None:
    """Write some images of a split."""
    if kind == "folder":
        for number, content in rows:
            place = folder / name.split("-")[0] / f"c{number % CATEGORIES}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:06d}.jpg").write_bytes(content)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        images = [{"bytes": content, "path": f"{number:06d}.jpg"} for number, content in rows]
        labels = [number % CATEGORIES for number, _ in rows]
        pq.write_table(
            pa.table({"image": images, "label": labels}), folder / f"{name}.parquet", row_group_size=IN_GROUP
        )
        return
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for number, content in rows:
            for ending, data in (("jpg", content), ("cls", str(number % CATEGORIES).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _told(name: str) -> int:
    """Return a number of bytes that the system tells about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def read(spec: str, keep: bool = False) -> dict[str, int]:
    """Read an epoch in this process; return the number of images and its peaks of memory in bytes.

    With `keep`, images stay in memory as small data do.
    """
    import torch

    from torchdoctor import DataSettings, load_data
    from torchdoctor.data import pixels
    from torchdoctor.data.readers import parquet_blocks

    torch.set_num_threads(1)
    if not keep:
        pixels.CACHE_BYTES = 0
        parquet_blocks.ENCODED_BYTES = parquet_blocks.WINDOW_BYTES = BUDGET
    if spec.startswith("datasets:"):
        import datasets

        datasets.disable_progress_bars()
    base = own = _told("RssAnon")
    settings = DataSettings(workers=0, validation_share=0.1, image_size=SIZE)
    loader = load_data(spec, settings=settings).train
    seen = torch.zeros(int(loader.table.ids.max()) + 1, dtype=torch.bool)
    for batch in loader.epoch(0, 0):
        seen[batch.ids] = True
        own = max(own, _told("RssAnon"))
    return {
        "images": int(seen.sum()), "expected": len(loader), "base": base, "own": own,
        "resident": _told("VmHWM"),
    }  # fmt: skip


def measured(kind: str, images: int, folder: Path, keep: bool = False) -> dict[str, int]:
    """Write images in a format, and read an epoch of them in a process of its own."""
    spec = write(kind, folder / f"{kind}-{images}", pictures(images))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.memory", "--read", spec, *(["--keep"] if keep else [])],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compared(kind: str, images: int, times: int, keep: bool = False) -> dict[str, Any]:
    """Measure a format with some images and with several times as many."""
    with tempfile.TemporaryDirectory() as place:
        small, large = (measured(kind, count, Path(place), keep) for count in (images, times * images))
    more = large["images"] - small["images"]
    return {
        "kind": kind, "small": small, "large": large,
        "bytes_per_image": (large["own"] - small["own"]) / more,
        "own_ratio": large["own"] / small["own"], "resident_ratio": large["resident"] / small["resident"],
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="let images stay in memory, for comparison")
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read, given.keep)))
        return
    print("| source | images | base MB | own MB | resident MB | own, x | bytes an image |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for kind in given.kinds:
        results.append(found := compared(kind, given.images, given.times, given.keep))
        for size in ("small", "large"):
            told = found[size]
            memory = " | ".join(f"{told[name] / 2**20:.0f}" for name in ("base", "own", "resident"))
            last = f"{found['own_ratio']:.2f} | {found['bytes_per_image']:.0f}" if size == "large" else " | "
            print(f"| {kind} | {told['images']:,} | {memory} | {last} |", flush=True)
        if given.out:
            settings = {name: getattr(given, name) for name in ("images", "times", "keep")}
            given.out.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
