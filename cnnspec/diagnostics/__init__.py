"""Source text, spans, diagnostics as data, and the suggestions that come with them."""

from cnnspec.diagnostics.model import (
    CnnspecError,
    Diagnostic,
    Edit,
    Fix,
    Label,
    Report,
    Source,
    Span,
    TooManyFaults,
    apply_edits,
    counted,
    did_you_mean,
    failure,
    nearest,
    render,
    respell,
)

__all__ = [
    "CnnspecError",
    "Diagnostic",
    "Edit",
    "Fix",
    "Label",
    "Report",
    "Source",
    "Span",
    "TooManyFaults",
    "apply_edits",
    "counted",
    "did_you_mean",
    "failure",
    "nearest",
    "render",
    "respell",
]
