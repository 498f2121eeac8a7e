"""Rank training images by how wrong their labels look, on labels that people gave, beside cleanlab's ranking.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.suspects --cache FOLDER [--data random1 aggregate clean]
        [--limit 10000] [--seeds 0 1] [--epochs 8] [--second] [--cleanlab FOLDER] [--out FILE]

A small residual network is trained on CIFAR-10's images with the labels of `cifar10_people/train.parquet`:
`random1` is one person's answers, `aggregate` the majority of three; `clean` are the original labels. A label
is wrong where it is not the original one. Everything below is measured on the images that the network was
trained on, one pass of them through it and five heads fitted crosswise. cleanlab is no dependency: without
it (`pip install --target FOLDER cleanlab scikit-learn`, then --cleanlab FOLDER) its lines are left out. With
--second, the network of `--second-opinion pretrained` judges the labels too; cleanlab then gets its heads and
the mean of all as well. Its features do not depend on the labels: they are computed once (20 minutes of a
core for 45,000 images) and kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from scipy.special import log_softmax, softmax
from torch import nn

from benchmarks.study import json_lines
from benchmarks.study.kept_outputs import Kept, numbered
from benchmarks.study.people import average_precision
from benchmarks.study.planted_faults import keep
from torchdoctor import SecondOpinion, load_data
from torchdoctor.case.second_opinion import opinion_on, published
from torchdoctor.data.loader import Loader
from torchdoctor.diagnosis.crossed_heads import crossed_log_probabilities, crossed_mistakes, standardised
from torchdoctor.diagnosis.second_opinion import by_new_heads, log_of_mean
from torchdoctor.diagnosis.seen_labels import Seen, look
from torchdoctor.diagnosis.suspects import LISTED, margins, rank
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

CATEGORIES, FOLDS = 10, 5
SECOND = ", second opinion"  # ends the names of methods that another network takes part in
FIRST = 0.05  # share of the images whose precision is measured
Line = dict[str, object]


def images_with(labels: str, limit: int, seed: int) -> tuple[Loader, np.ndarray]:
    """Return training images with the labels of a column, and the original labels by id."""
    root = os.environ["TORCHDOCTOR_DATA"]
    data = load_data(f"parquet:{root}/cifar10", image_size=32, limit=limit // CATEGORIES, seed=seed)
    people = pq.read_table(f"{root}/cifar10_people/train.parquet").to_pydict()
    truth = np.empty(len(people["row"]), dtype=np.int64)
    given = truth.copy()
    truth[people["row"]] = people["label"]
    given[people["row"]] = people["label" if labels == "clean" else labels]
    table = data.train.table
    if not np.array_equal(truth[table.ids], table.labels):
        raise SystemExit("the rows of cifar10_people are not those of cifar10")
    return replace(data.train, table=replace(table, labels=given[table.ids])), truth


def network(file: Path, images: Loader, epochs: int, seed: int) -> nn.Module:
    """Return a network trained on the images with their labels, from the file where it is there."""
    torch.manual_seed(seed)
    model: nn.Module = SmallResNet(CATEGORIES)
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    recipe = Recipe(epochs=epochs, learning_rate=0.1)
    steps = images.steps_per_epoch
    fit(model, lambda epoch: images.epoch(epoch, seed), recipe, steps_per_epoch=steps, seed=seed)
    keep(model, file)
    return model.eval()


def other_judge(file: Path, images: Loader) -> SecondOpinion:
    """Return the network of `--second-opinion pretrained`; its features are kept in the file."""
    if not file.is_file():
        opinion = opinion_on(published("pretrained", images, images), images)
        rows: list[torch.Tensor] = []
        linear = opinion.model.get_submodule("classifier")
        hook = linear.register_forward_pre_hook(lambda _module, given: rows.append(given[0].half()))
        with torch.inference_mode():
            for number, batch in enumerate(opinion.images):
                opinion.model(batch.images)
                if number % 100 == 0:
                    print(f"features of {sum(map(len, rows))} images", file=sys.stderr, flush=True)
        hook.remove()
        np.save(file, torch.cat(rows).numpy())
    features = np.load(file).astype(np.float32)
    # Two logits of no meaning, by a linear layer whose inputs are the features.
    described = nn.Sequential(Kept(features), nn.Linear(features.shape[1], 2))
    return SecondOpinion(described, [numbered(images.table)], new_head=True)


def with_other(
    seen: Seen, heads: np.ndarray, opinion: SecondOpinion, wrong: np.ndarray, seed: int
) -> Iterator[Line]:
    """Yield the lines with another network: of the package's ranking, and of the other network alone."""
    ids, labels = torch.from_numpy(seen.ids), torch.from_numpy(seen.labels)
    others = by_new_heads(opinion, ids, labels, CATEGORIES, folds=FOLDS, seed=seed)
    together = log_of_mean([np.exp(heads), np.exp(others)])
    own = ours(seen, together, wrong, seed, with_network=False)
    yield {**next(own), "method": f"find_suspects{SECOND}"}
    order = np.argsort(margins(others, seen.labels)[0], kind="stable")
    yield {"method": "margin of the other network's heads alone", **of_ranking(wrong, order)}
    for line in cleanlabs(seen, {"other heads": others, "mean of all heads": together}, wrong):
        yield {**line, "method": f"{line['method']}{SECOND}"}


def of_ranking(wrong: np.ndarray, order: np.ndarray) -> Line:
    """Return the share of wrong labels among the first images of a ranking, and its average precision."""
    first = order[: round(FIRST * len(order))]
    place = np.empty(len(order))
    place[order] = np.arange(len(order))
    return {
        "first": len(first),
        "precision_of_first": round(float(wrong[first].mean()), 4),
        "average_precision": round(average_precision(wrong, -place), 4) if wrong.any() else None,
    }


def ours(
    seen: Seen, heads: np.ndarray, wrong: np.ndarray, seed: int, *, with_network: bool = True
) -> Iterator[Line]:
    """Yield the line of the package's ranking, and of its parts alone."""
    mistakes = crossed_mistakes(heads, seen.labels, folds=FOLDS, seed=seed)
    found = rank(seen, heads, mistakes, with_network=with_network)
    listed = found.chances >= LISTED
    first = found.order[: round(FIRST * len(wrong))]
    yield {
        "method": "find_suspects",
        **of_ranking(wrong, found.order),
        "share_estimated": round(found.share, 4),
        "probability_of_first": round(float(found.chances[first].mean()), 4),
        "expected_wrong": round(float(found.chances.sum()), 1),
        "listed": int(listed.sum()),
        "listed_wrong": int(wrong[listed].sum()),
        "listed_expected": round(float(found.chances[listed].sum()), 1),
    }
    parts = {"network": log_softmax(seen.logits, axis=1), "heads": heads}
    for name, logarithms in parts.items():
        order = np.argsort(margins(logarithms, seen.labels)[0], kind="stable")
        yield {"method": f"margin of the {name} alone", **of_ranking(wrong, order)}


def network_and_heads(seen: Seen, heads: np.ndarray) -> dict[str, np.ndarray]:
    """Return the log-probabilities of the network, of its heads, and their mean."""
    network_own = log_softmax(seen.logits, axis=1)
    return {"heads": heads, "network": network_own, "mean": (network_own + heads) / 2}


def cleanlabs(seen: Seen, chances: Mapping[str, np.ndarray], wrong: np.ndarray) -> Iterator[Line]:
    """Yield the lines of cleanlab's scores and of its list, on the probabilities that ours has."""
    try:
        from cleanlab.filter import find_label_issues  # type: ignore[import-not-found]
        from cleanlab.rank import get_label_quality_scores  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"without cleanlab ({error})", file=sys.stderr)
        return
    for name, logarithms in chances.items():
        probabilities = softmax(logarithms, axis=1)
        for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            scores = get_label_quality_scores(seen.labels, probabilities, method=method)
            order = np.argsort(scores, kind="stable")
            yield {"method": f"cleanlab {method}, {name}", **of_ranking(wrong, order)}
        issues = find_label_issues(seen.labels, probabilities, n_jobs=1)
        yield {
            "method": f"cleanlab find_label_issues, {name}",
            "listed": int(issues.sum()),
            "listed_wrong": int(wrong[issues].sum()),
            "share_estimated": round(float(issues.mean()), 4),
        }


def table(lines: Sequence[json_lines.Line]) -> str:
    """Return a Markdown table of the largest runs: the ranking of this package, and the best of cleanlab.

    cleanlab has three scores, each on the probabilities of the network, of the heads, and of their mean.
    """
    most = max(line["images"] for line in lines)
    ranked = [line for line in lines if line["images"] == most and "precision_of_first" in line]
    rows = [
        "| labels | wrong, % | judged by | wrong of the first 5 %, % | cleanlab's best | average precision | "
        "cleanlab's best | listed | wrong of them, % |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for data in dict.fromkeys(line["data"] for line in ranked):
        for judges, ending in (("the network", ""), ("and `pretrained`", SECOND)):
            of_data = [line for line in ranked if line["data"] == data]
            own = [line for line in of_data if line["method"] == f"find_suspects{ending}"]
            theirs = [
                line
                for line in of_data
                if line["method"].startswith("cleanlab") and line["method"].endswith(SECOND) == bool(ending)
            ]
            rows += [_row(data, judges, line, theirs) for line in own]
    return "\n".join(rows)


def _row(data: str, judges: str, own: json_lines.Line, theirs: Sequence[json_lines.Line]) -> str:
    """Return a row of the table."""
    first, precision = (
        [own[name], *([max(line[name] for line in theirs)] if theirs else [])]
        for name in ("precision_of_first", "average_precision")
    )
    shown = [data, f"{100 * own['share']:.1f}", judges]
    shown += [*(f"{100 * one:.1f}" for one in first), *(f"{one:.3f}" for one in precision)]
    right = 100 * own["listed_wrong"] / max(own["listed"], 1)
    return f"| {' | '.join([*shown, str(own['listed']), f'{right:.0f}'])} |"


def main() -> None:
    """Measure and print one line for each way of ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--data",
        nargs="*",
        default=["random1", "aggregate"],
        choices=["random1", "random2", "aggregate", "clean"],
    )
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--second", action="store_true", help="ask a network with published weights as well")
    parser.add_argument("--cleanlab", type=Path, help="the folder that cleanlab was installed into")
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    if given.cleanlab:
        sys.path.append(str(given.cleanlab))
    for data in given.data:
        for seed in given.seeds:
            images, truth = images_with(data, given.limit, seed)
            file = given.cache / f"suspects-{data}-{given.limit}-{given.epochs}-{seed}.safetensors"
            model = network(file, images, given.epochs, seed)
            start = time.perf_counter()
            seen = look(model, images, None, FOLDS, None)
            passed = time.perf_counter()
            heads = crossed_log_probabilities(
                standardised(seen.features), seen.labels, CATEGORIES,
                folds=FOLDS, seed=seed, device=torch.device("cpu"),
            )  # fmt: skip
            common = {
                "data": data, "images": len(seen.ids), "epochs": given.epochs, "seed": seed,
                "accuracy": round(seen.accuracy, 2),
                "seconds": [round(passed - start, 1), round(time.perf_counter() - passed, 1)],
            }  # fmt: skip
            wrong = seen.labels != truth[seen.ids]
            common["share"] = round(float(wrong.mean()), 4)
            lines = [
                *ours(seen, heads, wrong, seed),
                *cleanlabs(seen, network_and_heads(seen, heads), wrong),
            ]
            if given.second:
                file = given.cache / f"suspects-features-{given.limit}-{seed}.npy"
                lines += with_other(seen, heads, other_judge(file, images), wrong, seed)
            for line in lines:
                json_lines.write({**common, **line}, given.out)


if __name__ == "__main__":
    main()
