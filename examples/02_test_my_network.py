"""Test your own specs at random image sizes, and your own code on random specs.

Run it with `pytest examples/02_test_my_network.py`.
"""

from hypothesis import given, settings

import cnnspec
from cnnspec.testing import assert_sound, specs


def test_my_network_against_torch() -> None:
    assert_sound("resnet20", n=5)


@given(specs())
@settings(max_examples=20, deadline=None)
def test_formatting_changes_no_network(text: str) -> None:
    assert cnnspec.loads(cnnspec.format(text)).nodes == cnnspec.loads(text).nodes
