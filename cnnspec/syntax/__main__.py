"""`python -m cnnspec.syntax` makes the parse tables anew; after a change of the grammar."""

from cnnspec.resources import resource
from cnnspec.syntax.tables import make_tables

resource("grammar", "cnn.tables.json").write_text(make_tables(), "utf-8")
