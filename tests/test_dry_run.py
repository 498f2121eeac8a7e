"""`--dry-run`: it refuses what the run refuses, times one step, says how sure it is, and costs little."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

from torchdoctor import InputError, load_model
from torchdoctor.case.network_trial import try_out_network
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import Settings
from torchdoctor.case.timing import (
    StepTime,
    constraint_price,
    diagnosis_passes,
    one_thread,
    tail_shares,
    time_one_step,
)
from torchdoctor.files.writing import write_weights
from torchdoctor.images.backgrounds import across_categories
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.network.checks import gives_live_maps
from torchdoctor.network.flops import compute_before
from torchdoctor.verbs.diagnose import cost_of, passes_of
from torchdoctor.verbs.forecast import RUN_WITHIN, QuickTrial, plan
from torchdoctor.verbs.judge import SCORED_BY


def settings_for(trained, photos, **more):
    """Return settings of a checkup on the trained network."""
    return Settings(
        weights=str(trained / "model.safetensors"), data=f"folder:{photos}", batch_size=16, **more
    )


@pytest.fixture
def case(trained, photos):
    """The prepared case of a checkup."""
    return prepare(settings_for(trained, photos), "checkup")


def test_counting_without_values_gives_what_the_network_gives(case):
    done = compute_before(case.model, torch.zeros(1, 3, 24, 24), case.layers)[0]
    shares = tail_shares(case, case.layers)
    assert shares == {layer: pytest.approx(1 - done[layer] / done[""]) for layer in case.layers}
    assert diagnosis_passes(case) == pytest.approx(passes_of(case))
    assert cost_of(case, diagnosis_passes(case)) == cost_of(case)


class Branching(torch.nn.Module):
    """A network that looks at its values, which the counting copy does not have."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images if float(images.sum()) > -1e9 else -images)


def test_networks_that_need_values_are_run_instead(case):
    layers = tuple(f"inner.{layer}" for layer in case.layers)
    own = replace(case, model=Branching(case.model).eval(), plan=case.plan.but(layers=layers))
    assert list(tail_shares(own, layers).values()) == list(tail_shares(case, case.layers).values())
    assert diagnosis_passes(own) is None and passes_of(own) == pytest.approx(passes_of(case))
    with pytest.raises(InputError, match="layer 'nowhere' is not in this Branching"):
        tail_shares(own, ["nowhere"])


@pytest.mark.parametrize(
    ("texts", "draws", "price"),
    [
        (("channel layers=layer4.conv2",), 1, 1.05 + 3.2 * 0.1),
        (("channel layers=layer4.conv2", "space layers=layer4.conv2"), 1, 1.05 + 3.2 * 0.1),
        (("space layers=layer4.conv2",), 1, 1.05 + 0.125 * 3.2 * 0.1),
        (("channel layers=layer2.conv2+layer4.conv2",), 1, 1.05 + 3.2 * (0.3 + 0.1)),
        (("channel layers=layer2.conv2+layer4.conv2",), 0, 1.05 + 3.2 * 0.3),
        (("channel",), 10, 1.05 + (3.2 + 9 * 1.8) * 0.1),
    ],
)
def test_the_price_of_constraints_follows_from_the_tails(case, texts, draws, price):
    own = replace(case, plan=case.plan.but(draws=draws))
    shares = {"layer1.conv2": 0.6, "layer2.conv2": 0.3, "layer4.conv2": 0.1}
    assert constraint_price(own, texts, shares) == pytest.approx(price)


def test_one_step_is_timed_with_as_many_images_as_can_be_afforded(case):
    batch = case.data.train.first_batch(0)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    dear, cheap = time_one_step(case, batch, 0.1), time_one_step(case, batch, 0.0)
    assert (dear.images, dear.batch, cheap.images, cheap.batch) == (3, 16, 16, 16)
    assert time_one_step(case, batch, 1e9).images == 1
    assert dear.finite and cheap.finite and dear.seconds > 0 and not dear.warmed_up
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


def test_a_step_says_what_was_timed():
    step = StepTime(seconds=9.6, images=2, batch=64, warmed_up=False, finite=True)
    assert step.forward == pytest.approx(0.05)
    assert step.description == (
        "one training step with 2 of the 64 images of a batch, without constraints, was timed once, "
        "without warming up"
    )
    assert "with all 64 images" in replace(step, images=64, warmed_up=True).description


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_plan_says_how_sure_it_is(trained, photos):
    result = plan(settings_for(trained, photos), "checkup")
    sure = result["how_sure"]
    assert result["seconds_low"] == pytest.approx(result["seconds"] / RUN_WITHIN, abs=0.06)
    assert result["seconds_high"] == pytest.approx(result["seconds"] * RUN_WITHIN, abs=0.11)
    assert sure["within_factor"] == RUN_WITHIN and sure["seconds_per_step"] > 0
    assert sure["timed"] in sure["text"] and sure["timed"].startswith("one training step with ")
    assert sum(result["seconds_by_stage"].values()) == pytest.approx(result["seconds"], abs=0.5)


def test_a_person_reads_it_in_plain_words(command, trained, photos):
    flags = ("--weights", trained / "model.safetensors", "--data", f"folder:{photos}", "--dry-run")
    code, out, err = command("checkup", *flags)
    assert code == 0, err
    assert "text: one training step with " in out
    assert (
        "images of a batch, without constraints, was timed once, without warming up; all other times" in out
    )
    assert "seconds_low: " in out and "The real time should lie between 1/2 and 2 times" in out


def broken(trained, folder, change):
    """Write the trained weights with one tensor changed, with the card beside them."""
    state = load_file(trained / "model.safetensors")
    change(state)
    write_weights(folder / "model.safetensors", state)
    (folder / "model.json").write_text((trained / "model.json").read_text())
    return folder / "model.safetensors"


@pytest.mark.parametrize("verb", ["diagnose", "treat", "checkup"])
def test_weights_that_the_run_refuses_are_refused(command, trained, photos, tmp_path, verb):
    home = tmp_path / "weights"
    home.mkdir()
    weights = broken(trained, home, lambda state: state["fc.weight"].fill_(float("nan")))
    flags = ("--weights", weights, "--data", f"folder:{photos}", "--out", tmp_path / "run")
    planned, ran = command(verb, *flags, "--dry-run"), command(verb, *flags)
    assert planned[0] == ran[0] == 2 and planned[2] == ran[2]
    assert "the logits are not finite: the weights or the preprocessing are broken" in planned[2]
    assert not (tmp_path / "run").exists()


def test_dead_layers_are_tried_out_in_full(trained, photos, tmp_path):
    weights = broken(trained, tmp_path, lambda state: state["layer4.conv2.weight"].zero_())
    settings = settings_for(trained, photos).but(weights=str(weights))
    messages = []
    for trial in (None, QuickTrial()):
        with pytest.raises(InputError) as error:
            prepare(settings, "checkup", try_out=trial)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "the map at layer4.conv2 is 0 on the example" in messages[0]


class OneAtATime(torch.nn.Module):
    """A network that takes no batches."""

    def forward(self, images):
        """Fail for more than one image."""
        if len(images) > 1:
            raise RuntimeError("one image at a time, please")
        return images.mean((2, 3))


def test_a_network_that_fails_in_the_pass_is_refused_as_the_run_does(case):
    messages = []
    for trial in (try_out_network, QuickTrial()):
        with pytest.raises(InputError) as error:
            trial("mine:net", OneAtATime(), case.data, ("layer4.conv2",))
        messages.append(str(error.value))
    assert messages[0] == messages[1] == "--model 'mine:net': RuntimeError: one image at a time, please"


def test_a_live_network_is_told_from_a_dead_one():
    model, images = load_model("small_resnet", 2, image_size=24).eval(), torch.randn(2, 3, 24, 24)
    layers = ("layer1.conv2", "layer4.conv2")
    assert gives_live_maps(model, images, layers)
    assert not gives_live_maps(model, torch.full_like(images, torch.inf), layers)
    with torch.no_grad():
        model.layer4.conv2.weight.zero_()
    assert not gives_live_maps(model, images, layers) and gives_live_maps(model, images, layers[:1])
    with pytest.raises(InputError, match="layer 'fc' gives shape"):
        gives_live_maps(model, images, ("fc",))


def test_constraints_on_layers_that_are_not_diagnosed_are_refused(command, trained, photos, tmp_path):
    flags = (
        "--weights",
        trained / "model.safetensors",
        "--data",
        f"folder:{photos}",
        "--layers",
        "layer4.conv2",
    )
    flags += ("--constraints", "channel layers=layer2.conv2", "--out", tmp_path / "run", "--epochs", 1)
    planned, ran = command("treat", *flags, "--dry-run"), command("treat", *flags)
    assert planned[0] == ran[0] == 2
    message = (
        "constraint 'channel' is on layer 'layer2.conv2', which was not diagnosed; diagnosed: layer4.conv2"
    )
    assert message in planned[2] and message in ran[2]


@pytest.fixture
def masks(photos, tmp_path):
    """A folder with the object's mask for every photograph."""
    mask = Image.new("L", (24, 24))
    mask.paste(255, (6, 6, 18, 18))
    for photo in photos.rglob("*.png"):
        file = tmp_path / "masks" / photo.relative_to(photos)
        file.parent.mkdir(parents=True, exist_ok=True)
        mask.save(file)
    return tmp_path / "masks"


def test_a_dry_run_computes_one_step_and_shows_three_images(trained, photos, masks, monkeypatch):
    """That is its processor time beside the imports: benchmarks/speed/dry_run.py measures it."""
    shown, composed = [], []

    def count(module, given):
        if isinstance(module, SmallResNet) and given[0].device.type != "meta":
            shown.append((len(given[0]), torch.is_grad_enabled()))

    def compose(*call):
        composed.append(call)
        return across_categories(*call)

    monkeypatch.setattr("torchdoctor.case.splits.across_categories", compose)
    hook = register_module_forward_pre_hook(count)
    try:
        result = plan(settings_for(trained, photos).but(masks=str(masks)), "checkup")
    finally:
        hook.remove()
    assert result["masks"] and not composed
    assert [images for images, gradients in shown if not gradients] == [1, 2]
    (images,) = [images for images, gradients in shown if gradients]
    assert 1 <= images <= 16


def test_a_dry_run_refuses_a_score_by_masks_that_are_not_there(trained, photos, masks):
    settings = settings_for(trained, photos).but(select="swapped")
    with pytest.raises(InputError, match="swaps the backgrounds of validation images by their masks"):
        plan(settings, "checkup")
    assert plan(settings.but(masks=str(masks)), "checkup")["search"]["scored by"] == SCORED_BY["swapped"]
