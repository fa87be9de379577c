"""Override values of the recipe from outside a spec, as with `--set lr=0.05`."""

from collections.abc import Iterable, Mapping
from typing import Any

from cnnspec.diagnostics import Reporter, did_you_mean
from cnnspec.diagnostics.suggestions import Advice
from cnnspec.ir.evaluate import ExpressionError, convert, show
from cnnspec.recipe import (
    AUGMENTATIONS,
    BN_STATISTICS,
    DATA_SETS,
    FREEZES,
    LOSSES,
    NORMALIZATIONS,
    NOUNS,
    OPTIMIZERS,
    ORIGINS,
    RESIZES,
    SCHEDULES,
    Recipe,
    Scalars,
    Setting,
    plain,
)
from cnnspec.schema import Declared, Parameter

TABLES: Mapping[str, Mapping[str, type[Declared]]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "data": DATA_SETS,
    "normalize": NORMALIZATIONS,
    "resize": RESIZES,
    "loss": LOSSES,
    "bn_statistics": BN_STATISTICS,
    "freeze": FREEZES,
}
"""The entries with one choice."""
BARE = ("optimizer", "schedule", "data", "loss")
"""The entries in which an argument name without its entry is looked up, in this order."""


def names_of(recipe: Recipe) -> list[str]:
    """List the names that can be set: entries, and arguments of the choices, bare or as `optimizer.lr`."""
    bare = [name for entry in BARE for name in TABLES[entry][getattr(recipe, entry).name].parameters]
    dotted = [f"{entry}.{name}" for entry in TABLES for name in TABLES[entry][getattr(recipe, entry).name].parameters]
    augment = [f"{step.name}.{name}" for step in recipe.augment for name in AUGMENTATIONS[step.name].parameters]
    return [*Scalars.parameters, *TABLES, *dict.fromkeys(bare), *dotted, *augment]


def override(recipe: Recipe, key: str, value: Any) -> Recipe:
    """Return a recipe with another value for one of `names_of`.

    A new number of epochs scales the schedule.

    Raises:
        ExpressionError: The value has the wrong type or is out of bounds.
    """
    if key in Scalars.parameters:
        given = _fitting(value, Scalars.parameters[key], key)
        return _with(recipe.over(given) if key == "epochs" else recipe, key, given)
    if key in TABLES:
        if str(value) == getattr(recipe, key).name:
            return recipe
        if {*TABLES[key]} == {key}:  # the value is its first argument: `resize=256`, `freeze=layer1`
            kind = TABLES[key][key]
            return _with(recipe, key, _argument(getattr(recipe, key), kind, next(iter(kind.parameters)), value))
        return _with(recipe, key, _choice(TABLES[key], key, value))
    entry, _, name = key.rpartition(".")
    for place, table in TABLES.items():
        kind = table[getattr(recipe, place).name]
        if (entry == place or (not entry and place in BARE)) and name in kind.parameters:
            return _with(recipe, place, _argument(getattr(recipe, place), kind, name, value))
    steps = tuple(
        _argument(step, AUGMENTATIONS[step.name], name, value) if step.name == entry else step
        for step in recipe.augment
    )
    return _with(recipe, "augment", steps)


def override_all(
    recipe: Recipe, given: Mapping[str, Any], params: Iterable[str], file: str, reporter: Reporter
) -> Recipe:
    """Return a recipe with other values; each invalid one is reported.

    Choices are set before their arguments.

    Args:
        recipe: The recipe of a spec.
        given: The values by name.
        params: The parameters of the spec, for the help.
        file: The name of the spec.
        reporter: Takes the diagnostics.
    """
    for key in sorted(given, key=lambda key: key not in TABLES):
        try:
            if key in names_of(recipe):
                recipe = override(recipe, key, given[key])
                continue
            own = f"available parameters: {', '.join(map(_code, params)) or 'none'}"
            help = did_you_mean(key, [*params, *names_of(recipe)]) or own
            message = f"unknown parameter or recipe value `{key}`"
            reporter.error("E0217", message, file=file, help=help)
        except ExpressionError as error:
            note = f"the value comes from outside this file: `{key}` = {show(given[key])}"
            reporter.error(error.code, str(error), file=file, notes=[note], help=error.help_for("x"))
    return recipe


def _with(recipe: Recipe, entry: str, value: Any) -> Recipe:
    origins = {name: tuple(dict.fromkeys((*getattr(recipe, name), entry))) for name in ORIGINS}
    return recipe.model_copy(update={entry: value, **origins})


def _argument(setting: Setting, kind: type[Declared], name: str, value: Any) -> Setting:
    given = plain(_fitting(value, kind.parameters[name], name))
    base = None if name == "path" else setting.base
    return Setting(name=setting.name, args={**setting.args, name: given}, base=base)


def _choice(table: Mapping[str, type[Declared]], entry: str, value: Any) -> Setting:
    kind = table.get(str(value))
    if kind is None:
        known = Advice(f"choose from {', '.join(map(_code, table))}")
        raise ExpressionError("E0204", f"unknown {NOUNS.get(entry, entry)} `{value}`", 0, known)
    if needed := [name for name, parameter in kind.parameters.items() if parameter.required]:
        fits = [name for name, other in table.items() if not any(p.required for p in other.parameters.values())]
        help = f"set it in the `train` section, or choose from {', '.join(map(_code, fits))}, which need no arguments"
        message = f"`{value}` is missing the required argument{'s' * (len(needed) > 1)} {', '.join(map(_code, needed))}"
        raise ExpressionError("E0204", message, 0, Advice(help))
    return Setting.of(kind())


def _code(name: str) -> str:
    return f"`{name}`"


def _fitting(value: Any, parameter: Parameter, name: str) -> Any:
    if isinstance(value, str) and value in parameter.type.words:
        return str(value)
    return convert(value, parameter.type, name, 0)
