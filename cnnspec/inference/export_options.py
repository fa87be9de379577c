"""The options of an export and which of them contradict each other, without an import of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

ENDINGS = {"torch": ".py", "pt2": ".pt2", "onnx": ".onnx"}
"""The extension of the file by format."""
AXES = ("batch", "size")
"""The axes of the input whose size may vary."""
_SOURCE_TAKES = {"dynamic": "batches of any size", "with_preprocessing": "normalized images"}


def read_axes(dynamic: str | Sequence[str]) -> list[str]:
    """Return the axes that are named by a list, or by a text with commas."""
    axes = [part.strip() for part in dynamic.split(",")] if isinstance(dynamic, str) else [*dynamic]
    return [axis for axis in dict.fromkeys(axes) if axis != ""]


def find_fault(
    to: str,
    axes: Sequence[str],
    with_preprocessing: bool,
    match: str,
    has_weights: bool,
    spell: Callable[[str], str] = str,
) -> tuple[str, str] | None:
    """Return what is wrong with options that do not exist or have no effect, and what to write instead.

    Args:
        to: The format.
        axes: The axes whose size may vary.
        with_preprocessing: Whether the file starts from bytes.
        match: How weights are matched.
        has_weights: Whether a file of weights is given.
        spell: Returns the name of an option as the user writes it.
    """
    dynamic, unknown = spell("dynamic"), next((axis for axis in axes if axis not in AXES), None)
    if to not in ENDINGS:
        return f"unknown format `{to}` in `{spell('to')}`", f"choose from {', '.join(ENDINGS)}"
    if unknown is not None:
        return f"unknown axis `{unknown}` in `{dynamic}`", f"choose from {', '.join(AXES)}"
    if to == "torch" and (axes or with_preprocessing):
        option = "dynamic" if axes else "with_preprocessing"
        return f"`{spell(option)}` has no effect on Python source", f"omit it: the source takes {_SOURCE_TAKES[option]}"
    if with_preprocessing and "size" in axes:
        message = f"`size` in `{dynamic}` has no effect with `{spell('with_preprocessing')}`"
        return message, "omit it: the file takes images of any size"
    if match != "name" and not has_weights:
        return f"`{spell('match')}` has no effect without `{spell('weights')}`", "omit it: no tensors are matched"
    return None
