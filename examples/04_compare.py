"""Compare a network with and without its shortcuts over three seeds. A second start trains nothing again."""

import tempfile
from pathlib import Path

from cnnspec.training import TrainOptions, compare

SPEC = """
network shortcuts
input 1x28x28
classes 10

param residual = true

block unit(c) {
    if residual {
        add {
            in
            conv 3x3 c | bn | relu | conv 3x3 c | bn
        }
    } else {
        conv 3x3 c | bn | relu | conv 3x3 c | bn
    }
    relu
}

stem  conv 7x7 8 stride=4 | bn | relu
stage unit x6 8
head  global_avgpool | flatten | linear classes

train {
    data      fashion_mini train=1000 test=500
    optimizer sgd lr=0.1 momentum=0.9
    epochs    2
    batch     50
}
"""

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "shortcuts.cnn"
    path.write_text(SPEC, "utf-8")
    options = TrainOptions(plots=False)
    found = compare([path], grid={"residual": [True, False]}, seeds=3, options=options, out=Path(folder) / "compared")
    print(found.to_text())
    with_sum, without = (row.statistic("test_acc") for row in found.rows)
    assert with_sum is not None
    assert without is not None
    print(f"the sum is worth {100 * (with_sum.mean - without.mean):+.1f} points here")
