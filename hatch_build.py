"""Put the parser's tables into the wheel, so that no installation has to build them."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ParserTables(BuildHookInterface):
    """Build the parser from the grammar and add its tables to the wheel; an editable install uses the cache folder."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        parser = self._parser_module()
        grammar = Path(self.root, "grammar", "cnn.lark").read_text("utf-8")
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, parser.TABLES)
        path.write_bytes(parser.serialize(parser.build_parser(grammar), parser.table_key(grammar)))
        path.chmod(0o644)
        build_data["force_include"][str(path)] = f"cnnspec/grammar/{parser.TABLES}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._folder.cleanup()

    def _parser_module(self) -> Any:
        """Import `cnnspec/syntax/parser.py` alone: its package needs more than Lark, which a build does not have."""
        sys.path.insert(0, self.root)
        try:
            path = Path(self.root, "cnnspec", "syntax", "parser.py")
            spec = importlib.util.spec_from_file_location("_cnnspec_parser", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(self.root)
        return module
