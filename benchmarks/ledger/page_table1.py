"""Table 1 on the ledger's page: what was measured, what it comes to, and what is open."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from benchmarks.experiment.running import seeds_of
from benchmarks.ledger.counterparts import COUNTERPARTS, rank, title_of, words_of
from benchmarks.ledger.gains import Arms, Gain, Place, Summary, gain_over, mean_of, summaries
from benchmarks.ledger.page_text import NONE, command, least, percent, points, table, with_interval
from benchmarks.ledger.protocols import PROTOCOLS, SEEDS
from benchmarks.ledger.published import ARCHITECTURES, TABLE_1
from torchdoctor.proof.statistics import LEVEL

ARMS = ("channel", "space", "all")
VARIANTS = ("literal", "ours")
WANTED = [(arm, variant) for arm in ARMS for variant in VARIANTS]
SPLITS = {"swapped": "backgrounds swapped", "shifted": "backgrounds at random"}

GAIN_HEADS = [
    head
    for variant in VARIANTS
    for head in (f"{variant}: over control (95 %)", "detectable", f"{variant}: over base")
]


def published(place: Place, arm: str) -> float | None:
    """Return what the paper reports beside a place, None where it reports nothing."""
    found = COUNTERPARTS.get(place.dataset)
    return TABLE_1.get((place.architecture, found.paper if found else ""), {}).get(arm)


def wanted_pairs(protocol: str, dataset: str) -> list[tuple[int, int]]:
    """Return the (draw of categories, seed) that a protocol wants of a cell."""
    given = argparse.Namespace(seeds=list(range(SEEDS)))
    return [(draw, seed) for seed, draw in seeds_of(given, PROTOCOLS[protocol], dataset)]


def of_protocol(places: Mapping[Place, Arms], protocol: str) -> dict[Place, Arms]:
    """Return the places of one protocol, sorted as the paper's table is."""
    mine = {place: arms for place, arms in places.items() if place.protocol == protocol}
    return dict(
        sorted(mine.items(), key=lambda one: (*rank(one[0].dataset, one[0].architecture), one[0].image_size))
    )


def _name(place: Place, arms: Arms) -> list[str]:
    """Return the first two columns of a place's rows."""
    draws = len({pair[0] for own in arms.values() for pair in own})
    words = words_of(place.dataset, draws=draws, image_size=place.image_size, protocol=place.protocol)
    return [title_of(place.architecture), words]


def _numbers(gains: list[Gain | None], place: Place) -> str:
    """Return how many seeds (or draws) are behind a row, of how many."""
    found = sorted({gain.number for gain in gains if gain is not None})
    known = PROTOCOLS[place.protocol].sizes
    whole = f" of {len(wanted_pairs(place.protocol, place.dataset))}" if place.dataset in known else ""
    return "–".join(map(str, found)) + whole


def _gains(place: Place, arms: Arms, arm: str, measure: str) -> tuple[str, list[str]] | None:
    """Return the number of seeds and the columns of both variants; None where neither was measured."""
    over_control = [gain_over(arms, arm, variant, measure=measure) for variant in VARIANTS]
    if not any(over_control):
        return None
    columns = []
    for variant, gain in zip(VARIANTS, over_control, strict=True):
        over_base = gain_over(arms, arm, variant, "base", measure)
        columns += [
            with_interval(gain),
            least(gain and gain.detectable),
            points(over_base and over_base.mean),
        ]
    return _numbers(over_control, place), columns


def measured(places: Mapping[Place, Arms]) -> list[str]:
    """Return the table of test accuracies: a row per architecture, data set and arm."""
    heads = ["classifier", "data", "arm", "paper: base", "paper: gain", "n", "base", "control", *GAIN_HEADS]
    rows = []
    for place, arms in places.items():
        name = _name(place, arms)
        for arm in ARMS:
            theirs = [percent(published(place, "base")), points(published(place, arm))]
            own = [percent(mean_of(arms, "base")), percent(mean_of(arms, "control"))]
            found = _gains(place, arms, arm, "accuracy")
            if found is not None:
                rows.append([*name, arm, *theirs, found[0], *own, *found[1]])
            elif arm != "channel" and not COUNTERPARTS[place.dataset].masks:
                rows.append([*name, arm, *theirs, NONE, NONE, NONE, "open: needs masks", *[NONE] * 5])
            elif published(place, arm) is not None:
                rows.append([*name, arm, *theirs, NONE, *own, "open", *[NONE] * 5])
        if place.dataset == "stl10_2" and place.architecture in ARCHITECTURES:
            rows.extend(_whole_stl10(place, places))
    return table(heads, rows)


def _whole_stl10(place: Place, places: Mapping[Place, Arms]) -> list[list[str]]:
    """Return the paper's own STL-10 rows as open ones, so that two categories never stand for ten."""
    if any(one.dataset == "stl10" and one.architecture == place.architecture for one in places):
        return []
    theirs = TABLE_1[place.architecture, "stl10"]
    name = [title_of(place.architecture), "STL-10, as in the paper"]
    return [
        [*name, arm, percent(theirs["base"]), points(theirs[arm]), NONE, NONE, NONE, "open", *[NONE] * 5]
        for arm in ARMS
    ]


def on_other_backgrounds(places: Mapping[Place, Arms]) -> list[str]:
    """Return the table of accuracies on test images with other backgrounds; empty without any."""
    heads = ["classifier", "data", "test images", "arm", "n", "base", "control", *GAIN_HEADS]
    rows = []
    for place, arms in places.items():
        for measure, words in SPLITS.items():
            own = [percent(mean_of(arms, one, measure=measure)) for one in ("base", "control")]
            for arm in ARMS:
                found = _gains(place, arms, arm, measure)
                if found is not None:
                    rows.append([*_name(place, arms), words, arm, found[0], *own, *found[1]])
    return table(heads, rows)


def summary(places: Mapping[Place, Arms]) -> list[str]:
    """Return what all measured cells of a protocol come to, on the test images and on other backgrounds."""
    theirs = {
        (place, arm): value
        for place in places
        for arm in ARMS
        if (value := published(place, arm)) is not None
    }
    lines = []
    for measure, words in {"accuracy": "test images", **SPLITS}.items():
        found, tests = summaries(places, WANTED, measure, theirs if measure == "accuracy" else None)
        if not found:
            continue
        heads = [
            words, "paper: mean", "cells", "data sets", "mean gain over control (95 % over data sets)",
            "interval above 0", "below 0", "of", "above after Holm", "below after Holm",
            "detectable (median)",
        ]  # fmt: skip
        lines += table(heads, [_row(one) for one in found])
        lines += [_corrected(tests), ""]
    alone = [
        gain.mean for arms in places.values() if (gain := gain_over(arms, "control", "", "base")) is not None
    ]
    if alone:
        lines += [
            f"Training on alone (control minus base): {points(sum(alone) / len(alone))} points, the mean of "
            f"{len(alone)}. A comparison with the base counts that as gain.",
            "",
        ]
    return lines


def _corrected(tests: int) -> str:
    """Say what a summary's correction is over, and what chance alone would do."""
    if not tests:
        return "No cell has two seeds yet, and so none an interval."
    return (
        f"Holm's correction is over the {tests} tests of this table. Without any effect one interval in 20 "
        f"would miss 0 all the same: about {tests * (1 - LEVEL):.0f} of these."
    )


def _row(one: Summary) -> list[str]:
    return [
        f"{one.arm}, {one.variant}",
        points(one.paper),
        str(one.cells),
        str(one.gain.number),
        with_interval(one.gain),
        *(str(n) for n in (one.above, one.below, one.with_interval, one.holm_above, one.holm_below)),
        least(one.detectable),
    ]


def _complete(arms: Arms, dataset: str, pair: tuple[int, int]) -> bool:
    """Whether every result that the program measures of a pair is there."""
    masks = bool(COUNTERPARTS[dataset].masks)
    wanted = [("base", ""), ("control", "")]
    wanted += [one for one in WANTED if one[0] == "channel" or masks]
    return all(pair in arms.get(one, {}) for one in wanted)


def still_open(places: Mapping[Place, Arms], protocol: str) -> list[str]:
    """Return one row per architecture: which data sets are open or begun, and the command that goes on."""
    rows, sizes = [], PROTOCOLS[protocol].sizes
    for architecture in ARCHITECTURES:
        missing = {}
        for dataset in [one for one in COUNTERPARTS if one in sizes]:
            arms = places.get(Place(protocol, dataset, architecture, sizes[dataset].image_size), {})
            wanted = wanted_pairs(protocol, dataset)
            done = sum(_complete(arms, dataset, pair) for pair in wanted)
            if done < len(wanted):
                begun = f" ({done} of {len(wanted)})" if arms else ""
                missing[dataset] = dataset + "†" * bool(COUNTERPARTS[dataset].files) + begun
        if missing:
            words = f"--architectures {architecture} --datasets {' '.join(missing)}"
            rows.append(
                [title_of(architecture), ", ".join(missing.values()), command("table1", protocol, words)]
            )
    if not rows:
        return ["", "Nothing: every cell of this protocol is measured.", ""]
    lines = table(["classifier", "open", "what fills it"], rows)
    needed = [one for one in COUNTERPARTS if one in sizes and COUNTERPARTS[one].files]
    if needed:
        places_of = " and ".join(f"`ROOT/{COUNTERPARTS[one].files}`" for one in needed)
        lines += [f"† Not at hand here: put the original files under {places_of} first.", ""]
    bare = [one for one in ("cifar10", "cifar100", "svhn", "stl10", "mini_imagenet30") if one in sizes]
    lines += [
        f"Space-wise and all are open for {', '.join(bare)} whatever is measured: they need masks, and these "
        "have none.",
        "",
    ]
    return lines
