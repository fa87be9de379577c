"""Where a network that diverged is first not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnnspec.diagnostics import CnnspecError, failure


def _bad(values: Any) -> bool:
    tensors = values if isinstance(values, (tuple, list)) else (values,)
    return any(isinstance(t, Tensor) and t.is_floating_point() and not torch.isfinite(t).all() for t in tensors)


def bad_weight(network: nn.Module) -> str | None:
    """The first weight that is not finite."""
    return next((name for name, weight in network.state_dict().items() if _bad(weight)), None)


def bad_layer(network: nn.Module, images: Tensor) -> str | None:
    """The first layer, in the order in which they run, that gives numbers that are not finite."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and _bad(output):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_not_finite(
    network: nn.Module, images: Tensor | None, loss: float, step: int, steps: int, rate: float
) -> CnnspecError:
    """The error of a run that diverged: the step, the learning rate, and the first layer that is not finite.

    Args:
        network: As it was when the loss was found.
        images: The batch `[N, C, H, W]`, if it is still there.
        loss: What was found.
        step: Its number, from 1.
        steps: Steps of an epoch.
        rate: The learning rate of the step.
    """
    notes: list[str] = []
    if weight := bad_weight(network):
        notes.append(f"the first weight that is not finite is `{weight}`")
    layer = bad_layer(network, images) if images is not None else None
    if layer:
        notes.append(f"the first layer whose output is not finite is `{layer}`")
    elif images is not None and not weight:
        notes.append("every layer's output is finite: the loss itself is too large")
    notes.append("the checkpoint before it is kept")
    return failure(
        "E0509",
        f"training diverged: the loss is {loss} at step {step} (epoch {(step - 1) // steps + 1})"
        f" with learning rate {rate:g}",
        notes=notes,
        help="use a lower learning rate, a warm-up (`schedule cosine warmup=5`), or `clip 1`",
    )
