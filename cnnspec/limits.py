"""The limits that hold hostile or mistaken text, all in one place; each error names the one it hit."""

MAX_FILE_BYTES = 256 * 1024
MAX_LINE_LENGTH = 2_000
MAX_NESTING = 32
MAX_DEPTH = 96
"""Elements inside of one another, through blocks and braces."""
MAX_TERMS = 64
"""Operands of one chain such as `a + b + c`, and depth of nested expressions."""
MAX_INTEGER = 1_000_000_000
"""Of an argument."""
MAX_LITERAL = 10**15
"""Of a number in the text, so that `expect` can name any figure."""
MAX_REPEAT = 4_096
MAX_NODES = 20_000
"""Operators of one network after repeats and blocks are written out."""
MAX_FILES = 64
MAX_FILE_DEPTH = 8
"""Files that take from files that take from files."""
MAX_PERIOD = 4_096
"""To which the strides of one axis may multiply."""
