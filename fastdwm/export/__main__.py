"""python -m fastdwm.export BUNDLE: write the base policy, or the whole decision, as a file that needs no fastdwm.

Heavy packages are imported inside the functions: --help answers before torch is loaded.
"""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastdwm import command
from fastdwm.checks import require
from fastdwm.export.config import ExportConfig
from fastdwm.files import prepare_folder, write_atomically

if TYPE_CHECKING:
    from fastdwm.agent import Agent
    from fastdwm.bundle import Bundle
    from fastdwm.export.functions import Function

ENDINGS = {"onnx": ".onnx", "torchscript": ".pt"}


def main(bundle_name: str, config: ExportConfig) -> None:
    """Write the base policy as ONNX or TorchScript, or the whole decision as ONNX: a robot then needs no torch.

    The policy maps obs (N, S) to action (N, A). The decision maps obs (S,), begins (whether an episode begins), params
    and memory (what the decision before has returned), and noise, standard normal numbers, to action, next_params and
    next_memory. An ONNX file is compared with the agent, if onnxruntime is installed.
    """
    needed = config.to != "onnx" or find_spec("onnx") is not None
    require(needed, "to: onnx is not installed; pip install 'fastdwm[collect]'")
    command.set_up_torch(1, "cpu")
    from fastdwm.bundle import Bundle
    from fastdwm.export import functions

    bundle = Bundle.load(bundle_name, config.trust)
    part = "decision" if config.decision else "policy"
    path = config.out or Path("results", f"{bundle.task.name}-{part}{ENDINGS[config.to]}")
    prepare_folder(path.parent)
    agent, world, world_steps = make_agent(bundle, config)
    with command.progress() as on_progress:
        on_progress(f"trace the {part}", 0, 1)
        if config.decision:
            function = functions.decision(agent, bundle, world, world_steps)
        else:
            function = functions.base_policy(agent.policy, bundle.obs_dim)
        content = write(function, config.to, free_rows=not config.decision)
        on_progress(f"trace the {part}", 1, 1)
    write_atomically(path, content)
    if config.to == "onnx":
        print(compared(content, agent, bundle, config.decision))
    print(path)


def make_agent(bundle: "Bundle", config: ExportConfig) -> tuple["Agent", str | None, int | None]:
    """The agent, its world model and network calls, by the settings or else as the bundle was tuned."""
    from fastdwm.agent import Agent
    from fastdwm.config import ITPOConfig, Settings

    default = (config.itpo, config.world, config.world_steps) == (ITPOConfig(), None, None)
    settings = bundle.settings if default else Settings(config.itpo, config.world, config.world_steps)
    world = dict(world=settings.world, world_steps=settings.world_steps)
    return Agent.of(bundle, settings.itpo, **world), settings.world, settings.world_steps


def write(function: "Function", to: str, free_rows: bool) -> bytes:
    """The content of the file.   free_rows: the first axis of the first argument and of the result has any length."""
    if to == "torchscript":
        return torchscript(function)
    from fastdwm.export.onnx_graph import to_onnx

    names = (next(iter(function.examples)), function.results[0]) if free_rows else ()
    return to_onnx(function.call, function.examples, function.results, rows=dict.fromkeys(names, 0))


def torchscript(function: "Function") -> bytes:
    """The policy as TorchScript."""
    import io
    import warnings

    import torch

    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but robots run it
        traced = torch.jit.trace(lambda obs: function.call(obs)[0], tuple(function.examples.values()))
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


def compared(content: bytes, agent: "Agent", bundle: "Bundle", decides: bool) -> str:
    """A line about the largest difference between the actions of the file and of the agent."""
    if find_spec("onnxruntime") is None:
        return "not compared with the agent: onnxruntime is not installed; pip install 'fastdwm[collect]'"
    from fastdwm.export.comparison import N_DECISIONS, largest_difference

    difference = largest_difference(content, agent, bundle, decides)
    return f"largest difference of an action to the agent's in {N_DECISIONS} decisions: {difference:.1e}"


BUNDLE = "BUNDLE", "folder of a bundle, or the name of a shipped one, for example hopper-medium"
parse = partial(command.read, ExportConfig(), "python -m fastdwm.export", main.__doc__, bundle_name=BUNDLE)


if __name__ == "__main__":
    command.finish(lambda: main(*parse(sys.argv[1:])))
