"""Independence of the agent from the caller's torch settings, tensors and forks."""

import contextlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_agents import CONFIG, SGD, observations
from toy_bundles import make_bundle

from fastdwm import Agent

OBS = observations(4, 2)
BACKENDS = pytest.mark.parametrize("backend", ["reference", "fused"])


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    # Numbers on this device cannot be read, so everything that lands there fails.
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


def life(backend, bundle=None):
    """Results of all calls of an agent in an episode."""
    agent = Agent.of(make_bundle() if bundle is None else bundle, CONFIG, backend=backend)
    answers = [agent.act(obs) for obs in OBS]
    agent.reset(np.array([True, False]))
    answers += [agent.act(OBS[2]), *agent.diagnose().values(), agent.value(OBS[2])]
    agent.keep(np.array([False, True]))
    return [*answers, agent.act(OBS[0, 1:])]


def assert_same(answers, expected):
    for answer, other in zip(answers, expected, strict=True):
        assert answer.dtype == other.dtype
        np.testing.assert_array_equal(answer, other)


@BACKENDS
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_callers_settings_change_nothing(backend, name):
    bundle = make_bundle()
    expected = life(backend, bundle)
    with SURROUNDINGS[name]():
        answers = life(backend, bundle)
    assert_same(answers, expected)


@BACKENDS
def test_a_bundle_made_in_inference_mode_can_be_adapted(backend):
    with torch.inference_mode():
        bundle = make_bundle()
    assert_same(life(backend, bundle), life(backend))


@BACKENDS
def test_the_agent_may_change_modes_between_decisions(backend):
    plain, changing = (Agent.of(make_bundle(), CONFIG, backend=backend) for _ in range(2))
    expected = [plain.act(obs) for obs in OBS]
    with torch.inference_mode():
        answers = [changing.act(OBS[0])]
    answers.append(changing.act(OBS[1]))
    with torch.autocast("cpu", torch.bfloat16):
        answers += [changing.act(obs) for obs in OBS[2:]]
    assert_same(answers, expected)


def inference(array):
    with torch.inference_mode():
        return torch.tensor(array)


FORMS = {
    "requires grad": lambda array: torch.tensor(array).requires_grad_(),
    "inference tensor": inference,
    "float64": lambda array: array.astype(np.float64),
    "negative strides": lambda array: np.ascontiguousarray(array[:, ::-1])[:, ::-1],
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "transposed tensor": lambda array: torch.tensor(array.T.copy()).T,
    "big-endian": lambda array: array.astype(">f4"),
    "list": lambda array: array.tolist(),
}


@BACKENDS
@pytest.mark.parametrize("form", FORMS)
def test_observations_may_come_in_any_form(backend, form):
    expected = Agent.of(make_bundle(), SGD, backend=backend).act(OBS[0])
    np.testing.assert_array_equal(Agent.of(make_bundle(), SGD, backend=backend).act(FORMS[form](OBS[0])), expected)


def test_an_observation_that_the_caller_overwrites_was_copied():
    obs, agent, other = OBS[0].copy(), Agent.of(make_bundle(), SGD), Agent.of(make_bundle(), SGD)
    agent.act(obs), other.act(OBS[0])
    obs[:] = 0
    assert_same(agent.diagnose().values(), other.diagnose().values())


@BACKENDS
@pytest.mark.parametrize("inner_steps", [0, 1])
def test_an_action_that_is_not_finite_is_never_returned(backend, inner_steps):
    bundle = make_bundle()
    bundle.policy["b2"][1] = torch.nan
    agent = Agent.of(bundle, replace(CONFIG, inner_steps=inner_steps), backend=backend)
    with pytest.raises(FloatingPointError, match="not finite"):
        agent.act(OBS[0])


FORK = """
    import os, signal, sys, torch
    sys.path.insert(0, {tests!r})
    from toy_agents import CONFIG, observations
    from toy_bundles import make_bundle
    from fastdwm import Agent

    torch.set_num_threads({threads})
    obs = observations(4, 2)[0]
    agent = Agent.of(make_bundle(), CONFIG, backend="reference")
    expected = agent.act(obs)
    # This starts torch's threads.
    torch.ones(1 << 22).exp()
    child = os.fork()
    if child == 0:
        # Waiting for lost threads would never end.
        signal.alarm(60)
        {preparation}
        try:
            agent.reset()
            # Torch's products round differently with another number of threads.
            print("equal" if abs(agent.act(obs) - expected).max() < 1e-6 else "differs", flush=True)
            torch.ones(1 << 22).exp()
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("threads", "preparation", "says"),
    [(2, "pass", "set_num_threads"), (2, "torch.set_num_threads(1)", "equal"), (1, "pass", "equal")],
    ids=["threads", "one thread in the child", "one thread"],
)
def test_a_forked_agent_acts_or_says_why_not(threads, preparation, says):
    code = FORK.format(tests=os.path.dirname(__file__), threads=threads, preparation=preparation)
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    assert says in done.stdout
