"""The words of the language."""

import re

FUNCTIONS = ("min", "max", "ceil", "floor", "sqrt", "round_to", "sum", "len")
"""Functions of expressions."""

SCHEMES = (
    "kaiming_normal kaiming_uniform xavier_normal xavier_uniform normal trunc_normal uniform constant zero dirac "
    "orthogonal"
).split()
"""Initializations that an `init` argument can call."""

TOP_WORDS = "network input classes param block default init expect train use extends aux let require".split()
"""First words of top-level statements that are not elements."""

OUTPUT = re.compile(r"output[ \t]+\w+(?:\.\w+)*[ \t]+from\b", re.ASCII)
"""The start of an `output` statement; elsewhere, `output` is an ordinary name."""

LABEL_WORDS = ("stem", "stage", "head")
"""Labels without a colon."""

RESERVED = frozenset(
    (
        *TOP_WORDS,
        *LABEL_WORDS,
        *"add mul concat each repeat if then else in nothing when not and or true false within from as once".split(),
    )
)
"""The keywords of the grammar, which cannot name a value or a block."""
