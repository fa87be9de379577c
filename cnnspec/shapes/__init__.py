"""Shapes without their batch axis, and the rules that change their sizes."""

from cnnspec.shapes.rules import (
    ITSELF,
    KEEP,
    AxisRule,
    Fixed,
    Shape,
    Shift,
    Span,
    Spread,
    Times,
    Window,
    differing_axes,
    is_map,
    join_words,
    numel,
    same_padding,
    text,
)

__all__ = [
    "ITSELF",
    "KEEP",
    "AxisRule",
    "Fixed",
    "Shape",
    "Shift",
    "Span",
    "Spread",
    "Times",
    "Window",
    "differing_axes",
    "is_map",
    "join_words",
    "numel",
    "same_padding",
    "text",
]
