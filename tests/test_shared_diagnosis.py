"""Several processes diagnose together: the numbers of one process, whoever dies meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from launching import together
from torchdoctor.images.batches import Batch, only, shared
from torchdoctor.images.loaders import images_of
from torchdoctor.processes import Processes

PROGRAM = """
import sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchdoctor import Batch, RobustnessSettings, diagnose, find_causes, measure_robustness
from torchdoctor.files.reading import sha256_of
from torchdoctor.processes import launched

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3),
    torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(384, 3),
).eval()
pixels, labels = torch.randn(53, 3, 12, 12), torch.arange(53) % 3
labels[:30] = model(pixels[:30]).argmax(1)
masks = torch.zeros(53, 1, 12, 12)
masks[:, :, 3:9, 3:9] = 1
rows = torch.arange(53).split(8)
batches = [Batch(pixels[part], labels[part], part, masks[part]) for part in rows]
loader = DataLoader(TensorDataset(pixels, labels, masks), batch_size=8)
here = launched()
for name, images in (("batches", batches), ("loader", loader), ("few", batches[:1])):
    for draws in (0, 10):
        found = diagnose(
            model, images, layers=["0", "3"], draws=draws, confidence=0.0, processes=here,
        )
        out = Path(sys.argv[1]) / f"{name}{draws}-{here.rank}"
        found.save(out)
        print(name, draws, *(sha256_of(out / f"diagnosis.{kind}") for kind in ("safetensors", "json")))
    causes = find_causes(model, images, found, processes=here)
    print(name, repr(str(causes)))
attack = RobustnessSettings(ranges=(0.0, 1.0), repeats=5, epsilon=0.3, number=9)
curves = measure_robustness(model, batches, attack, mean=[0.5] * 3, std=[0.25] * 3, processes=here)
print([values.tolist() for values in (curves.normal, curves.restored, curves.fooled)], curves.layers)
here.leave()
"""


@pytest.mark.slow
def test_any_number_of_processes_gives_the_diagnosis_of_one(tmp_path):
    pytest.importorskip("accelerate")
    alone = together(1, ["-c", PROGRAM, tmp_path / "1"])[0]
    assert alone[0] == 0, alone[2]
    assert alone[1].count("\n") == 10
    for count in (2, 4):
        for code, out, err in together(count, ["-c", PROGRAM, tmp_path / str(count)]):
            assert (code, out) == (0, alone[1]), err


SHARES = [Processes(rank, 3) for rank in range(3)]


def test_every_batch_is_dealt_to_one_process():
    pixels, labels = torch.randn(23, 1, 4, 4), torch.zeros(23, dtype=torch.long)
    read = []

    class Counted(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    images = images_of(DataLoader(Counted(pixels, labels), batch_size=4))
    read.clear()
    dealt = [list(shared(images, share)) for share in SHARES]
    assert sorted(read) == list(range(23))  # nobody loads what another process works on
    assert [[len(batch.ids) for batch in share] for share in dealt] == [[4, 4], [4, 4], [4, 3]]
    together_again = torch.cat([batch.ids for turn in zip(*dealt, strict=True) for batch in turn])
    assert together_again.tolist() == list(range(23))
    for share in dealt:
        for batch in share:
            assert torch.equal(batch.images, pixels[batch.ids])


def test_chosen_images_are_in_the_batches_of_one_process():
    batches = [
        Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4).long(), torch.arange(4) + 4 * k) for k in range(5)
    ]
    alone = [batch.ids.tolist() for batch in only(batches, [0, 5, 6, 17])]
    dealt = [[batch.ids.tolist() for batch in only(batches, [0, 5, 6, 17], share)] for share in SHARES]
    assert alone == [[0], [5, 6], [17]] and dealt == [[[0]], [[5, 6], [17]], []]
