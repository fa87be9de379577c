"""Source text, spans, diagnostics as data, and the suggestions that come with them."""

from cnnspec.diagnostics.escape import echo, printable, printable_line, without_commands
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
    reason_of,
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
    "echo",
    "failure",
    "nearest",
    "one_line",
    "printable",
    "printable_line",
    "reason_of",
    "render",
    "respell",
    "without_commands",
]
