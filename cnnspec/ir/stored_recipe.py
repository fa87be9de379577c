"""Read a recipe that was stored as JSON, and check that it is one that the `train` section can express."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from cnnspec.files import first_problem
from cnnspec.ir.evaluate import ExpressionError, convert
from cnnspec.recipe import CHOICES, Recipe, Scalars, Setting
from cnnspec.schema import Declared, Interval, Parameter


def read_recipe(values: Any) -> Recipe:
    """Return the recipe that plain data describes.

    Raises:
        ValueError: The data describes no recipe.
    """
    try:
        return checked_recipe(Recipe.model_validate_json(json.dumps(values)))
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def checked_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe whose choices exist and whose values are in their bounds.

    Raises:
        ValueError: This does not hold.
    """
    for entry, table in CHOICES.items():
        value = getattr(recipe, entry)
        for setting in cast("tuple[Setting, ...]", value) if isinstance(value, tuple) else (value,):
            _check_setting(setting, table)
    for name, parameter in Scalars.parameters.items():
        _check_value(getattr(recipe, name), parameter)
    if recipe.planned is not None:
        _check_value(recipe.planned, Scalars.parameters["epochs"])
    return recipe


def _check_setting(setting: Setting, table: Mapping[str, type[Declared]]) -> None:
    kind = table.get(setting.name)
    if kind is None or setting.args.keys() != kind.parameters.keys():
        raise ValueError(f"`{setting.name}` and its arguments are not in the language")
    for name, parameter in kind.parameters.items():
        _check_value(setting.args[name], parameter)


def _check_value(value: Any, parameter: Parameter) -> None:
    type_, name = parameter.type, parameter.name
    parts = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
    if not all(math.isfinite(part) for part in parts if type(part) is float):
        raise ValueError(f"`{name}` must be finite")
    if (value is None and type_.optional) or (isinstance(value, str) and value in type_.words):
        return
    if isinstance(value, tuple) and type_.kind in ("size", "interval"):
        if len(parts) != 2 or (type_.kind == "size" and not all(type(side) is int for side in parts)):
            raise ValueError(f"`{name}` must be {type_}")
        value = Interval(parts) if type_.kind == "interval" else parts
    if isinstance(value, tuple) and type_.kind == "numbers":
        value = [*parts]
    try:
        convert(value, type_, name, 0)
    except ExpressionError as error:
        raise ValueError(str(error)) from None
