"""Whether a channel-wise constraint gains anything on photographs, with enough seeds to see half a point.

    python benchmarks/study/power.py --data ROOT [--seeds 0 1 2 3 4 5 6 7] [--shard 0/2] [--budget MINUTES]
    python benchmarks/study/power.py --summary

All categories of a data set are divided once into three parts, the same for every seed; a network of its own
is trained and treated on each part. A seed's gain is the mean of its three, so it is of all categories and
every test image counts once; the interval is Student's over the seeds. Written down before: three arms, the
then default's kind (gradient x activation, `share`, last convolution, tau 0.3), the same unscaled (the best
of study.py's confirmation), and Eq. 5 by the letter but for J (J = 1), with Holm's correction over them; half
a point is to be seen in four cases of five. `part` n is the draw of categories 100 + n in the lines of
results/power.jsonl.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy import stats

from benchmarks.experiment.cells import SPECS, Cell, measure
from benchmarks.experiment.running import arguments, bench_of, run_cells
from benchmarks.ledger.gains import Arms, Gain, by_place, gain_of, mean_of
from benchmarks.ledger.lines import Ledger
from benchmarks.ledger.page_text import percent, table, with_interval
from benchmarks.study.prescriptions import CHANNEL, at, texts
from torchdoctor.data.load import load_tables
from torchdoctor.data.table import Tables, limit_per_category, only_classes
from torchdoctor.proof.statistics import LEVEL, errors_to_see, holm

PARTS, FIRST_PART = 3, 100
SEEDS = range(8)
WANTED = ("centre", "unscaled", "paper")


class Part(Cell):
    """A cell on one part of the categories; parts are disjoint and hold all of them together."""

    @cached_property
    def tables(self) -> Tables:
        """The images of this part's categories, limited as the protocol says."""
        spec = SPECS.get(self.dataset, "parquet:{root}/" + self.dataset)
        tables = load_tables(spec.format(root=self.bench.root, seed=0))
        order = np.random.default_rng(0).permutation(len(tables.classes))
        own = only_classes(tables, np.array_split(order, PARTS)[self.classes_seed - FIRST_PART])
        limit = self.size.limit
        return replace(own, train=limit_per_category(own.train, limit, 0)) if limit is not None else own


def parts(cell: Cell) -> list[Part]:
    """Return a cell's three parts."""
    return [
        Part(
            cell.bench, cell.architecture, cell.dataset, cell.seed, cell.protocol, FIRST_PART + part,
            cell.image_size, cell.judged,
        )
        for part in range(PARTS)
    ]  # fmt: skip


def power(cell: Cell) -> bool:
    """Measure base, control and arms on every part; False where the time ran out."""
    for part in parts(cell):
        last = at(part, "last")
        arms = texts(part, [row for row in CHANNEL if row[0] in WANTED])
        variants = {name: name.partition(".")[2] for name in arms}
        settings = {"layers": [last], "tau": 0.3, "part": part.classes_seed - FIRST_PART}
        diagnosis = functools.partial(part.diagnosis, [last])
        if not measure(part, "power", arms, variants=variants, settings=settings, diagnosis=diagnosis):
            return False
    return True


def seed_gains(arms: Arms, arm: str, variant: str, against: str = "control") -> dict[int, float]:
    """Return the mean gain over the parts of every seed whose parts are all there, in points."""
    mine, theirs = arms.get((arm, variant), {}), arms.get((against, ""), {})
    gains: dict[int, list[float]] = {}
    for pair in sorted(mine.keys() & theirs.keys()):
        gains.setdefault(pair[1], []).append(mine[pair]["accuracy"] - theirs[pair]["accuracy"])
    return {seed: float(np.mean(own)) for seed, own in gains.items() if len(own) == PARTS}


def detectable(gain: Gain) -> float:
    """Return the gain that Holm's first and strictest step would have shown in four cases of five."""
    error = (gain.high - gain.low) / 2 / stats.t.ppf(0.5 + LEVEL / 2, gain.number - 1)
    return float(errors_to_see(gain.number - 1, 1 - (1 - LEVEL) / len(WANTED)) * error)


def _row(arms: Arms, arm: str, variant: str, gain: Gain | None, adjusted: Mapping[str, float]) -> list[str]:
    accuracy, number = percent(mean_of(arms, arm, variant)), str(len(arms[arm, variant]))
    seen = "" if gain is None or gain.number < 2 else f"{detectable(gain):.2f}"
    corrected = f"{adjusted[variant]:.3f}" if variant in adjusted and gain is not None else ""
    return [arm, variant, number, accuracy, with_interval(gain), seen, corrected]


def summary(ledger: Ledger) -> str:
    """Return a table per data set and network: accuracies, gains over the control, and what could be seen."""
    found: list[str] = []
    for place, arms in sorted(by_place(ledger.lines()).items(), key=str):
        gains: dict[tuple[str, str], Gain] = {}
        for arm, variant in arms:
            against = "base" if arm == "control" else "control"
            own = seed_gains(arms, arm, variant, against) if arm != "base" else {}
            if own:
                gains[arm, variant] = gain_of(list(own.values()))
        # An arm that is missing yet counts as a test that showed nothing.
        tested = [gains["channel", one].p_value if ("channel", one) in gains else 1.0 for one in WANTED]
        adjusted = dict(zip(WANTED, holm(tested), strict=True))
        rows = [_row(arms, *key, gains.get(key), adjusted) for key in arms]
        heads = ["arm", "variant", "networks", "accuracy", "gain", "detectable, Holm", "p, Holm"]
        found += [f"{place.dataset}, {place.architecture}, {place.image_size} px", *table(heads, rows)]
    return "\n".join(found)


def main() -> None:
    """Measure what is missing, or print what is there (the control's gain is over the base)."""
    parser = arguments(__doc__ or "", architectures=["small_resnet"], datasets=["mini_imagenet30"])
    parser.set_defaults(seeds=list(SEEDS))
    parser.add_argument("--summary", action="store_true", help="print the table and measure nothing")
    given = parser.parse_args()
    if given.summary:
        print(summary(Ledger(given.results / "power.jsonl")))
        return
    run_cells(given, bench_of(given, "power"), power)


if __name__ == "__main__":
    main()
