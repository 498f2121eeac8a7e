"""Networks that are neither in torchvision nor in timm."""
