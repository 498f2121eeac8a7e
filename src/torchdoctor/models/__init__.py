"""Build image classifiers by name and load weights into them."""

from torchdoctor.models.catalogue import MODELS, ModelEntry
from torchdoctor.models.loading import TIMM_SOURCES, load_model
from torchdoctor.models.pretrained import PRETRAINED, own_preprocessing
from torchdoctor.models.weights import load_into, load_weights, weights_card

__all__ = [
    "MODELS",
    "PRETRAINED",
    "TIMM_SOURCES",
    "ModelEntry",
    "load_into",
    "load_model",
    "load_weights",
    "own_preprocessing",
    "weights_card",
]
