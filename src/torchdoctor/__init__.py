"""Model Doctor."""

__version__ = "0.1.0"
