"""Batches of images, object masks, and images put before other backgrounds."""
