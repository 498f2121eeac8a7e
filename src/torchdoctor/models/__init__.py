"""Build classifiers and load weights into them."""

from torchdoctor.models.loading import OWN, load_into, load_model, load_weights, weights_card

__all__ = ["OWN", "load_into", "load_model", "load_weights", "weights_card"]
