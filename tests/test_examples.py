"""Page of examples: every block runs by itself."""

import re
from pathlib import Path

import gymnasium
import pytest
import torch

PAGE = Path(__file__).parent.parent / "fastdwm" / "examples.md"


def blocks():
    """Code of every block, with an id of its section and number."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            yield pytest.param(code, id=f"{section.splitlines()[0].lower()} {i + 1}")


@pytest.fixture(autouse=True)
def undisturbed():
    """Undo what an example registers or seeds."""
    before, state = set(gymnasium.registry), torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


@pytest.mark.parametrize("code", list(blocks()))
def test_the_example_runs(code):
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
