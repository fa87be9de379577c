"""Find the first layer that produces NaN or Inf."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnnspec.diagnostics import CnnspecError, failure


def _has_nonfinite(values: Any) -> bool:
    tensors = values if isinstance(values, (tuple, list)) else (values,)
    return any(isinstance(t, Tensor) and t.is_floating_point() and not torch.isfinite(t).all() for t in tensors)


def first_nonfinite_weight(network: nn.Module) -> str | None:
    """Return the name of the first weight that is not finite."""
    return next((name for name, weight in network.state_dict().items() if _has_nonfinite(weight)), None)


def first_nonfinite_layer(network: nn.Module, images: Tensor) -> str | None:
    """Return the name of the first layer, in execution order, whose output is not finite."""
    found: list[str] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and _has_nonfinite(output):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(record(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def divergence_error(
    network: nn.Module, images: Tensor | None, loss: float | None, step: int, steps: int, lr: float
) -> CnnspecError:
    """Return the error of a diverged run: the step, the learning rate, and the first layer that is not finite.

    Args:
        network: The network in the state that produced the loss.
        images: The batch `[N, C, H, W]`, or None.
        loss: The loss, or None if the update of the weights is not finite.
        step: The step, from 1.
        steps: Steps per epoch.
        lr: The learning rate of the step.
    """
    notes: list[str] = []
    if weight := first_nonfinite_weight(network):
        notes.append(f"the first weight that contains NaN or Inf is `{weight}`")
    layer = first_nonfinite_layer(network, images) if images is not None else None
    if layer:
        notes.append(f"the first layer whose output contains NaN or Inf is `{layer}`")
    elif images is not None and loss is not None and not weight:
        notes.append("the outputs of all layers are finite: the loss itself overflows")
    notes.append("the last checkpoint before this step is kept")
    what = "a weight is not finite after" if loss is None else f"the loss is {loss} at"
    return failure(
        "E0509",
        f"training diverged: {what} step {step} (epoch {(step - 1) // steps + 1}) with learning rate {lr:g}",
        notes=notes,
        help="use a lower learning rate, a warm-up (`schedule cosine warmup=5`), or gradient clipping (`clip 1`)",
    )
