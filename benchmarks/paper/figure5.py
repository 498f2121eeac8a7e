"""Figure 5: where in the image the evidence lies, before and after the treatments.

    python benchmarks/paper/figure5.py --data ROOT [--protocol short] [--budget MINUTES]

Paper, pictures alone: "the space-wise constraint successfully restrains the irrelevant background areas",
with the channel-wise constraint "most irrelevant areas are also restrained", and Grad-CAM's maps "contain
some background areas". Here: the same pictures of test images that the base is least sure of (`pip install
torchdoctor[cam]` for Grad-CAM's), and the measurable side of the claim, a line per arm: the share of the
evidence on the background over all test images with a mask, at the last layer, for both kinds of evidence.
`background_area` is the share that evidence spread evenly over the image would have. The arms are ours
(variant `ours`: gradient x activation, `share`).
Got in `short` (3 seeds, 4 minutes of one core): 36 % of the evidence on the background, 31 % with the
space-wise constraint, 35 % with the channel-wise one; accuracy lower by 0.3 and 0.8, not provably;
docs/ledger.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor, nn

from benchmarks.experiment.arms import OURS, TAU, arms_at, need_masks
from benchmarks.experiment.cells import Cell
from benchmarks.experiment.recording import (
    has_picture,
    is_missing,
    keep_picture,
    mean_of,
    number,
    picture_name,
    record,
)
from benchmarks.experiment.running import arguments, bench_of, run_cells
from benchmarks.paper.figure5_drawing import draw_maps
from torchdoctor import treat
from torchdoctor.evidence.measurement import first_images
from torchdoctor.images.masks import background_mask
from torchdoctor.network.taps import map_shapes
from torchdoctor.proof.compare import background_share
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.types import Evidence

MASKS = 20  # per category, as in Table 1
VARIANTS = {"base": "", "control": "", "channel": "ours", "space": "ours", "all": "ours"}


def figure_5(cell: Cell) -> bool:
    """Measure a cell; the pictures are of the first network that is measured."""
    need_masks(cell)
    names = {
        one: picture_name(cell.protocol.name, "figure5", cell.dataset, one) for one in get_args(Evidence)
    }
    drawn = all(has_picture(cell.bench, name) for name in names.values())
    missing = [arm for arm, variant in VARIANTS.items() if is_missing(cell, "figure5", arm, variant)]
    if not missing and drawn:
        return True
    if cell.bench.over:
        return False
    layer, networks = cell.layers[-1], {}
    for arm, (state, facts) in _states(cell).items():
        networks[arm] = _with(cell.base, state)
        values = {**cell.tested(state), **_background(cell, networks[arm], layer)}
        settings = {"layers": [layer], "tau": TAU, "masks_per_category": MASKS}
        record(
            cell, "figure5", {**values, **facts}, arm=arm, variant=VARIANTS[arm], settings=settings,
            seconds=facts.pop("seconds"),
        )  # fmt: skip
    for evidence, name in names.items():
        if not has_picture(cell.bench, name):
            keep_picture(draw_maps(cell, networks, layer, evidence), cell.bench, name)
    return True


def _states(cell: Cell) -> dict[str, tuple[Mapping[str, Tensor], dict[str, Any]]]:
    """Return the weights of the base and of every arm, with what their training took."""
    layer = cell.layers[-1]
    remedies = arms_at(cell, layer, readings=[OURS])
    found = treat(
        cell.base,
        cell.train,
        cell.diagnosis([layer]),
        arms=["control", *remedies.values()],
        settings=TreatmentSettings(masks_per_category=MASKS),
        recipe=cell.protocol.recipe(cell.architecture, treating=True),
        seeds=1,
        seed=cell.seed,
    )
    base = {name: one.detach().clone() for name, one in cell.base.state_dict().items()}
    arms = {one.name.partition(".")[0]: one for one in found.arms}
    return {
        "base": (base, {"seconds": 0.0}),
        **{
            name: (one.state, {"seconds": one.seconds, "steps": one.steps, "skipped": len(one.skipped)})
            for name, one in arms.items()
        },
    }


def _with(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the network with these weights."""
    own = copy.deepcopy(model)
    own.load_state_dict(dict(state))
    return own.eval()


def _background(cell: Cell, model: nn.Module, layer: str) -> dict[str, float | None]:
    """Return the share of the evidence on the background, by kind, and the background's own area."""
    shares = {
        f"background_{one}": number(background_share(model, cell.test, [layer], one))
        for one in get_args(Evidence)
    }
    _, height, width = map_shapes(model, first_images(model, cell.test)[:1], [layer])[layer]
    areas: list[float] = []
    for batch in cell.test:
        if batch.masks is not None and batch.annotated is not None:
            outside = background_mask(batch.masks.cpu(), (height, width)).mean((1, 2, 3))
            areas += outside[batch.annotated].tolist()
    return {**shares, "background_area": number(mean_of(areas))}


def main() -> None:
    """Measure and draw what is missing."""
    given = arguments(
        __doc__ or "", architectures=["small_resnet"], datasets=["tiny_imagenet20"]
    ).parse_args()
    run_cells(given, bench_of(given, "figure5"), figure_5)


if __name__ == "__main__":
    main()
