"""Take a vision transformer, a Swin transformer and two hybrids through train and checkup on `scenes`.

    python -m benchmarks.study.token_networks --runs FOLDER [--networks vit swin coatnet mobilevit]
        [--out FILE]

The networks are small and trained from random weights for minutes; in the training images the background
gives the category away. For each: accuracy on both test splits before, which causes its errors get, and the
gain of the arm `swap` over the control of the same budget, at the learning rate that is measured for the
control. Runs that are finished are only read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.study import json_lines
from torchdoctor import Diagnosis
from torchdoctor.verbs import Settings, run_checkup, run_train

EPOCHS, FURTHER, RATE = 40, 5, 1e-3
SIZE = 64  # pixels along a side of the images


def vit(num_classes: int) -> nn.Module:
    """Return a vision transformer of four blocks on 8 x 8 patches, with a class token."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=num_classes
    )


def swin(num_classes: int) -> nn.Module:
    """Return a Swin transformer of three stages with windows of 4 x 4 tokens."""
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=SIZE, patch_size=4, window_size=4, embed_dim=32, depths=(2, 2, 2), num_heads=(2, 4, 8),
        num_classes=num_classes,
    )  # fmt: skip


def coatnet(num_classes: int) -> nn.Module:
    """Return a CoAtNet of one stage of convolutions and two of attention on maps of 8 x 8 and 4 x 4."""
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    config = MaxxVitCfg(
        embed_dim=(32, 48, 64), depths=(1, 2, 2), block_type=("C", "T", "T"), stem_width=16, stem_bias=True,
        transformer_cfg=MaxxVitTransformerCfg(dim_head=16),
    )  # fmt: skip
    return MaxxVit(config, img_size=SIZE, num_classes=num_classes)


def mobilevit(num_classes: int) -> nn.Module:
    """Return the smallest MobileViT: convolutions, and attention on their maps."""
    import timm

    model: nn.Module = timm.create_model("mobilevit_xxs", num_classes=num_classes)
    return model


NETWORKS = ("vit", "swin", "coatnet", "mobilevit")


def measured(name: str, runs: Path, seeds: int) -> dict[str, Any]:
    """Train a network, check it up, and return what was found."""
    begun = time.process_time()
    base, further = runs / f"{name}-base", runs / f"{name}-checkup"
    common: dict[str, Any] = {"model": f"benchmarks.study.token_networks:{name}", "data": "scenes"}
    common |= {"image_size": SIZE, "optimizer": "adamw", "device": "cpu"}
    trained = run_train(
        Settings(**common, epochs=EPOCHS, learning_rate=RATE, out=str(base)), resume=base.is_dir()
    )
    asked = Settings(
        **common, weights=str(trained.record["weights"]), epochs=FURTHER, arms=("control", "swap"),
        seeds=seeds, out=str(further),
    )  # fmt: skip
    run_checkup(asked, resume=further.is_dir())
    layers = Diagnosis.load(further / "diagnosis").layers
    background = {layer.name: round(float(np.nanmean(layer.background_share)), 3) for layer in layers}
    comparison = json.loads((further / "compare.json").read_text())
    causes = json.loads((further / "causes.json").read_text())
    return {
        "network": name,
        "background_share": background,
        "causes": causes["counts"],
        "accuracy": {
            arm: {split: numbers["accuracy"] for split, numbers in splits.items()}
            for arm, splits in comparison["arms"].items()
        },
        "gain": {
            split: arms["swap"]["gain"] for split, arms in comparison["against_control"].items()
        },
        "verdict": comparison["verdict"],
        "seconds": round(time.process_time() - begun),
    }  # fmt: skip


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: a row for each network."""
    rows = [
        "| network | errors | called background | before: i.i.d., shifted | control | swap | gain, shifted | "
        "gain, i.i.d. |",
        "|---|---:|---:|---|---|---|---|---|",
    ]
    for line in lines:
        means = [
            ", ".join(f"{np.mean(line['accuracy'][arm][split]):.1f}" for split in ("iid", "shifted"))
            for arm in ("base", "control", "swap")
        ]
        gains = [
            f"{gain['mean']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})"
            for gain in (line["gain"]["shifted"], line["gain"]["iid"])
        ]
        errors, named = sum(line["causes"].values()), line["causes"].get("background", 0)
        rows.append(f"| {' | '.join([line['network'], str(errors), str(named), *means, *gains])} |")
    return "\n".join(rows)


def main() -> None:
    """Measure and print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, help="where the runs are written")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    if given.table:
        print(table(json_lines.read(given.table)))
        return
    if given.runs is None:
        parser.error("--runs FOLDER is needed")
    for name in given.networks:
        line = measured(name, given.runs, given.seeds)
        json_lines.write(line, given.out)


if __name__ == "__main__":
    main()
