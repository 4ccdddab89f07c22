"""Settings that cannot be meant are refused in one line, whoever wrote them."""

from dataclasses import fields

import pytest

from fastdwm import config, grid, report
from fastdwm.checks import choices
from fastdwm.config import DiffusionConfig, EvalConfig, ITPOConfig
from fastdwm.errors import InputError
from fastdwm.grid import StudyConfig

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


def test_choices_are_found_in_every_kind_of_config():
    given = [ITPOConfig(termination="soft"), DiffusionConfig(target="x0"), EvalConfig(backend="fused")]
    assert [value.termination if isinstance(value, ITPOConfig) else value for value in given][0] == "soft"
    assert StudyConfig(design=None).design is None and StudyConfig(design="product").design == "product"
