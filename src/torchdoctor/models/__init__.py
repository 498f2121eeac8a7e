"""Build classifiers, load weights, and find the layers to look at."""

from torchdoctor.models.candidates import Candidate, candidate_layers, default_layers
from torchdoctor.models.loading import OWN, load_into, load_model, load_weights, weights_card

__all__ = [
    "OWN",
    "Candidate",
    "candidate_layers",
    "default_layers",
    "load_into",
    "load_model",
    "load_weights",
    "weights_card",
]
