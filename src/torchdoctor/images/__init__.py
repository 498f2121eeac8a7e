"""Batches of images, their object masks, and images composed with other backgrounds."""
