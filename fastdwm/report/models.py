"""python -m fastdwm.report models BUNDLE: errors of a bundle's world models, and of the gradients that ITPO uses.

Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import dataclasses
import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.files import write_json
from fastdwm.measure.record import prepare_output
from fastdwm.report.config import BUNDLE, ReportConfig
from fastdwm.shipped import find_bundle

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fastdwm.bundle import Bundle
    from fastdwm.data.dataset import Transitions


def main(name: str, config: ReportConfig) -> None:
    """Measure every world model of a bundle on held-out episodes: prediction errors, calibration of the samples, and
    the gradients that ITPO uses against finite differences of the simulator.

    The table goes to stdout, all results to OUT/TASK-models-TIME.json and .png, progress to stderr.
    """
    folder = find_bundle(name)
    command.set_up_torch(config.threads, "cpu")
    from fastdwm.bundle import Bundle
    from fastdwm.report.plot import save_model_plot
    from fastdwm.report.tables import print_tables

    bundle = Bundle.load(folder, config.trust)
    config = with_seed(config, bundle)
    stem = prepare_output(config.out, f"{bundle.task.name}-models")
    if config.gradients:
        check_simulator(bundle)
    with command.progress() as on_progress:
        transitions, rows, source = held_out(bundle, config, on_progress)
        measurements = measure(bundle, transitions, rows, config, on_progress)
    path = stem.with_suffix(".json")
    try:
        write_json(path, report_record(config, bundle, folder, source, measurements))
    finally:
        print_tables(bundle.task.name, source, measurements)
    print(path)
    print(save_model_plot(measurements, stem.with_suffix(".png"), f"{bundle.task.name}, {source}"))


def with_seed(config: ReportConfig, bundle: "Bundle") -> ReportConfig:
    """Set the default seed. With a dataset it is the training's, which repeats the errors that the training reported.

    Fresh episodes start from 40000, apart from the seeds of evaluation (10000), tuning (20000) and training (30000).
    """
    if config.seed is not None:
        return config
    return dataclasses.replace(config, seed=40_000 if config.dataset is None else bundle.report.get("seed", 0))


def check_simulator(bundle: "Bundle") -> None:
    """Raise InputError, before the long computations, unless the simulator can give gradients."""
    from fastdwm.data.replay import Simulator

    try:
        with Simulator(bundle.task.env):
            pass
    except InputError as error:
        raise InputError(f"gradients: {error}; give --no-gradients") from None


def held_out(
    bundle: "Bundle", config: ReportConfig, on_progress: command.Progress
) -> tuple["Transitions", "np.ndarray", str]:
    """Transitions, which of their rows no model was trained on (N,) bool, and a description of these rows."""
    import numpy as np

    from fastdwm.data import dataset as data
    from fastdwm.data import replay
    from fastdwm.measure import model_errors

    if config.dataset is None:
        seeds = [config.seed + i for i in range(config.episodes)]
        fresh = partial(model_errors.fresh_episodes, bundle.policy, bundle.task.env, seeds)
        on_episode, function = partial(on_progress, "fresh episodes"), bundle.policy_function
        transitions = fresh(config.max_steps, config.action_noise, on_episode, function)
        source = f"{config.episodes} fresh episodes of the base policy with action noise {config.action_noise:g}"
        return transitions, np.ones(transitions.n, bool), f"{source}, {transitions.n} transitions"
    transitions = data.load(bundle.task, config.dataset, config.trust)
    replay.check(transitions, config.trust_env)
    trained, how = trained_on(bundle.dataset, transitions)
    if not trained:
        source = f"{transitions.n_episodes} episodes of {transitions.source} (trained on {bundle.dataset.get('id')}"
        return transitions, np.ones(transitions.n, bool), f"{source}, {how}), {transitions.n} transitions"
    # The same seed and share give the split of the training; a smaller share gives a part of its held-out episodes.
    seed, share = bundle.report.get("seed"), bundle.report.get("holdout")
    same = bundle.dataset.get("episodes") == transitions.n_episodes and seed is not None
    require(same, f"dataset: cannot tell which episodes of {transitions.source} the bundle's training held out")
    asked = config.holdout or share or 0.05
    require(asked <= (share or asked), f"holdout: expected at most {share}, what the training held out, got {asked}")
    rows = transitions.split_episodes(asked, seed)[1]
    n_held_out = int((rows & (transitions.terminated | transitions.truncated)).sum())
    source = f"{n_held_out} held-out episodes of {transitions.source}, {rows.sum()} transitions"
    return transitions, rows, f"{source} (the training's data, {how})"


def trained_on(description: dict[str, Any], transitions: "Transitions") -> tuple[bool, str]:
    """Whether the training that `description` describes used these data, and how this was decided, in words.

    Bundles without a fingerprint hold only the amount of data and its mean return; raises InputError in doubt.
    """
    fingerprint, name = description.get("fingerprint"), description.get("id")
    facts = {"transitions": transitions.n, "episodes": transitions.n_episodes}
    facts["mean_return"] = float(transitions.episode_returns().mean())
    recorded = [description.get(key) for key in facts]
    complete = all(isinstance(value, int | float) for value in recorded)
    require(bool(fingerprint) or complete, f"dataset: the bundle does not say what {name} was: cannot tell what is new")
    if fingerprint:
        trained = fingerprint in (transitions.fingerprint, transitions.short_fingerprint)
        how = "compared by the content"
    else:
        trained = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(recorded, facts.values(), strict=True))
        how = "compared by number of transitions and episodes and mean return"
    changed = not trained and os.path.abspath(str(name)) == os.path.abspath(transitions.source)
    require(not changed, f"dataset: {name} is not what the bundle was trained on: cannot tell what is new")
    return trained, how


def measure(
    bundle: "Bundle",
    transitions: "Transitions",
    rows: "np.ndarray",
    config: ReportConfig,
    on_progress: command.Progress,
) -> dict[str, Any]:
    """All measurements as JSON values: `worlds` by name, the `reward` model that they share, and the share of states
    without gradients (`left_out`)."""
    from fastdwm.measure import ideal, model_errors
    from fastdwm.models.registry import network_calls

    worlds: dict[str, dict] = {}
    on_progress("prediction errors", 0, len(bundle.worlds))
    for i, name in enumerate(bundle.worlds):
        world = bundle.world(name)
        errors = model_errors.measure_errors(
            world, transitions, rows, bundle.statistics, config.seed, bundle.task.reward_scale
        )
        calibration = errors["calibration"]
        calibration["perfect_spread_to_error"] = ideal.spread_to_error(bundle, name, calibration["error_normalised"])
        worlds[name] = {"network_calls": network_calls(world.dynamics), **errors}
        on_progress("prediction errors", i + 1, len(bundle.worlds))
    one_step = worlds[next(iter(bundle.worlds))]["one_step"]
    measurements = {"worlds": worlds, "reward": {name: one_step[name] for name in ("reward_rmse", "reward_rmse_se")}}
    if config.gradients:
        jacobians, returns, measurements["left_out"] = compare_gradients(bundle, transitions, rows, config, on_progress)
        measurements["reward"] |= {"jacobian": next(iter(jacobians.values())), "return_gradient": returns["reward"]}
        for name, result in worlds.items():
            result |= {"jacobian": jacobians[name], "return_gradient": returns[name]}
    return measurements


def compare_gradients(
    bundle: "Bundle",
    transitions: "Transitions",
    rows: "np.ndarray",
    config: ReportConfig,
    on_progress: command.Progress,
) -> tuple[dict[str, dict], dict[str, list], dict[str, float]]:
    """`gradients.compare_jacobians` and `compare_returns` by world model, the latter also for the reward model in the
    simulator ("reward"), and the share of states that each left out."""
    import numpy as np
    import torch

    from fastdwm.data.replay import Simulator
    from fastdwm.report import gradients

    # float64, as in the simulator, so that rounding does not count as an error of the models.
    worlds = {name: bundle.world(name, dtype=torch.float64) for name in bundle.worlds}
    params, statistics = (
        {name: value.double() for name, value in x.items()} for x in (bundle.policy, bundle.statistics)
    )
    generator = torch.Generator().manual_seed(config.seed)
    candidates = np.random.default_rng(config.seed).permutation(np.flatnonzero(rows & transitions.next_obs_known))

    def states(column: "np.ndarray", count: int) -> "torch.Tensor":
        return torch.from_numpy(column[candidates[:count]]).double()

    with Simulator(bundle.task.env, bundle.task.reward_scale) as simulator:
        source = gradients.Differences(simulator)
        obs, action = (states(x, config.jacobian_states) for x in (transitions.obs, transitions.action))
        uncut = gradients.uncut(obs)
        on_state = partial(on_progress, "Jacobians of the simulator")
        sample = (config.particles, generator)
        jacobians = gradients.compare_jacobians(
            worlds, source, obs[uncut], action[uncut], statistics, *sample, on_state
        )
        starts = states(transitions.obs, config.return_states)
        good = gradients.uncut_trajectory(source, params, starts, bundle.policy_function)
        require(bool(uncut.any() and good.any()), "gradients: no held-out state shows its velocities in full")
        truth = gradients.simulated_world(next(iter(worlds.values())), source)
        # The reward model with the simulator's dynamics shows its own part of the error.
        mixed = {"reward": dataclasses.replace(truth, reward=next(iter(worlds.values())).reward)}
        on_state = partial(on_progress, "gradients of the return")
        sample += on_state, bundle.policy_function
        returns = gradients.compare_returns(worlds | mixed, truth, params, starts[good], *sample)
    shares = {"jacobian": 1 - float(uncut.double().mean()), "return_gradient": 1 - float(good.double().mean())}
    return jacobians, returns, shares


def report_record(
    config: ReportConfig, bundle: "Bundle", folder: Path, source: str, measurements: dict[str, Any]
) -> dict[str, Any]:
    """The report as JSON values."""
    from fastdwm.measure.bundle import measured

    about = measured(bundle, folder, "cpu", "dataset", "discount", "versions")
    return {**about, "held_out": source, **measurements, "config": dataclasses.asdict(config)}


parse = partial(command.read, ReportConfig(), "python -m fastdwm.report models", main.__doc__, bundle=BUNDLE)
