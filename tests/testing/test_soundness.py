"""Run a short profile of `make soundness`, and check that each measurement can fail."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from cnnspec import ir
from cnnspec.api import check, load, loads
from cnnspec.compiler import compile_file
from cnnspec.resources import resource
from cnnspec.syntax import ast
from cnnspec.syntax.formatter import format_file
from cnnspec.testing import assert_sound, constructs, front_commands, fuzz, soundness
from cnnspec.testing.constructs import find_constructs
from cnnspec.testing.draw import Rng
from cnnspec.testing.faults import CODES, FaultySpec, draw_faulty
from cnnspec.testing.fuzz import REPETITIONS, draw_text
from cnnspec.testing.generator import SpecGenerator
from cnnspec.testing.oracle import Acceptance, Unsound, compare_sizes_with_torch, compare_with_torch
from cnnspec.testing.resource_attacks import BOMBS, HEAVY
from cnnspec.testing.soundness import Tally, judge, report, run

AUX = "aux extra from @seen { global_avgpool | flatten | linear classes }\n"
SHORT = {"valid": 80, "sets": 6, "faults": 200, "texts": 60}


@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_finds_nothing_wrong(name: str) -> None:
    # This process has loaded torch, which counts as memory.
    tally = run(name, SHORT[name], processes=2 if name == "texts" else 1)
    wrong = [line for line in judge(name, tally) if ": takes" not in line]  # a busy machine is not an error
    assert wrong == [], report(name, tally)


def test_every_bomb_is_rejected(tmp_path: Path) -> None:
    assert len(BOMBS) >= 60
    for number, place in enumerate(BOMBS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert any(d.severity == "error" for d in compile_file(place(folder)).diagnostics), number


def test_every_heavy_spec_is_valid(tmp_path: Path) -> None:
    for name, place in HEAVY.items():
        assert compile_file(place(tmp_path), allow_huge=True).graph is not None, name


@pytest.mark.parametrize(("name", "seeds"), [("bombs", (0, 31, 62, 93, 105, 126, 139)), ("repetitions", (3, 77, 112))])
def test_commands_on_some_attacks(name: str, seeds: Sequence[int], fresh: ProcessPoolExecutor) -> None:
    for seed in seeds:
        tally = fresh.submit(run, name, 1, seed).result()
        assert [line for line in judge(name, tally) if " takes " not in line] == []  # a busy machine is not an error,
        assert tally.greatest["seconds of one command"][0] < 4  # up to a point
        assert tally.counts["commands"] >= 12


def test_commands_that_raise_or_exceed_a_limit_are_violations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(front_commands, "MAX_SECONDS", -1.0)
    monkeypatch.setattr(front_commands, "MAX_BYTES", 1)
    monkeypatch.setitem(front_commands.NETWORKS, "summary --json", ("summary", "FILE", "--no-such-option"))
    (tmp_path / "a.cnn").write_text("input 3x8x8\nrelu\n")
    outcomes = [*front_commands.run_all(tmp_path / "a.cnn")]
    names = {*front_commands.ANY_TEXT, *front_commands.NETWORKS, *front_commands.CHANGES, "loads", "format"}
    assert {outcome.command for outcome in outcomes} == names
    for outcome in outcomes:
        wrong = [*outcome.violations()]
        assert any(" takes " in line for line in wrong)
        assert any(" in use" in line for line in wrong)
        assert any(" raises " in line for line in wrong) == (outcome.command == "summary --json")


def test_a_command_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def endless(*_: object, **__: object) -> None:
        while True:
            pass

    monkeypatch.setattr(front_commands, "_ABORT", 0.05)
    monkeypatch.setattr(front_commands, "app", endless)
    (tmp_path / "a.cnn").write_text("input 3x8x8\nrelu\n")
    first = next(front_commands.run_all(tmp_path / "a.cnn"))
    assert first.fault == "TimeoutError: stopped after 0.05 s"


def test_drawn_texts_are_of_every_kind() -> None:
    drawn = [draw_text(random.Random(seed).randint) for seed in range(300)]
    kinds = Counter(kind if kind not in REPETITIONS else "repetitive" for kind, _ in drawn)
    assert {*kinds} == {"damaged", "similar names", "heavy", "words", "letters", "bytes", "repetitive"}
    heavy = [text for seed in range(30) for text in [fuzz._heavy(Rng(random.Random(seed).randint))]]
    assert sum(not any(d.severity == "error" for d in check(text)) for text in heavy) >= 10


def test_the_same_seed_draws_the_same() -> None:
    first, again = (draw_faulty(random.Random(7).randint) for _ in range(2))
    assert first == again
    assert first.code in CODES


def test_a_fix_that_leaves_an_error_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "input 3x8x8\nconvv 3x3 4 | squeeze_excite ratio=8\n"  # two errors
    monkeypatch.setattr(soundness, "draw_faulty", lambda number: FaultySpec(text, "E0201", (2, 2)))
    assert run("faults", 1).wrong == ["seed 0: an edit for E0201 leaves E0402"]


def test_the_oracle_detects_a_wrong_shape_and_a_wrong_count() -> None:
    graph = loads("input 3x8x8\nconv 3x3 4 stride=2")
    compare_with_torch(graph, [(8, 8)])
    compare_broken(graph, 0, (4, 5, 4))


def test_the_oracle_detects_a_wrong_shape_in_an_auxiliary_head() -> None:
    graph = loads("input 3x8x8\nclasses 10\nseen: conv 3x3 4 | relu\nflatten | linear classes\n" + AUX)
    assert compare_with_torch(graph, [(8, 8)]) == 4 + 4 + 3  # in evaluation and in training, and the head in training
    index = next(index for index, node in enumerate(graph) if node.aux and node.op.name == "global_avgpool")
    compare_broken(graph, index, (4, 2, 1))


def compare_broken(graph: ir.Graph, index: int, shape: tuple[int, ...]) -> None:
    """Change the shape of an operator, which the oracle must detect."""
    node = graph.nodes[index]
    wrong = ir.Node(node.path, node.op, node.inputs, shape, node.weights, node.macs, node.aux)
    broken = ir.Graph(**{**vars_of(graph), "nodes": (*graph.nodes[:index], wrong, *graph.nodes[index + 1 :])})
    with pytest.raises(Unsound, match=r"the (output|shape of)"):
        compare_with_torch(broken, [graph.input_shape[1:]])


def vars_of(graph: ir.Graph) -> dict[str, object]:
    names = ir.Graph.__dataclass_fields__
    return {name: getattr(graph, name) for name in names if names[name].init}


def test_the_oracle_detects_a_wrong_size_set() -> None:
    graph = loads("input 3x8x8\nadd { maxpool 2; conv 3x3 3 stride=2 }")
    taken, refused = compare_sizes_with_torch(graph, [(size, size) for size in range(1, 20)])
    assert taken > 3 < refused
    vars(graph)["sizes"] = loads("input 3x8x8\nrelu").sizes  # as if every size were valid
    with pytest.raises(Unsound):
        compare_sizes_with_torch(graph, [(7, 7)])


@pytest.mark.parametrize("pool", ["2 pad=1 dilation=4x3", "3 4 pad=1 dilation=3 ceil", "4 9 pad=2 dilation=5x2 ceil"])
def test_windows_of_padding_alone_are_rejected(pool: str) -> None:
    graph = loads(f"input 1x16x16\nmaxpool {pool}")
    taken, refused = compare_sizes_with_torch(graph, [(h, w) for h in range(1, 20) for w in range(1, 20)])
    assert taken > 3 < refused


def test_joins_do_not_broadcast_for_the_oracle() -> None:
    graph = loads("input 4x8x8\nadd { in; conv 3x3 4 pad=0 | upsample size=8x8 }")
    oracle = Acceptance(graph)
    assert oracle.accepts(8, 8)
    assert not oracle.accepts(1, 8)


def test_assert_sound() -> None:
    assert_sound("resnet20")
    assert_sound(load("googlenet_cifar"), sizes=2)
    assert_sound("input 3x8x8\nconv_bn 3x3 8\n")
    assert_sound("input 3x8x8; conv 3x3 4")


def test_tallies_add_up() -> None:
    one, other = Tally(), Tally()
    one.note("seconds", 1.0, "a")
    other.note("seconds", 2.0, "b")
    other.counts["specs"] += 1
    one.add(other)
    assert one.greatest == {"seconds": (2.0, "b")}
    assert "specs" in report("faults", one)
    assert judge("faults", one)


def test_no_file_outside_the_folder_is_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "secret.cnn").write_text("block secret() { relu }\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.cnn").symlink_to(tmp_path / "secret.cnn")
    (inner / "folder").symlink_to(tmp_path)
    for wanted in ("link", "folder/secret", "../secret", str(tmp_path / "secret")):
        (inner / "main.cnn").write_text(f'input 3x8x8\nuse secret from "{wanted}"\nsecret\n')
        assert [diagnostic.code for diagnostic in compile_file(inner / "main.cnn").diagnostics] == ["E0218"]


def test_parameters_have_a_limit_that_can_be_lifted() -> None:
    text = "input 3x8x8\nconv 1x1 200000 | conv 1x1 200000\n"
    from cnnspec import CnnspecError

    with pytest.raises(CnnspecError, match="exceeds the limit of 10,000,000,000"):
        loads(text)
    assert loads(text, allow_huge=True).parameter_count > 10**10


def test_texts_as_long_as_the_limits_allow_do_not_raise() -> None:
    for name in ("open strings", "braces", "thousand faults"):
        text = REPETITIONS[name].text() if name in REPETITIONS else "input 3x8x8\n" + "dropout 2\n" * 1_000
        errors = [diagnostic for diagnostic in check(text) if diagnostic.severity == "error"]
        assert name == "braces" or errors[-1].code == "E0405"
        assert len(errors) <= 101


def test_every_construct_of_the_language_is_known() -> None:
    nodes = [node for node in vars(ast).values() if isinstance(node, type) and issubclass(node, ast.Node)]
    assert {*constructs._NODES} == {*nodes} - {ast.Node}
    assert {*soundness.FREQUENT} <= {*constructs.CONSTRUCTS}
    found: set[str] = set()
    for path in sorted(resource("specs").glob("*.cnn")):
        done = compile_file(path)
        assert done.tree is not None
        found |= find_constructs(done.tree, done.require_graph())
    for seed in range(60):
        file = SpecGenerator(random.Random(seed).randint).file()
        found |= find_constructs(file, loads(format_file(file)))
    entries = {name for name in found if name.startswith("train {")}
    assert found - entries <= {*constructs.CONSTRUCTS}
    assert entries
    assert len(found & {*soundness.FREQUENT}) > 0.9 * len(soundness.FREQUENT)


def test_rare_constructs_are_violations() -> None:
    tally = Tally()
    tally.counts.update({"specs": 10_000, **{f"with `{name}`": 500 for name in soundness.FREQUENT}})
    assert judge("constructs", tally) == judge("valid", tally) == []
    tally.counts["with `again`"] = 499
    assert judge("valid", tally) == ["`again` occurs in fewer than 5 % of the specs"]
    assert "`again` 499, `" in report("constructs", tally)
