"""Metrics of a test besides accuracy and loss: precision, recall and F1 of each class, and the calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15
"""The number of bins of equal width for the calibration. Source: Guo et al. 2017, section 2."""


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix `[classes, classes]`: rows are actual, columns predicted classes."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def class_metrics(counts: Tensor) -> list[dict[str, Any]]:
    """Return the number of images, precision, recall and F1 of each class; None for a quotient with nothing to count.

    Args:
        counts: The confusion matrix.
    """
    correct, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return [
        {
            "images": n,
            "precision": _ratio(hits, claimed),
            "recall": _ratio(hits, n),
            "f1": _ratio(2 * hits, n + claimed),
        }
        for hits, n, claimed in zip(correct.tolist(), actual.tolist(), predicted.tolist(), strict=True)
    ]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def calibration(correct: Tensor, probability: Tensor) -> tuple[float, list[dict[str, Any]]]:
    """Return the expected calibration error, and the bins of the reliability diagram that have images.

    The error is the mean distance between confidence and accuracy over the bins, weighted by their images. Each bin has
    its number of `images`, their mean `confidence`, the probability of the predicted class, and their `accuracy`.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        correct: Whether each prediction is correct, `[N]`.
        probability: The probability of the predicted class, `[N]`.
    """
    places = (probability * BINS).ceil().long().clamp(1, BINS) - 1
    counts = torch.bincount(places, minlength=BINS)
    sums = (torch.bincount(places, values.double(), BINS) for values in (probability, correct))
    confidence, accuracy = (total / counts.clamp(min=1) for total in sums)
    error = float((counts * (accuracy - confidence).abs()).sum() / max(1, len(places)))
    rows = zip(counts.tolist(), confidence.tolist(), accuracy.tolist(), strict=True)
    return error, [{"images": n, "confidence": conf, "accuracy": acc} for n, conf, acc in rows if n]
