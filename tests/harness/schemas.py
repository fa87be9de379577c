"""The published JSON Schemas, closed for keys that they do not describe."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference" / "schemas"


@cache
def _validator(name: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for part in (schema, *schema["$defs"].values()):
        if "properties" in part:
            part["additionalProperties"] = False
    return jsonschema.Draft202012Validator(schema)


def problems(name: str, data: Any) -> list[str]:
    """Return what is wrong with an output, after a round trip through JSON without NaN."""
    plain = json.loads(json.dumps(data, default=str, allow_nan=False))
    best = pytest.importorskip("jsonschema").exceptions.best_match
    found = (best([error]) for error in _validator(name).iter_errors(plain))
    return [f"{error.json_path}: {error.message[:200]}" for error in found]
