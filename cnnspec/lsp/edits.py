"""Changes of the text: formatting and fixes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lsprotocol import types as lsp

from cnnspec.compiler import format_text
from cnnspec.diagnostics import CnnspecError, Edit
from cnnspec.lsp.document import Analysis, Text, difference
from cnnspec.lsp.views import to_protocol
from cnnspec.rewrite.autofix import apply_fixes, certain_fixes

FIX_ALL = "source.fixAll.cnnspec"


def formatting(analysis: Analysis) -> list[lsp.TextEdit]:
    """Return the edits that format the text, or an empty list if it has syntax errors."""
    try:
        return _difference(analysis.text, format_text(analysis.source))
    except CnnspecError:
        return []


def _difference(old: Text, changed: str) -> list[lsp.TextEdit]:
    """Return the smallest single edit from one text to another."""
    start, end, new_end = difference(old.text, changed)
    return [lsp.TextEdit(old.range(start, end), changed[start:new_end])] if changed != old.text else []


def text_edits(analysis: Analysis, edits: Iterable[Edit]) -> list[lsp.TextEdit]:
    """Convert edits of the text."""
    return [lsp.TextEdit(analysis.range(edit.span), edit.text) for edit in edits]


def code_actions(analysis: Analysis, params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    """Return the fixes of the diagnostics in a range, and the action that applies all certain fixes."""
    start, end = analysis.text.offset(params.range.start), analysis.text.offset(params.range.end)
    only = params.context.only
    actions: list[lsp.CodeAction] = []
    certain = False
    for found in analysis.diagnostics():
        certain |= any(fix.certain for fix in found.fixes)
        if not _wanted(lsp.CodeActionKind.QuickFix, only) or found.span is None:
            continue
        if found.span.source is not analysis.source or found.span.start > end or found.span.end < start:
            continue
        for fix in found.fixes:
            changes = {analysis.uri: text_edits(analysis, fix.edits)}
            actions.append(
                lsp.CodeAction(
                    fix.help,
                    lsp.CodeActionKind.QuickFix,
                    [to_protocol(analysis, found)],
                    is_preferred=fix.certain or None,
                    edit=lsp.WorkspaceEdit(changes),
                )
            )
    if certain and _wanted(FIX_ALL, only):
        if only:  # all rounds, which takes longer than an editor should wait at each place of the cursor
            name = analysis.source.name
            text, _, _ = apply_fixes(analysis.text.text, name, analysis.path, buffers=analysis.buffers)
            changed = _difference(analysis.text, text)
        else:
            chosen = certain_fixes(analysis.diagnostics())
            changed = text_edits(analysis, (edit for _, taken in chosen for edit in taken))
        if changed:
            whole = lsp.WorkspaceEdit({analysis.uri: changed})
            actions.append(lsp.CodeAction("apply all certain fixes", FIX_ALL, edit=whole))
    return actions


def _wanted(kind: str, only: Sequence[lsp.CodeActionKind | str] | None) -> bool:
    return not only or any((kind + ".").startswith(one + ".") for one in only)
