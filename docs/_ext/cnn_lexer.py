"""Pygments lexer for the cnnspec language, registered for the fences of this documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, default, words
from pygments.lexers.special import TextLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text, Whitespace

if TYPE_CHECKING:
    from sphinx.application import Sphinx

STATEMENTS = (
    "network input classes param block default init expect within train use from extends aux let require when repeat "
    "as each if then else or and not once"
).split()
JOINS = ("add", "mul", "concat")
STAGES = ("stem", "stage", "head")
CONSTANTS = ("true", "false", "in", "nothing")
RESERVED = "|".join([*STATEMENTS, *JOINS, *STAGES, *CONSTANTS])
AGAIN = r"again(?=[ \t]+@)"  # another word may be called so
OUTPUT = r"(output)([ \t]+)(\w+(?:\.\w+)*)([ \t]+)(from)\b"


class CnnLexer(RegexLexer):
    """Lexer for `.cnn` files."""

    name = "cnnspec"
    aliases: ClassVar = ["cnn"]
    filenames: ClassVar = ["*.cnn"]
    url = ""
    version_added = ""

    tokens: ClassVar = {
        "root": [
            (r"\n", Whitespace, "callee"),
            (r"[^\S\n]+", Whitespace),
            (r"#[^\n]*", Comment.Single),
            (r'"[^"\n]*"', String),
            (r"@[A-Za-z_]\w*(\.\w+)*", Name.Label),
            (r"in\.[chw]\b", Name.Builtin.Pseudo),
            (r"(network|block|use|extends)([ \t]+)([A-Za-z_]\w*)", bygroups(Keyword, Whitespace, Name.Class)),
            (OUTPUT, bygroups(Keyword, Whitespace, Name.Label, Whitespace, Keyword)),
            (r"(input)([ \t]+)([A-Za-z_]\w*)", bygroups(Keyword, Whitespace, Name.Label)),
            (r"(expect)([ \t]+)([A-Za-z_]\w*(?:\.\w+)*)", bygroups(Keyword, Whitespace, Name)),
            (r"([A-Za-z_]\w*(?:\.\w+)*)([ \t]*)(:)", bygroups(Name.Label, Whitespace, Punctuation), "callee"),
            (r"([A-Za-z_]\w*)(=)(?!=)", bygroups(Name.Attribute, Operator)),
            (words(STAGES, prefix=r"\b", suffix=r"\b"), Keyword.Declaration, "callee"),
            (rf"\b{AGAIN}", Keyword),
            (words(STATEMENTS, prefix=r"\b", suffix=r"\b"), Keyword),
            (words(JOINS, prefix=r"\b", suffix=r"\b"), Keyword.Reserved),
            (words(CONSTANTS, prefix=r"\b", suffix=r"\b"), Keyword.Constant),
            (r"x\d+\b", Operator.Word),
            (r"\d+(x\d+)+\b", Number.Integer),
            (r"\d+(\.\d+)?([eE][+-]?\d+|[kMG]\b|[ \t]*%)?", Number),
            (r"\|", Operator, "callee"),
            (r"[{;]", Punctuation, "callee"),
            (r"\.\.|==|!=|<=|>=|//|[-+*/%<>=]", Operator),
            (r"[}()\[\],]", Punctuation),
            (r"[A-Za-z_]\w*", Name),
            (r".", Text),
        ],
        # Where a statement or an element of a pipeline begins, a name is called.
        "callee": [
            (r"[^\S\n]+", Whitespace),
            (OUTPUT, bygroups(Keyword, Whitespace, Name.Label, Whitespace, Keyword), "#pop"),
            (rf"(?!(?:{RESERVED})\b|{AGAIN})[A-Za-z_]\w*(?![\w.]*[ \t]*:|\w)", Name.Function, "#pop"),
            default("#pop"),
        ],
    }

    def get_tokens_unprocessed(self, text: str, stack: tuple[str, ...] = ("root", "callee")) -> Iterator[Any]:
        """Split a text, which begins with a statement."""
        return super().get_tokens_unprocessed(text, stack)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the lexers with Sphinx."""
    for alias in ("cnn", "cnn-part", "cnn-error"):
        app.add_lexer(alias, CnnLexer)
    app.add_lexer("keys", TextLexer)
    return {"parallel_read_safe": True}
