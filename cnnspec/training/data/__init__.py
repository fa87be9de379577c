"""Data sets, downloads, augmentation, batches, and random numbers."""
