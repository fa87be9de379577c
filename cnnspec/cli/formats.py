"""Output formats of `check`: one line per diagnostic, JSON, SARIF, and annotations for GitHub.

`diagnostics.render` is the full form, for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cnnspec.diagnostics import Diagnostic, Edit, Span, printable, printable_line
from cnnspec.ir import Graph

FORMATS = ("full", "concise", "json", "sarif", "github")
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True)
class Checked:
    """The result of checking one file.

    Attributes:
        file: The file as the user named it.
        diagnostics: Its errors and warnings.
        graph: The network, if there is one.
        fixed: Diagnostics that `--fix` fixed.
    """

    file: str
    diagnostics: Sequence[Diagnostic]
    graph: Graph | None = None
    fixed: Sequence[Diagnostic] | None = None

    @property
    def ok(self) -> bool:
        return not any(diagnostic.severity == "error" for diagnostic in self.diagnostics)


def concise(diagnostic: Diagnostic, file: str) -> str:
    """Return a diagnostic in one line: `net.cnn:3:6: error[E0201]: message (help)`."""
    place = f":{diagnostic.line}:{diagnostic.column}" if diagnostic.span else ""
    help = f" ({diagnostic.help})" if diagnostic.help else ""
    text = f"{diagnostic.name or file}{place}: {diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}{help}"
    return printable_line(text)


def github(diagnostic: Diagnostic, file: str) -> str:
    """Return a GitHub workflow command that shows the diagnostic at its line. Source: "Workflow commands"."""
    fields = {"file": diagnostic.name or file}
    if diagnostic.span is not None:
        end_line, end_column = diagnostic.span.end_place
        fields |= {"line": str(diagnostic.line), "endLine": str(end_line)}
        if end_line == diagnostic.line:
            fields |= {"col": str(diagnostic.column), "endColumn": str(end_column)}
    fields["title"] = diagnostic.code
    properties = ",".join(
        f"{name}={_escape(printable(value)).replace(':', '%3A').replace(',', '%2C')}" for name, value in fields.items()
    )
    message = "\n".join(map(printable, _message_lines(diagnostic)))
    return f"::{diagnostic.severity} {properties}::{_escape(message)}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _message_lines(diagnostic: Diagnostic) -> list[str]:
    caption = f"{diagnostic.message} ({diagnostic.caption})" if diagnostic.caption else diagnostic.message
    notes = [f"note: {note}" for note in diagnostic.notes]
    return [caption, *notes, *([f"help: {diagnostic.help}"] if diagnostic.help else [])]


def to_json(results: Iterable[Checked]) -> dict[str, Any]:
    """Return the results as plain data, with a version that changes with the format."""
    files: list[dict[str, Any]] = []
    for result in results:
        entry: dict[str, Any] = {
            "file": result.file,
            "ok": result.ok,
            "diagnostics": [diagnostic.to_json() for diagnostic in result.diagnostics],
        }
        if result.fixed is not None:
            entry["fixed"] = [diagnostic.to_json() for diagnostic in result.fixed]
        if result.graph is not None:
            entry |= {
                "name": result.graph.name,
                "input": list(result.graph.input_shape),
                **({"images": result.graph.images} if result.graph.images else {}),
                "output": list(result.graph.output_shape),
                **({"outputs": result.graph.output_shapes} if result.graph.taps else {}),
                "parameters": result.graph.parameter_count,
                "macs": result.graph.macs,
                "sizes": result.graph.sizes.to_json(),
            }
        files.append(entry)
    return {"version": 1, "files": files}


# --- SARIF 2.1.0 ---------------------------------------------------------------------------------


def to_sarif(results: Iterable[Checked], version: str, titles: dict[str, str]) -> dict[str, Any]:
    """Return the results as a log in the Static Analysis Results Interchange Format (SARIF), version 2.1.0.

    Args:
        results: The result for each file.
        version: The version of this package.
        titles: The title of each code.
    """
    pairs = [(diagnostic, result.file) for result in results for diagnostic in result.diagnostics]
    codes = sorted({diagnostic.code for diagnostic, _ in pairs})
    driver: dict[str, Any] = {
        "name": "cnnspec",
        "version": version,
        "rules": [
            {
                "id": code,
                "shortDescription": {"text": titles.get(code, code)},
                "help": {
                    "text": f"`cnnspec explain {code}` explains it, with a sample that fails and the fixed sample."
                },
            }
            for code in codes
        ],
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, file, codes.index(diagnostic.code)) for diagnostic, file in pairs],
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(diagnostic: Diagnostic, file: str, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": _uri(diagnostic.name or file)}}
    if diagnostic.span is not None:
        location["region"] = _region(diagnostic.span)
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": index,
        "level": diagnostic.severity,
        "message": {"text": "\n".join(_message_lines(diagnostic))},
        "locations": [{"physicalLocation": location}],
    }
    related = [
        {
            "id": number,
            "physicalLocation": {
                "artifactLocation": {"uri": _uri(label.span.source.name)},
                "region": _region(label.span),
            },
            "message": {"text": label.text or "see here"},
        }
        for number, label in enumerate(diagnostic.labels, 1)
    ]
    if related:
        result["relatedLocations"] = related
    if diagnostic.fixes:
        result["fixes"] = [
            {"description": {"text": fix.help}, "artifactChanges": [_change(fix.edits)]} for fix in diagnostic.fixes
        ]
    return result


def _change(edits: Sequence[Edit]) -> dict[str, Any]:
    replacements = [{"deletedRegion": _region(edit.span), "insertedContent": {"text": edit.text}} for edit in edits]
    return {"artifactLocation": {"uri": _uri(edits[0].span.source.name)}, "replacements": replacements}


def _region(span: Span) -> dict[str, int]:
    end_line, end_column = span.end_place
    return {"startLine": span.line, "startColumn": span.column, "endLine": end_line, "endColumn": end_column}


def _uri(file: str) -> str:
    """Return a path as a URI reference; an absolute path gets the scheme `file`."""
    path = quote(file.replace("\\", "/"), safe="/")
    return f"file://{path}" if path.startswith("/") else path
