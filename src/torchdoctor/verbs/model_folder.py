"""Write RUN/model: the weights to use, with their cards, in a folder that can be pushed to a hub as it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchdoctor.case.outcome import Outcome
from torchdoctor.case.preparation import Case
from torchdoctor.case.splits import splits_to_compare
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.files.writing import write_bytes, write_json, write_weights
from torchdoctor.network.copying import copy_of
from torchdoctor.network.state import load_state
from torchdoctor.treatment.training import accuracy
from torchdoctor.verbs.judge import handed_soup
from torchdoctor.verbs.model_card import WEIGHTS, Handed, is_timm, model_card, of_first_seed, public_name

FOLDER = "model"
README = "README.md"


def model_stage(case: Case, folder: Path, outcome: Outcome) -> Outcome:
    """Write the folder with the weights to use, and name it in the outcome; written again it is the same.

    The weights are those that the validation split chose, if it did, else those of the first seed of the arm
    that the verdict is about. Of the averaged weights of several seeds the accuracy on the test splits is
    measured here, for the card; nothing is chosen by it. The card is written last: a folder with a card is
    whole.

    Args:
        case: The prepared case.
        folder: The run's folder.
        outcome: The outcome of its comparison, with diagnosis, treatment and comparison.

    Returns:
        The outcome, with the folder under `model`.
    """
    diagnosis, treatment, comparison = outcome.diagnosis, outcome.treatment, outcome.comparison
    assert diagnosis is not None and treatment is not None and comparison is not None
    chosen: Any = outcome.record.get("handed_back") or {"use": comparison.arm, "means": {}}
    use, home = str(chosen["use"]), folder / FOLDER
    if (chosen.get("soup") or {}).get("used"):
        state: Mapping[str, Tensor] = handed_soup(case, treatment, use)
        handed = Handed(use, True, _accuracies(case, state))
    else:
        state = case.model.state_dict() if use == "base" else treatment.arm(use, comparison.seeds[0]).state
        handed = of_first_seed(comparison, use)
    write_weights(home / WEIGHTS, state)
    write_json(home / "model.json", {**case.card, "model": public_name(case.plan.model)})
    if is_timm(case.plan.model):
        configuration = timm_configuration(case.model, case.classes, case.data.preprocessing)
        write_json(home / "config.json", configuration)
    card = model_card(case, diagnosis, treatment.prescription, comparison, handed, chosen["means"])
    write_bytes(home / README, card.encode())
    return with_model(folder, outcome)


def _accuracies(case: Case, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the accuracy of weights in percent, by split."""
    own = copy_of(case.model)
    load_state(own, state)
    return {split: accuracy(own, images) for split, images in splits_to_compare(case).items()}


def with_model(folder: Path, outcome: Outcome) -> Outcome:
    """Name the folder with the weights to use in an outcome, where it is whole.

    Args:
        folder: The run's folder.
        outcome: The outcome of its comparison.

    Returns:
        The outcome, with the folder under `model`; unchanged where the folder is missing or has no card.
    """
    if not (folder / FOLDER / README).is_file():
        return outcome
    return replace(outcome, record={**outcome.record, "model": str(folder / FOLDER)})


def timm_configuration(
    model: nn.Module, classes: tuple[str, ...], preprocessing: Preprocessing
) -> dict[str, Any]:
    """Return what timm expects in `config.json` to build the network again, with this run's preprocessing.

    What timm knows of its published weights (tag, licence, origin) is left out: these are other weights.

    Args:
        model: A network that timm built.
        classes: The names of its categories.
        preprocessing: How images are prepared for it.

    Returns:
        The content of the file.
    """
    from timm.models._hub import save_config_for_hf

    published: Any = model.pretrained_cfg
    size, channels = preprocessing.image_size, preprocessing.channels
    published_names = ("first_conv", "classifier", "fixed_input_size")
    own = {
        "custom_load": False,
        "input_size": [channels, size, size],
        "interpolation": "bilinear",
        "crop_pct": preprocessing.crop_share,
        "crop_mode": "center" if preprocessing.resize == "crop" else "squash",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": len(classes),
        **{name: published[name] for name in published_names if published.get(name) is not None},
    }
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.json"
        named = {"label_names": list(classes), "pretrained_cfg": dict(own)}
        save_config_for_hf(model, str(file), named, {"in_chans": channels} if channels != 3 else None)
        configuration: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**configuration, "pretrained_cfg": own}
