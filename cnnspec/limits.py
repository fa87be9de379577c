"""Limits on hostile or mistaken input, in one place; each error names the limit that it hit."""

MAX_FILE_BYTES = 256 * 1024
MAX_LINE_LENGTH = 2_000
MAX_WORDS = 8_192
"""Tokens and comments of a spec and of the files that it uses, together."""
MAX_NAME = 128
"""Maximum length of a name, in characters."""
MAX_PATH = 2_048
"""Maximum length of a module path such as `stage1.0.net.3`, in characters."""
MAX_NAMES = 1_024
"""Named values, `param` and `let`, that are visible at one place."""
MAX_NESTING = 32
MAX_DEPTH = 96
"""Nesting depth of elements through blocks and braces."""
MAX_TERMS = 64
"""Operands of one chain such as `a + b + c`, and depth of nested expressions."""
MAX_INTEGER = 1_000_000_000
"""Maximum of an integer argument."""
MIN_NUMBER = 1.2e-38
"""Minimum absolute value of a number that is an argument and not 0: torch computes in float32."""
MAX_LITERAL = 10**15
"""Maximum of a number in the text, large enough for every figure of an `expect`."""
MAX_REPEAT = 4_096
MAX_NODES = 10_000
"""Operators of one network after repeats and blocks are expanded."""
MAX_FILES = 64
MAX_FILE_DEPTH = 8
"""Length of a chain of files that use each other."""
MAX_PERIOD = 4_096
"""Maximum product of the strides of one axis, which is the period of a receptive field."""
MAX_LENGTHS = 500_000
"""Numbers needed to describe all sizes of the maps and flat features of a network for any image size."""
MAX_STEPS = 4 * MAX_NODES
"""Elements that are visited while a network is expanded, including those without an operator."""
MAX_EVALUATIONS = 200_000
"""Expression terms that are evaluated while a network is expanded."""
MAX_PARAMETERS = 10_000_000_000
"""Learned weights of one network, unless the user allows more."""
MAX_ELEMENTS = 10**11
"""Elements of one tensor for one image, with the workspace of its operator, unless the user allows more."""
MAX_HUGE = 10**15
"""Learned weights of one network and elements of one tensor for one image in any case."""
MAX_ERRORS = 100
"""Errors that one run reports."""
MAX_EFFORT = 200_000
"""Image sizes that are examined to describe which ones a network accepts."""
MAX_COMPARED = 2_000_000
"""Pairs of characters that one run compares to find names with a spelling like that of an unknown one."""
MAX_CELL = 200
"""Characters of a cell in a table on the terminal."""
MAX_SIZES = 1_000
"""Different sizes of maps as functions of the image size, for a symbolic summary."""
MAX_FLAT_TERMS = 10_000
"""Terms of all flat features as functions of the image size, for a symbolic summary."""
MAX_AMOUNTS = 16
"""Functions of the image size of which a count is the maximum, for a symbolic summary."""
MAX_FORMULA = 1_000
"""Characters of a size as a function of the image size; longer parts are shown as `...`."""
MAX_SHOWN_TERMS = 128
"""Terms of a sum of such sizes that are shown."""
MAX_BOXES = 2_000
"""Boxes of a diagram."""

# --- files of unknown origin, see `files.py` ------------------------------------------------------

MAX_JSON_BYTES = 8 << 20
"""Bytes of a JSON file of a run or a comparison."""
MAX_JSON_VALUES = 400_000
"""Values of a JSON file."""
MAX_LIST_BYTES = 32 << 20
"""Bytes of the predictions of a run."""
MAX_JOURNAL_BYTES = 256 << 20
"""Bytes of the metrics of a run."""
MAX_EPOCHS = 100_000
"""Epochs of a run that are read from its metrics."""
CHECKPOINT_RATIO = 16
"""Bytes of a checkpoint of a run per byte of the weights, and as many MiB."""
MAX_ARCHIVE_RATIO = 4
"""Bytes of the entries of a checkpoint per byte of the file."""
MAX_DIRECTORY_BYTES = 4 << 20
"""Bytes of the directory of the entries of a checkpoint."""
MAX_PICKLE_BYTES = 16 << 20
"""Bytes of the description of the tensors of a checkpoint."""
MAX_PICKLE_OPCODES = 400_000
"""Opcodes of this description, thirty per tensor. A file with an entry for each tensor may have more."""
OPCODES_PER_ENTRY = 40
"""Further opcodes for each entry of a checkpoint."""
MAX_PICKLE_VALUES = 10_000_000
"""Values in one object of this description, where shared ones count each time."""
MAX_PICKLE_DEPTH = 64
"""Nesting depth of the objects of a checkpoint."""
MAX_PIXELS = 40_000_000
"""Pixels of an image in a file."""
MAX_DATABASE_BYTES = 1 << 30
"""Bytes of the database of a sweep."""
