"""Datasets, downloads, augmentation, batches, and random numbers."""
