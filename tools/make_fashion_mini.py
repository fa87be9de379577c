"""Create the dataset `fashion_mini` from Fashion-MNIST: `python tools/make_fashion_mini.py DATA_DIR`.

It contains the first 600 training images and the first 100 test images of each of the ten classes, in the order of the
original files. The same original files result in the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

TARGET = Path(__file__).resolve().parent.parent / "cnnspec" / "training" / "fashion_mini" / "fashion_mini.npz"


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the first `count` images of every class, in order."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def main(data_dir: str) -> None:
    """Write the dataset."""
    arrays: dict[str, np.ndarray] = {}
    for part, train, count in (("train", True, 600), ("test", False, 100)):
        original = FashionMNIST(data_dir, train=train, download=False)
        labels = original.targets.numpy().astype(np.uint8)
        keep = first_of_each(labels, count)
        arrays[f"{part}_images"] = original.data.numpy()[keep]
        arrays[f"{part}_labels"] = labels[keep]
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
