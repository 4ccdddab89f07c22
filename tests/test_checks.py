"""Choices of all settings: listed ones are accepted, others refused."""

from dataclasses import fields
from importlib import import_module

import pytest

from fastdwm.checks import choices
from fastdwm.errors import InputError

FOLDERS = ("engines", "eval", "measure", "models", "report", "study", "sweep", "train", "tune")
MODULES = [import_module(name) for name in ("fastdwm.config", *(f"fastdwm.{folder}.config" for folder in FOLDERS))]
CONFIGS = {kind for module in MODULES for name, kind in vars(module).items() if name.endswith("Config")}


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        pytest.param(kind, item, id=f"{kind.__name__}.{item.name}")
        for kind in sorted(CONFIGS, key=lambda kind: kind.__name__)
        for item in fields(kind)
        if choices(item.type)
    ],
)
def test_a_misspelt_choice_is_refused(kind, item):
    with pytest.raises(InputError, match=f"{item.name}: expected one of .*, got 'misspelt'"):
        kind(**{item.name: "misspelt"})


def test_every_listed_choice_is_taken():
    needs = {"critic": {"policy": "sb3:model.zip"}}
    for kind in CONFIGS:
        for item in fields(kind):
            for option in choices(item.type):
                assert getattr(kind(**{item.name: option}, **needs.get(item.name, {})), item.name) == option
