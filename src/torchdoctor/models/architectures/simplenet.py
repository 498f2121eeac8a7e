"""SimpleNet v1 (Hasanpour et al., 2016): thirteen plain convolutions; neither torchvision nor timm has it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

# Channels of each convolution; a pooling closes each stage. The last two of stage 5 are 1 x 1.
STAGES = ((64, 128, 128, 128), (128, 128, 256), (256, 256), (512,), (2048, 256), (256,))
POINTWISE = 4  # the stage of 1 x 1 convolutions


class SimpleNet(nn.Module):
    """Six stages of convolution, batch-norm and ReLU, the largest value of each map, and one linear layer.

    The published 5.48 M parameters at 10 categories are the weights of convolutions and classifier;
    batch-norm adds 9,088. The convolutions have no bias, which batch-norm would cancel. The original is
    for 32 pixels; from 112 pixels on the first convolution strides by 2. Poolings round up, so that 28
    pixels survive all five of them.
    """

    def __init__(self, classes: int, channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        width, stride = channels, 2 if image_size >= 112 else 1
        for number, sizes in enumerate(STAGES):
            stage = nn.Sequential()
            for size in sizes:
                kernel = 1 if number == POINTWISE else 3
                stage.append(nn.Conv2d(width, size, kernel, stride, kernel // 2, bias=False))
                stage.append(nn.BatchNorm2d(size, momentum=0.05))
                stage.append(nn.ReLU())
                width, stride = size, 1
            if number < len(STAGES) - 1:
                stage.append(nn.MaxPool2d(2, ceil_mode=True))
                stage.append(nn.Dropout2d(0.1))
            self.stages.append(stage)
        self.maxpool = nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch category"]:
        """Return the logits."""
        return self.fc(self.dropout(self.maxpool(self.stages(images)).flatten(1)))
