"""Figures 1, 2, 3 and 5 on the ledger's page: what was seen of the paper's discoveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from benchmarks.ledger.counterparts import title_of, words_of
from benchmarks.ledger.gains import Arms, Pair, Place, gain_over, mean_of
from benchmarks.ledger.lines import Line
from benchmarks.ledger.page_text import NONE, percent, points, table, with_interval

SHOWN = (0.3, 1.0, 2.0)  # ranges of Figure 3: the paper's last, and beyond
UNITS = {"absolute": "units of the map", "deviation": "its deviations"}
KINDS = {"background_gradient": "gradient", "background_gradient_x_activation": "gradient x activation"}


def layers(places: Mapping[Place, Arms]) -> list[str]:
    """Return Figure 1: how kernels and depth go together, and the first, middle and last convolution."""
    heads = ["protocol", "classifier", "data", "n", "images, in categories", "layers", "share and depth",
             "number and depth", "correlated, first", "middle", "last",
             "agreement, last", "between, last"]  # fmt: skip
    rows = []
    for place, arms in places.items():
        by_pair: dict[Pair, list[Line]] = {}
        for own in arms.values():
            for pair, line in own.items():
                by_pair.setdefault(pair, []).append(line)
        lines = [sorted(own, key=lambda line: line["place"]) for own in by_pair.values()]
        ends = [[own[at] for own in lines] for at in (0, len(lines[0]) // 2, -1)]
        rows.append(
            [*name_of(place, arms), str(len(lines)), _behind(ends[-1]), str(len(lines[0])),
             _rank(lines, "correlated_share"), _rank(lines, "correlated"),
             *(_kernels(one) for one in ends),
             _mean(ends[-1], "agreement"), _mean(ends[-1], "between")]
        )  # fmt: skip
    return table(heads, rows)


def _rank(networks: Sequence[Sequence[Line]], field: str) -> str:
    """Return the mean over networks of the rank correlation of a field with depth."""
    found = []
    for lines in networks:
        known = [(line["depth"], line[field]) for line in lines if line[field] is not None]
        if len({value for _, value in known}) > 1:
            found.append(float(spearmanr(*zip(*known, strict=True)).statistic))
    return points(float(np.mean(found))) if found else NONE


def _kernels(lines: Sequence[Line]) -> str:
    """Return the number of correlated kernels of a layer, and the share."""
    share = _mean(lines, "correlated_share", 100, 0)
    return f"{_mean(lines, 'correlated', 1, 1)} of {lines[0]['kernels']} ({share} %)"


def _behind(lines: Sequence[Line]) -> str:
    """Return how many images were sure enough, and in how many categories: from the fewest to the most."""
    ends = [sorted({line[field] for line in lines}) for field in ("sifted", "diagnosed")]
    return " in ".join("–".join(map(str, dict.fromkeys((one[0], one[-1])))) for one in ends)


def sparseness(places: Mapping[Place, Arms]) -> list[str]:
    """Return Figure 2: how few kernels a category is correlated with in the last layer."""
    heads = ["protocol", "classifier", "data", "evidence", "n", "images, in categories", "correlated kernels",
             "kernels with 90 % of the evidence, %", "agreement", "between", "affine"]  # fmt: skip
    rows = []
    for place, arms in places.items():
        for (_, variant), own in arms.items():
            lines = list(own.values())
            rows.append(
                [*name_of(place, arms), variant.replace("_x_", " x "), str(len(lines)), _behind(lines),
                 _kernels(lines), _mean(lines, "evidence_share", 100, 0), _mean(lines, "agreement"),
                 _mean(lines, "between"), "yes" if lines[0]["affine"] else "no"]
            )  # fmt: skip
    return table(heads, rows)


def noise(places: Mapping[Place, Arms]) -> list[str]:
    """Return Figure 3: normal images, twins back at their label, twins at the false one, at some ranges."""
    heads = ["protocol", "classifier", "data", "noise in", "n", "images", "FGSM fooled, %",
             *(f"range {one:g}: right / back / fooled" for one in SHOWN)]  # fmt: skip
    rows = []
    for place, arms in places.items():
        for (_, variant), own in arms.items():
            lines = list(own.values())
            images = "–".join(map(str, sorted({line["images"] for line in lines})))
            rows.append(
                [*name_of(place, arms), UNITS.get(variant, variant),
                 str(len(lines)), images, _mean(lines, "attack_success", 1, 0),
                 *(_at(lines, one) for one in SHOWN)]
            )  # fmt: skip
    return table(heads, rows)


def _at(lines: Sequence[Line], wanted: float) -> str:
    """Return the three curves at the range nearest to the one wanted, in percent."""
    values = []
    for field in ("normal", "restored", "fooled"):
        at = [line[field][int(np.abs(np.array(line["ranges"]) - wanted).argmin())] for line in lines]
        values.append(f"{float(np.mean(at)):.0f}")
    return " / ".join(values)


def background(places: Mapping[Place, Arms]) -> list[str]:
    """Return Figure 5: the share of the evidence on the background, per arm, and against the control."""
    of_kinds = [f"{kind}: on it, %{more}" for kind in KINDS.values() for more in ("", ", minus control")]
    heads = ["protocol", "classifier", "data", "arm", "n", "accuracy", "accuracy, minus control",
             "background's area, %", *of_kinds]  # fmt: skip
    rows = []
    for place, given in places.items():
        arms = {key: {pair: _in_percent(line) for pair, line in own.items()} for key, own in given.items()}
        for (arm, variant), own in arms.items():
            columns = {}
            for field in ("accuracy", *KINDS):
                treated = arm not in ("base", "control")
                columns[field] = [
                    percent(mean_of(arms, arm, variant, field)),
                    with_interval(gain_over(arms, arm, variant, measure=field)) if treated else NONE,
                ]
            area = percent(mean_of(arms, arm, variant, "background_area"))
            kinds = [one for field in KINDS for one in columns[field]]
            rows.append([*name_of(place, arms), arm, str(len(own)), *columns["accuracy"], area, *kinds])
    return table(heads, rows)


def _in_percent(line: Line) -> Line:
    """Return a line whose shares are in percent; those that are not known are left out."""
    shares = {name: value for name, value in line.items() if name.startswith("background_")}
    rest = {name: value for name, value in line.items() if name not in shares}
    return {**rest, **{name: 100 * value for name, value in shares.items() if value is not None}}


def name_of(place: Place, arms: Arms) -> list[str]:
    """Return the columns that say what was measured."""
    draws = len({draw for own in arms.values() for draw, _ in own})
    words = words_of(place.dataset, draws=draws, image_size=place.image_size, protocol=place.protocol)
    return [place.protocol, title_of(place.architecture), words]


def _mean(lines: Sequence[Line], field: str, times: float = 1, digits: int = 2) -> str:
    """Return the mean of a field that is known."""
    known = [line[field] for line in lines if line.get(field) is not None]
    return f"{times * sum(known) / len(known):.{digits}f}" if known else NONE
