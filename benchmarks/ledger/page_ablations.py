"""Tables 2 and 3, Figures 4 and 6 on the ledger's page: what changes a gain."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from benchmarks.ledger.gains import Arms, Place, control_of, gain_over, mean_of
from benchmarks.ledger.lines import Line
from benchmarks.ledger.page_discoveries import name_of
from benchmarks.ledger.page_text import NONE, least, percent, points, table, with_interval
from benchmarks.ledger.published import TABLE_2, TABLE_3

VARIANTS = ("literal", "ours")
GAINS = [
    head for one in VARIANTS for head in (f"{one}: over control (95 %)", "detectable", f"{one}: over base")
]
PAPERS_CATEGORIES = 10  # of Table 2, whose numbers are of all categories together


def annotations(places: Mapping[Place, Arms]) -> list[str]:
    """Return Table 2: a row per number of annotated images and category."""
    theirs = {count // PAPERS_CATEGORIES: gain for count, gain in TABLE_2.items()}
    return _by_setting(
        places, "annotated per category", lambda setting: points(theirs.get(_number(setting))), _number
    )


def expansions(places: Mapping[Place, Arms]) -> list[str]:
    """Return Table 3: a row per number of pixels that the object is grown by."""
    return _by_setting(
        places, "pixels, at 224", lambda setting: points(TABLE_3.get(_number(setting))), _number
    )


def depths(places: Mapping[Place, Arms]) -> list[str]:
    """Return Figure 6: a row per layer and arm, from the first layer to the last."""
    return _by_setting(places, "layer", None, None)


def _number(setting: str) -> int:
    """Return the number in a setting such as `annotated20`."""
    return int(re.sub(r"\D", "", setting) or -1)


def _by_setting(
    places: Mapping[Place, Arms],
    head: str,
    theirs: Callable[[str], str] | None,
    order: Callable[[str], int] | None,
) -> list[str]:
    """Return a row per place, setting and arm; `theirs` is what the paper has for a setting."""
    papers = ["paper (VGG-16)"] if theirs else []
    heads = ["protocol", "classifier", "data", "arm", head, *papers, "n", "base", "control", *GAINS]
    rows = []
    for place, arms in places.items():
        found = [(arm, *variant.rpartition("-")[::2]) for arm, variant in arms if "-" in variant]
        settings = list(dict.fromkeys(setting for _, setting, _ in found))
        # Layers are measured from the last to the first.
        settings = settings[::-1] if order is None else sorted(settings, key=order)
        for setting in settings:
            for arm in dict.fromkeys(arm for arm, own, _ in found if own == setting):
                columns, numbers = _gains(arms, arm, setting)
                controls = [
                    percent(mean_of(arms, one, control_of(arms, f"{setting}-", one)))
                    for one in ("base", "control")
                ]
                shown = re.sub(r"^(annotated|expand)", "", setting)
                rows.append(
                    [*name_of(place, arms), arm, shown, *([theirs(setting)] if theirs else []), numbers,
                     *controls, *columns]
                )  # fmt: skip
    return table(heads, rows)


def _gains(arms: Arms, arm: str, setting: str) -> tuple[list[str], str]:
    """Return the columns of both variants, and how many seeds are behind them."""
    columns, numbers = [], set()
    for variant in VARIANTS:
        gain = gain_over(arms, arm, f"{setting}-{variant}")
        base = gain_over(arms, arm, f"{setting}-{variant}", "base")
        columns += [with_interval(gain), least(gain and gain.detectable), points(base and base.mean)]
        numbers |= {gain.number} if gain else set()
    return columns, "–".join(map(str, sorted(numbers)))


def categories(places: Mapping[Place, Arms]) -> list[str]:
    """Return Figure 4: whether categories of low accuracy gain more, per arm."""
    heads = ["protocol", "classifier", "data", "arm", "n", "over control (95 %)", "detectable",
             "rank correlation: over control", "p < 5 %", "over base", "over base, same images"]  # fmt: skip
    rows = []
    for place, arms in places.items():
        for (arm, variant), lines in arms.items():
            if not variant.endswith("rank"):
                continue
            plain = variant.removesuffix("rank").removesuffix("-")
            gain = gain_over(arms, arm, plain) if arm != "control" else None
            own = list(lines.values())
            sure = [line["p_value"] for line in own if line.get("p_value") is not None]
            rows.append(
                [*name_of(place, arms), f"{arm} {plain}".strip(), str(len(own)), with_interval(gain),
                 least(gain and gain.detectable), correlation(own, "rank_correlation"),
                 f"{sum(one < 0.05 for one in sure)} of {len(sure)}" if sure else NONE,
                 correlation(own, "over_base"), correlation(own, "over_base_same_images")]
            )  # fmt: skip
    return table(heads, rows)


def correlation(lines: Sequence[Line], field: str) -> str:
    """Return the mean of a correlation over lines."""
    known = [line[field] for line in lines if line.get(field) is not None]
    return points(sum(known) / len(known)) if known else NONE
