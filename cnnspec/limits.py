"""The limits that hold hostile or mistaken text, all in one place; each error names the one it hit."""

MAX_FILE_BYTES = 256 * 1024
MAX_LINE_LENGTH = 2_000
MAX_WORDS = 8_192
"""Names, numbers, signs and comments of a spec and of the files it takes from, together."""
MAX_NAME = 128
"""Characters of a name."""
MAX_PATH = 2_048
"""Characters of a module's place in the tree, `stage1.0.net.3`."""
MAX_NAMES = 1_024
"""Values with a name, `param` and `let`, that can be named at one place."""
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
MAX_NODES = 10_000
"""Operators of one network after repeats and blocks are written out."""
MAX_FILES = 64
MAX_FILE_DEPTH = 8
"""Files that take from files that take from files."""
MAX_PERIOD = 4_096
"""To which the strides of one axis may multiply; places after which a receptive field repeats."""
MAX_LENGTHS = 500_000
"""Values that say all sizes of a network's maps, and its flat features, for an image of any size."""
MAX_STEPS = 4 * MAX_NODES
"""Elements that are entered while a network is written out, those without an operator included."""
MAX_EVALUATIONS = 200_000
"""Terms of expressions that are evaluated while a network is written out."""
MAX_PARAMETERS = 10_000_000_000
"""Learned weights of one network, unless its user allows more."""
MAX_HUGE = 10**15
"""Learned weights of one network in any case, and numbers in one tensor of one image."""
MAX_FAULTS = 100
"""Faults that one run reports."""
MAX_EFFORT = 200_000
"""Sizes of images that are looked at to write down which a network takes."""
