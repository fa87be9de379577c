"""Overrides of the recipe have the same effect as values in the spec."""

import pytest

from cnnspec import CnnspecError, loads
from cnnspec.ir.evaluate import ExpressionError
from cnnspec.recipe import ORIGINS, Recipe
from cnnspec.semantics.overrides import names_of, override

SPEC = """input 3x32x32
param width = 8
conv 3x3 width
train {{
    augment   hflip | random_crop pad={pad}
    optimizer {optimizer}
    schedule  {schedule}
    epochs    20
    {rest}
}}
"""


def recipe_of(
    given: dict[str, object] | None = None,
    optimizer: str = "sgd lr=0.1 momentum=0.9",
    schedule: str = "multistep at=[5, 10]",
    rest: str = "",
    pad: str = "4",
) -> Recipe:
    text = SPEC.format(optimizer=optimizer, schedule=schedule, rest=rest, pad=pad)
    return loads(text, **given or {}).recipe


@pytest.mark.parametrize(
    ("given", "stated"),
    [
        ({"lr": "0.05"}, {"optimizer": "sgd lr=0.05 momentum=0.9"}),
        ({"optimizer.lr": 0.05}, {"optimizer": "sgd lr=0.05 momentum=0.9"}),
        (
            {"nesterov": True, "weight_decay": "5e-4"},
            {"optimizer": "sgd lr=0.1 momentum=0.9 nesterov weight_decay=5e-4"},
        ),
        ({"at": "[3]", "warmup": 1}, {"schedule": "multistep at=[3] warmup=1"}),
        ({"schedule": "onecycle", "schedule.anneal": "linear"}, {"schedule": "onecycle anneal=linear"}),
        ({"lr": 0.01, "optimizer": "adamw"}, {"optimizer": "adamw lr=0.01"}),
        ({"batch": 64}, {"rest": "batch 64"}),
        ({"val": 100, "decay": "weights"}, {"rest": "decay weights\n data cifar10 val=100"}),
        ({"random_crop.pad": 2}, {"pad": "2"}),
        ({"random_crop.mode": "reflect"}, {"pad": "4 mode=reflect"}),
        ({"label_smoothing": 0.1, "width": 16}, {"rest": "label_smoothing 0.1"}),
    ],
)  # fmt: skip
def test_an_override_equals_the_value_in_the_spec(given: dict[str, object], stated: dict[str, str]) -> None:
    found, wanted = recipe_of(given), recipe_of(**stated)
    assert set(found.specified) == set(wanted.specified)
    assert found.overridden
    assert set(found.overridden) <= set(found.specified)
    assert not wanted.overridden
    assert found.model_dump(exclude=ORIGINS) == wanted.model_dump(exclude=ORIGINS)


def test_overrides_with_the_current_value_change_nothing() -> None:
    recipe = recipe_of()
    for name in names_of(recipe):
        place, _, argument = name.rpartition(".")
        chosen = {step.name: step for step in recipe.augment}
        if argument in Recipe.model_fields and not place:
            value = getattr(recipe, name)
            value = getattr(value, "name", value)
        else:
            places = [place] if place else ["optimizer", "schedule", "data", "loss"]
            settings = [chosen[p] if p in chosen else getattr(recipe, p) for p in places]
            value = next(setting.args[argument] for setting in settings if argument in setting.args)
        if value is not None:
            assert override(recipe, name, value).model_dump(exclude=ORIGINS) == recipe.model_dump(exclude=ORIGINS), name


def test_other_epochs_keep_the_shape_of_the_schedule() -> None:
    assert (recipe_of({"epochs": 10}).epochs, recipe_of({"epochs": 10}).planned) == (10, 20)
    assert recipe_of({"epochs": 20}).planned is None
    assert recipe_of({"epochs": 10}).over(5).planned == 20
    assert recipe_of({"epochs": 10}).over(20).planned is None


@pytest.mark.parametrize(
    ("given", "code", "help"),
    [
        ({"wieght_decay": 1}, "E0217", "did you mean `weight_decay`?"),
        ({"nothing_like_it": 1}, "E0217", "available parameters: `width`"),
        ({"lr": -1}, "E0215", None),
        ({"lr": "true"}, "E0204", None),
        ({"optimizer": "sdg"}, "E0204", "choose from `sgd`, "),
        ({"schedule": "step"}, "E0204", "set it in the `train` section, or choose from `constant`, "),
        ({"mode": "reflect"}, "E0217", None),
    ],
)
def test_invalid_overrides(given: dict[str, object], code: str, help: str | None) -> None:
    with pytest.raises(CnnspecError) as caught:
        recipe_of(given)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert help is None or (diagnostic.help or "").startswith(help)


def test_an_entry_without_a_choice_takes_its_first_argument() -> None:
    assert override(Recipe(), "resize", 256).resize.args["size"] == 256
    assert override(Recipe(), "freeze", "stem").freeze.args["modules"] == ("stem",)
    assert override(Recipe(), "normalize", "imagenet").normalize.name == "imagenet"
    with pytest.raises(ExpressionError):
        override(Recipe(), "loss", "focal")
