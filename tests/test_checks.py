"""Settings that cannot be meant are refused in one line, whoever wrote them."""

from dataclasses import fields

import pytest

from fastdwm import config
from fastdwm.checks import choices
from fastdwm.errors import InputError
from fastdwm.report import models as report
from fastdwm.study import grid

CONFIGS = {kind for module in (config, grid, report) for name, kind in vars(module).items() if name.endswith("Config")}


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
    for kind in CONFIGS:
        for item in fields(kind):
            for option in choices(item.type):
                assert getattr(kind(**{item.name: option}), item.name) == option
