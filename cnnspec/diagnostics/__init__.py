"""Source text, spans, diagnostics as data, and the suggestions that come with them."""

from cnnspec.diagnostics.model import (
    CnnspecError,
    Diagnostic,
    Edit,
    Fix,
    Label,
    Reported,
    Reporter,
    Source,
    Span,
    TooManyErrors,
    apply_edits,
    counted,
    failure,
    one_line,
    render,
)
from cnnspec.diagnostics.spelling import alternatives, did_you_mean, nearest, respell

__all__ = [
    "CnnspecError",
    "Diagnostic",
    "Edit",
    "Fix",
    "Label",
    "Reported",
    "Reporter",
    "Source",
    "Span",
    "TooManyErrors",
    "alternatives",
    "apply_edits",
    "counted",
    "did_you_mean",
    "failure",
    "nearest",
    "one_line",
    "render",
    "respell",
]
