"""`python -m cnnspec.syntax` makes the parse tables anew, after a change of the grammar or of Lark."""

from cnnspec.resources import resource
from cnnspec.syntax.tables import compile_tables

resource("grammar", "cnn.tables.json").write_text(compile_tables(), "utf-8")
