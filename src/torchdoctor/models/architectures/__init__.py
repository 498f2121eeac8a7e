"""Networks that neither torchvision nor timm has."""
