"""Readers of images on disk, a module for each kind of source."""
