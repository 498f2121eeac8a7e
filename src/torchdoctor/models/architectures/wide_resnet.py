"""Wide residual networks for small images (Zagoruyko and Komodakis, 2016)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Batch-norm, ReLU and a 3 x 3 convolution, twice, added to a shortcut.

    The shortcut is the input; where the stride is not 1 or the numbers of channels differ, it is a 1 x 1
    convolution of the output of the first ReLU.

    Args:
        channels_in: The number of channels of the input maps.
        channels_out: The number of channels of the output maps.
        stride: The stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, maps: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Compute the output maps of the block.

        Args:
            maps: The input maps, [batch, channels_in, height, width].

        Returns:
            The output maps, [batch, channels_out, height / stride, width / stride].
        """
        active = self.relu(self.bn1(maps))
        shortcut = maps if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.relu(self.bn2(self.conv1(active)))) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-width: a 3 x 3 convolution and three groups of (depth - 4) / 6 blocks.

    The original is for images of 32 pixels, where the last map is 8 x 8. For 56 pixels and more the first
    convolution has stride 2, and for 112 and more a pooling halves the map once more, so that the last
    map stays near 8 to 14 pixels.

    Args:
        classes: The number of categories.
        channels: The number of channels of the images.
        image_size: The side of the images in pixels.
        depth: The number of convolutions, 6 n + 4 for n blocks in each group.
        width: The factor on the numbers of kernels, which are 16, 32 and 64 times it in the three groups.
    """

    def __init__(
        self, classes: int, channels: int = 3, image_size: int = 32, depth: int = 28, width: int = 10
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 2 if image_size >= 56 else 1, 1, bias=False)
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if image_size >= 112 else nn.Identity()
        self.group1 = self._group(16, 16 * width, 1, blocks)
        self.group2 = self._group(16 * width, 32 * width, 2, blocks)
        self.group3 = self._group(32 * width, 64 * width, 2, blocks)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _group(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
        """Return a group of blocks of which the first changes the size and the number of channels."""
        first = WideBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *(WideBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch category"]:
        """Classify images.

        Args:
            images: The normalised images.

        Returns:
            The logits.
        """
        maps = self.group3(self.group2(self.group1(self.pool(self.conv1(images)))))
        return self.fc(self.avgpool(self.relu(self.bn(maps))).flatten(1))
