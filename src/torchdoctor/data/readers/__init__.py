"""Readers of images as they lie on disk: one module for each kind of source."""
