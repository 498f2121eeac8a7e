"""SimpleNet v1 (Hasanpour et al., 2016): thirteen plain convolutions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

# The number of output channels of each convolution; each stage but the last ends in a pooling.
STAGES = ((64, 128, 128, 128), (128, 128, 256), (256, 256), (512,), (2048, 256), (256,))
POINTWISE = 4  # the position in STAGES of the stage whose convolutions are 1 x 1


class SimpleNet(nn.Module):
    """Six stages of convolution, batch-norm and ReLU, then the maximum of each map and a linear layer.

    The published 5.48 million parameters for 10 categories are those of the convolutions and the linear
    layer; batch-norm adds 9,088. The convolutions have no bias, because batch-norm would cancel it. The
    original is for images of 32 pixels; for 112 pixels and more the first convolution has stride 2. The
    poolings round sizes up, so that images of 28 pixels pass all five of them.

    Args:
        classes: The number of categories.
        channels: The number of channels of the images.
        image_size: The side of the images in pixels.
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
        """Classify images.

        Args:
            images: The normalised images.

        Returns:
            The logits.
        """
        return self.fc(self.dropout(self.maxpool(self.stages(images)).flatten(1)))
