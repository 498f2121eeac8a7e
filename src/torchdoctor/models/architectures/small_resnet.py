"""A small residual network for images of 32 to 96 pixels, which the demo trains in half a minute."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch-norm, added to the input.

    Where the stride is not 1 or the numbers of channels differ, the input first goes through a 1 x 1
    convolution with that stride.

    Args:
        channels_in: The number of channels of the input maps.
        channels_out: The number of channels of the output maps.
        stride: The stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, maps: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Compute the output maps of the block.

        Args:
            maps: The input maps, [batch, channels_in, height, width].

        Returns:
            The output maps, [batch, channels_out, height / stride, width / stride].
        """
        shortcut = self.downsample(maps)
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(maps)))))
        return self.relu(inner + shortcut)


class SmallResNet(nn.Module):
    """A convolution with stride 2, four residual blocks of growing width, average pooling, a linear layer.

    Args:
        classes: The number of categories.
        channels: The number of channels of the images.
        image_size: The side of the images in pixels; not used, the same layers serve all sizes.
        width: The number of kernels of the first block; the next blocks have 2, 4 and 8 times as many.
    """

    def __init__(self, classes: int, channels: int = 3, image_size: int = 64, width: int = 16) -> None:
        super().__init__()
        del image_size  # the same layers serve all sizes
        stem = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = ResidualBlock(width, width, 1)
        self.layer2 = ResidualBlock(width, 2 * width, 2)
        self.layer3 = ResidualBlock(2 * width, 4 * width, 2)
        self.layer4 = ResidualBlock(4 * width, 8 * width, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch category"]:
        """Classify images.

        Args:
            images: The normalised images.

        Returns:
            The logits.
        """
        maps = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return self.fc(self.avgpool(maps).flatten(1))
