"""Check a recipe for contradictions and implausible values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from cnnspec.diagnostics import CnnspecError, Diagnostic, Span, counted, did_you_mean, named
from cnnspec.diagnostics.suggestions import Advice, SetArgument, Suggestion, describe, one_of
from cnnspec.ir import Expr, Graph, Node
from cnnspec.ops.norm import BatchNorm
from cnnspec.recipe import DATA_SETS, OPTIMIZERS, Recipe, Setting
from cnnspec.shapes import Shape, numel, text


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A value of a recipe that contradicts another one, the data, or the network.

    Attributes:
        entry: The entry of the `train` section; empty for the whole section.
        argument: The argument of the entry; empty for the whole entry.
        step: The position in the pipeline of the entry.
        code: The code of the diagnostic, if it is an error.
        item: The item of the argument, if that is a list of paths.
    """

    entry: str
    message: str
    suggestion: Suggestion
    argument: str = ""
    step: int = 0
    code: str = ""
    item: str = ""

    @property
    def help(self) -> str:
        """The suggestion in words."""
        return describe(self.suggestion)


def refuse(found: Iterable[Contradiction], span: Span | None = None) -> None:
    """Raise the first contradiction as an error, at a place in the spec if there is one.

    Raises:
        CnnspecError: There is a contradiction.
    """
    for one in found:
        raise CnnspecError([Diagnostic(one.code, one.message, span, help=one.help)])


# --- contradictions ------------------------------------------------------------------------------


def contradictions(recipe: Recipe) -> Iterator[Contradiction]:
    """Yield the contradictions of a recipe that no network and no images can resolve."""
    if recipe.optimizer.args.get("nesterov") and not recipe.optimizer.args["momentum"]:
        message = f"`{recipe.optimizer.name}` with `nesterov` requires a momentum"
        momentum = one_of("write `{0}`, or remove `nesterov`", SetArgument("momentum", 0.9))
        yield Contradiction("optimizer", message, momentum, code="E0512")
    yield from _no_rate(recipe)
    yield from divided_group(recipe, recipe.batch)
    images = DATA_SETS[recipe.data.name].images
    if images is not None:
        train, test = images
        held: Any = recipe.data.args["val"]
        yield from nothing_left(recipe.data.name, held, train)
        yield from too_few(recipe.data, "train", max(0, train - held), held)
        yield from too_few(recipe.data, "test", test)
        yield from nothing_validated(recipe, held)


def _no_rate(recipe: Recipe) -> Iterator[Contradiction]:
    """Yield the rates that are relative to a learning rate of 0."""
    if recipe.optimizer.args["lr"]:
        return
    for entry, setting, argument in (
        ("optimizer", recipe.optimizer, "adam_lr"),
        ("schedule", recipe.schedule, "end"),
    ):
        rate: Any = setting.args.get(argument)
        if rate:
            message = f"`{argument}={rate:g}` requires a learning rate `lr` greater than 0"
            zero = one_of("write `{0}`, or increase `lr`", SetArgument(argument, 0))
            yield Contradiction(entry, message, zero, argument, code="E0512")


def divided_group(recipe: Recipe, batch: int) -> Iterator[Contradiction]:
    """Yield a contradiction if the groups of ghost batch normalization do not divide a batch."""
    if recipe.ghost is not None and batch % recipe.ghost:
        message = f"groups of {counted(recipe.ghost, 'image')} do not divide a batch of {batch}"
        yield Contradiction(
            "bn_statistics",
            message,
            _group_size("write `{0}`, or change `batch`", batch, recipe.ghost),
            "images",
            code="E0525",
        )


def _group_size(wording: str, batch: int, most: int = 32) -> Suggestion:
    """Suggest the largest size up to `most` of several images that divides a batch, in the given words."""
    sizes = range(min(most, batch, 1024), 1, -1)
    divisor = next((size for size in sizes if batch % size == 0), None)
    if divisor is None:
        return Advice("change `batch`, and use a divisor of it")
    return one_of(wording, SetArgument("images", divisor))


def nothing_left(name: str, held: int, count: int) -> Iterator[Contradiction]:
    """Yield a contradiction if validation takes all `count` training images."""
    if held >= count:
        message = f"`val={held}` leaves no training images in `{name}`"
        wording = f"hold out fewer than its {count:,} training images, or write `{{0}}` to hold out none"
        yield Contradiction("data", message, one_of(wording, SetArgument("val", 0)), "val", code="E0511")


def too_few(data: Setting, part: str, count: int, held: int = 0) -> Iterator[Contradiction]:
    """Yield a contradiction if the recipe asks for more images of a part than its `count`.

    Args:
        data: The dataset of the recipe.
        part: `train` or `test`.
        count: The number of its images, without those that are held out.
        held: The number of images that are held out from it.
    """
    wanted: Any = data.args.get(part)
    if wanted is not None and wanted > count:
        images = "training images" if part == "train" else f"{part} images"
        rest = f" that remain with `val={held}`" if held else ""
        message = f"`{part}={wanted}` exceeds the {count:,} {images} of `{data.name}`{rest}"
        fewer = one_of(f"write `{{0}}` or less, or remove `{part}` to use all images", SetArgument(part, count))
        yield Contradiction("data", message, fewer, part, code="E0511")


def nothing_validated(recipe: Recipe, held: int) -> Iterator[Contradiction]:
    """Yield a contradiction if a run should stop early and has no validation images."""
    if recipe.early_stop is not None and not held:
        usual = DATA_SETS[recipe.data.name].parameters["val"].default
        message = "`early_stop` requires validation images, but none are held out"
        some = one_of("hold out some images with `{0}`, or remove `early_stop`", SetArgument("val", usual))
        yield Contradiction("data", message, some, "val", code="E0511")


def no_classifier(graph: Graph) -> Iterator[Contradiction]:
    """Yield a contradiction if a network is not an image classifier."""
    image, output, classes = graph.input_shape, graph.output_shape, graph.model.constants.get("classes")
    help = "build the network in Python with `cnnspec.build`, and train it with your own loss"
    if graph.images:
        message = f"training and prediction expect one image, but the network has several: {named([*graph.images])}"
        help = "build the network in Python with `cnnspec.build`, and train it with your own loop; or export it"
        yield Contradiction("input", message, Advice(help), code="E0508")
    elif graph.taps:
        statement = f"`output {next(iter(graph.taps))} ...`"
        message = f"training expects one output per class, but {statement} makes the network return named tensors"
        yield Contradiction("", message, Advice(help), code="E0508")
    elif len(output) != 1:
        message = f"training expects one output per class, but the network outputs {text(output)}"
        add = "" if classes else "add `classes 10`, and "
        help = f"{add}end the network with `global_avgpool | flatten | linear classes`"
        yield Contradiction("", message, Advice(help), code="E0508")
    elif image[0] not in (1, 3):
        message = f"training expects images with 1 or 3 channels, but `input` has {image[0]}"
        color, gray = (f"`input {channels}x{image[1]}x{image[2]}`" for channels in (3, 1))
        help = f"write {color}, or {gray} for grayscale images"
        yield Contradiction("input", message, Advice(help), code="E0508")


def other_classes(network: str, given: int, data: str, wanted: int, stated: Expr | None) -> Iterator[Contradiction]:
    """Yield a contradiction if the numbers of classes of a network and its data differ.

    Args:
        network: The name of the network.
        given: Its number of classes.
        data: The name of the dataset.
        wanted: Its number of classes.
        stated: The `classes` of the spec.
    """
    if given != wanted:
        message = f"`{network}` outputs {given} classes, but `{data}` has {wanted}"
        number = f"set `classes {wanted}` in the spec or with `--set classes={wanted}`"
        layer = "end the network with `linear classes`"
        value = stated and stated.value
        what = layer if value == wanted else number if value == given else f"{number}; {layer}"
        help = f"{what}, or choose a dataset with {given} classes"
        yield Contradiction("data", message, Advice(help), code="E0501")


# --- transfer learning ---------------------------------------------------------------------------


def contains(path: str, module: str) -> bool:
    """Return whether a module is the one at a path, or inside it."""
    return module == path or module.startswith(f"{path}.")


def frozen_modules(recipe: Recipe, graph: Graph) -> frozenset[str]:
    """Return the paths of the modules and `bare` parameters that a recipe excludes from training."""
    args: dict[str, Any] = recipe.freeze.args
    nodes = [node for node in graph.nodes if node.has_state]
    frozen = {node.path for path in args["modules"] for node in nodes if contains(path, node.path)}
    if args["until"] is not None:
        trunk = [node.path for node in nodes if node.aux is None]
        first = next((n for n, path in enumerate(trunk) if contains(args["until"], path)), 0)
        frozen |= {*trunk[:first]}
    return frozenset(frozen)


def network_conflicts(recipe: Recipe, graph: Graph) -> Iterator[Contradiction]:
    """Yield the entries of a recipe that do not fit the network, such as modules that do not exist."""
    unknown = [*_unknown_modules(recipe, graph)]
    yield from unknown
    given = recipe.loss.args["class_weights"]
    weights = cast("tuple[float, ...]", given) if isinstance(given, tuple) else None
    if weights is not None and graph.output_shape != (len(weights),):
        outputs = text(graph.output_shape)
        message = f"`class_weights` has {counted(len(weights), 'number')}, but the network outputs {outputs}"
        yield Contradiction("loss", message, Advice("write one number per class"), "class_weights", code="E0521")
    elif weights is not None and not any(weights):
        message = "all `class_weights` are 0: the loss is undefined"
        yield Contradiction("loss", message, Advice("use a positive weight"), "class_weights", code="E0521")
    if "freeze" in recipe.specified and not recipe.freeze.args["modules"] and recipe.freeze.args["until"] is None:
        help = "name modules to freeze, or remove `freeze`"
        yield Contradiction("freeze", "`freeze` names no modules", Advice(help), code="E0521")
    frozen = frozenset[str]() if unknown else frozen_modules(recipe, graph)
    yield from _single_values(recipe, graph, frozen)
    trained = [node.path for node in graph.nodes if node.weights and node.path not in frozen]
    if frozen and not trained:
        help = "freeze fewer modules; the last layer is usually trained"
        yield Contradiction("freeze", "all weights are frozen: nothing is left to train", Advice(help), code="E0521")
    elif not unknown:
        yield from _useless_rates(recipe, graph, frozen)


def _single_values(recipe: Recipe, graph: Graph, frozen: frozenset[str]) -> Iterator[Contradiction]:
    """Yield groups of ghost batch normalization that have a single value per channel."""
    node = single_value_norm(graph, frozen) if recipe.ghost == 1 else None
    if node is not None:
        message = f"`{node.path}` needs more than 1 value per channel, but gets a single image in each group"
        yield Contradiction(
            "bn_statistics",
            message,
            _group_size("write `{0}`, or remove `bn_statistics`", recipe.batch),
            "images",
            code="E0520",
        )


def single_value_norm(graph: Graph, frozen: frozenset[str]) -> Node | None:
    """Return a batch normalization that is trained and gets a single value per channel and image, or None."""
    norms = (node for node in graph.nodes if isinstance(node.op, BatchNorm) and node.path not in frozen)
    return next((node for node in norms if numel(node.shape[1:]) == 1), None)


def _unknown_modules(recipe: Recipe, graph: Graph) -> Iterator[Contradiction]:
    given: list[tuple[str, int, str, Any]] = [
        ("rates", n, "modules", s.args["modules"]) for n, s in enumerate(recipe.rates)
    ]
    given.append(("freeze", 0, "modules", recipe.freeze.args["modules"]))
    until = recipe.freeze.args["until"]
    given.append(("freeze", 0, "until", [] if until is None else [until]))
    known = [*dict.fromkeys([*graph.paths, *(node.path for node in graph.nodes if node.has_state)])]
    for entry, step, argument, paths in given:
        for path in paths:
            if not any(contains(path, module) for module in known):  # a level of paths is a module, too
                top = named([*dict.fromkeys(module.split(".")[0] for module in known)])
                help = did_you_mean(path, known) or f"use a module of the network: {top}"
                message = f"`{graph.name}` has no module `{path}`"
                yield Contradiction(entry, message, Advice(help), argument, step, "E0521", path)


def _useless_rates(recipe: Recipe, graph: Graph, frozen: frozenset[str]) -> Iterator[Contradiction]:
    weighted = [node.path for node in graph.nodes if node.weights]
    seen: set[str] = set()
    for step, group in enumerate(recipe.rates):
        paths: Any = group.args["modules"]
        for path in paths:
            own = [module for module in weighted if contains(path, module)]
            message = None
            if path in seen:
                message = f"`{path}` is in two groups of `rates`"
            elif not own:
                message = f"`{path}` has no weights, so its learning rate has no effect"
            elif frozen.issuperset(own):
                message = f"`{path}` is frozen, so its learning rate has no effect"
            if message is not None:
                help = f"remove {f'`{path}`' if len(paths) > 1 else 'the group'}"
                help += f", or do not freeze `{path}`" if path not in seen and own else ""
                yield Contradiction("rates", message, Advice(help), "modules", step, "E0521", path)
            seen.add(path)


# --- implausible values --------------------------------------------------------------------------


def implausible_values(recipe: Recipe, image: Shape) -> Iterator[Contradiction]:
    """Yield the values of a recipe that have no effect, or an implausible one, on images of a shape [C, H, W]."""
    epochs = recipe.planned or recipe.epochs
    if not recipe.optimizer.args["lr"]:
        usual = OPTIMIZERS[recipe.optimizer.name].parameters["lr"].default
        message = "the learning rate is 0: the weights do not change"
        yield Contradiction("optimizer", message, one_of("use a rate such as `{0}`", SetArgument("lr", usual)), "lr")
    yield from _schedule(recipe, epochs)
    for place, step in enumerate(recipe.augment):
        for argument, message, suggestion in _augmentation(step, image):
            yield Contradiction("augment", message, suggestion, argument, place)
    if recipe.early_stop is not None and recipe.early_stop >= epochs:
        message = f"`early_stop` waits for {recipe.early_stop} epochs, but the run ends after {_epochs(recipe, epochs)}"
        fewer = f"wait for fewer epochs, such as `early_stop {epochs // 4 or 1}`, or " if epochs > 1 else ""
        yield Contradiction("early_stop", message, Advice(f"{fewer}remove `early_stop`"))
    yield from _average(recipe, epochs)
    if recipe.accumulate > recipe.batch:
        message = f"`accumulate` cannot split a batch of {recipe.batch} images into {recipe.accumulate} parts"
        yield Contradiction("accumulate", message, Advice(f"use a divisor of the batch size {recipe.batch}"))
    elif recipe.ghost is not None and recipe.accumulate > recipe.batch // recipe.ghost:
        groups = counted(recipe.batch // recipe.ghost, "group")
        message = f"`accumulate` cannot split {groups} of images into {recipe.accumulate} parts"
        yield Contradiction("accumulate", message, Advice("use at most one part per group"))


def useless_statistics(recipe: Recipe, graph: Graph) -> Iterator[Contradiction]:
    """Yield statistics of batch normalization that no layer of the network computes."""
    frozen = frozen_modules(recipe, graph)
    if not any(isinstance(node.op, BatchNorm) and node.path not in frozen for node in graph.nodes):
        trained = " that is trained" if frozen else ""
        message = f"`bn_statistics` has no effect: the network has no `bn`{trained}"
        yield Contradiction("bn_statistics", message, Advice("remove it"))


def _average(recipe: Recipe, epochs: int) -> Iterator[Contradiction]:
    """Yield a decay of the average that its warm-up does not reach before the run ends."""
    images = DATA_SETS[recipe.data.name].images
    if recipe.ema is None or images is None:
        return
    args: dict[str, Any] = recipe.data.args
    count: int = args["train"] if args.get("train") is not None else images[0] - args["val"]
    steps = epochs * (count // min(recipe.batch, count)) if count > 0 else 0
    reached = (1 + steps) / (10 + steps)
    if steps > 0 and reached < recipe.ema:
        message = (
            f"the decay of `ema` does not reach {recipe.ema:g}: it is {reached:.3g} after {counted(steps, 'step')}"
        )
        # an average over a tenth of the run
        smaller = f"use a smaller decay, such as `ema {round(1 - 10 / max(steps, 20), 4):g}`, or more epochs"
        yield Contradiction("ema", message, Advice(smaller))


def _epochs(recipe: Recipe, epochs: int) -> str:
    return f"{epochs} epochs" if "epochs" in recipe.specified else f"{epochs} epochs (the default)"


def _schedule(recipe: Recipe, epochs: int) -> Iterator[Contradiction]:
    def odd(argument: str, message: str, suggestion: Suggestion) -> Contradiction:
        return Contradiction("schedule", message, suggestion, argument)

    args: dict[str, Any] = recipe.schedule.args
    at: tuple[int, ...] = tuple(args.get("at", (args["every"],) if "every" in args else ()))
    run = f"the run ends after {_epochs(recipe, epochs)}"
    name = "every" if "every" in args else "at"
    if list(at) != sorted(set(at)):
        within = sorted({epoch for epoch in at if epoch < epochs})
        order: Suggestion = SetArgument("at", f"{within}")
        if len(within) < len(set(at)):
            order = Advice(f"use increasing epochs below {epochs}, or increase `epochs`")
        yield odd(name, f"the epochs in `at` are not increasing: {list(at)}", order)
    if at and max(at) >= epochs:
        never = "never decreases" if min(at) >= epochs else f"does not decrease at epoch {max(at)}"
        yield odd(name, f"the learning rate {never}: {run}", Advice(_earlier(name, epochs)))
    if args.get("gamma", 0) >= 1:
        changes = "increases" if args["gamma"] > 1 else "does not decrease"
        message = f"the learning rate {changes} with `gamma={args['gamma']:g}`"
        yield odd("gamma", message, one_of("use a factor below 1, such as `{0}`", SetArgument("gamma", 0.1)))
    if recipe.schedule.name != "onecycle" and args.get("warmup", 0) >= epochs:
        message = f"the warmup takes {args['warmup']:g} epochs, but {run}"
        shorter = one_of("use a shorter warmup, such as `{0}`", SetArgument("warmup", -(-epochs // 10)))
        yield odd("warmup", message, shorter if epochs > 1 else one_of("write `{0}`", SetArgument("warmup", 0)))
    rate: Any = recipe.optimizer.args["lr"]
    if args.get("end", 0) > rate:
        default = "" if "optimizer" in recipe.specified else " (the default)"
        message = f"the schedule ends at {args['end']:g}, above the learning rate `lr={rate:g}`{default}"
        yield odd("end", message, one_of("write `{0}`, or increase `lr`", SetArgument("end", 0)))


def _earlier(name: str, epochs: int) -> str:
    """Advise on a schedule whose last step is after the end of the run."""
    if epochs == 1:
        return "increase `epochs`"
    earlier = f"reduce `every` to less than {epochs}" if name == "every" else f"use epochs below {epochs} in `at`"
    return f"increase `epochs`, or {earlier}"


def _augmentation(step: Setting, image: Shape) -> Iterator[tuple[str, str, Suggestion]]:
    """Yield the argument, message and suggestion for each implausible value of an augmentation."""
    args: dict[str, Any] = step.args
    _, height, width = image
    if step.name == "random_crop" and (args["pad"][0] >= height or args["pad"][1] >= width):
        pad = "x".join(map(str, args["pad"]))
        wording = "write `{0}`: `pad` is the padding, and the crop always has the size of the input"
        message = f"`random_crop` pads by {pad} pixels, but the image is {height}x{width}"
        yield "pad", message, one_of(wording, SetArgument("pad", min(height, width) // 8))
    if step.name == "cutout" and args["side"] >= min(height, width):
        message = f"`cutout` erases a square of {args['side']} pixels per side, but the image is {height}x{width}"
        yield (
            "side",
            message,
            one_of("use a smaller square, such as `{0}`", SetArgument("side", min(height, width) // 4 or 1)),
        )
    if step.name == "color_jitter" and not any(args.values()):
        yield (
            "",
            "`color_jitter` has no effect: all of its factors are 0",
            one_of("set a factor, such as `{0}`", SetArgument("brightness", 0.2)),
        )
