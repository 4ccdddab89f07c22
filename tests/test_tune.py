"""python -m fastdwm.tune: its choice in bundle and evaluation, the search, and weights in float16."""

import json
from dataclasses import replace

import pytest
import torch
from commands import refused, run
from toy_bundles import make_bundle, save_checkpoint

from fastdwm import Agent, Bundle, InputError, ITPOConfig
from fastdwm.config import REPLACED, Settings
from fastdwm.tune.grid import candidates
from fastdwm.tune.halving import Trial, choose, halve

TWO = ("diffusion", "meanflow")
FEW = ("--minutes", "0.02", "--episodes", "2", "--max-steps", "15")


@pytest.fixture
def folder(tmp_path, quick):
    """Folder of an untrained bundle for hopper-medium with two world models."""
    make_bundle(*TWO).save(tmp_path / "bundle")
    return tmp_path / "bundle"


def save_tuned(folder, settings):
    """Save the bundle as if it had been tuned to these settings."""
    bundle = Bundle.load(folder, tuned=False)
    tuning = {"settings": settings.record(), "weights_sha256": bundle.fingerprint}
    replace(bundle, tuning=tuning).save(folder)


def evaluated(folder, tmp_path, *flags):
    """Settings of a decision, world model and its steps, as an evaluation used them."""
    out = tmp_path / f"eval-{len(list(tmp_path.iterdir()))}"
    short = ("--episodes", 1, "--max-steps", 3, "--bundle", folder, "--out", out)
    done = run("eval", "hopper-medium", *short, *flags)
    assert done.returncode == 0, done.stderr
    config = json.loads(next(out.glob("*.json")).read_text())["config"]
    return config["itpo"], config["world"], config["world_steps"]


@pytest.mark.slow
def test_the_choice_and_its_table_are_in_the_bundle(folder, tmp_path):
    before = Bundle.load(folder).fingerprint
    done = run("tune", "hopper-medium", "--bundle", folder, "--out", tmp_path / "out", *FEW)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.load(folder)
    tuning = bundle.tuning
    assert bundle.fingerprint == before == tuning["weights_sha256"]
    assert tuning["verdict"] in done.stdout
    assert tuning["seeds"].startswith("20000 to ")
    assert len(tuning["table"]) >= 2
    base, default, *_ = tuning["table"]
    assert base["settings"]["itpo"]["inner_steps"] == 0
    assert default["settings"] == Settings(ITPOConfig(), "diffusion", 3).record()
    assert len(base["scores"]) == base["episodes"] >= 2
    (left,) = (tmp_path / "out").glob("*.json")
    assert json.loads(left.read_text())["table"] == tuning["table"]


def test_a_bundle_stays_as_it_is_without_write(folder, tmp_path):
    before = (folder / "bundle.json").read_bytes()
    assert run("tune", "hopper-medium", "--bundle", folder, "--out", tmp_path, "--no-write", *FEW).returncode == 0
    assert (folder / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("write", [True, False])
def test_a_shipped_bundle_is_tuned_in_a_copy(folder, tmp_path, monkeypatch, write):
    shipped, out = tmp_path / "shipped", tmp_path / "out"
    shipped.mkdir()
    folder.rename(shipped / "hopper-medium")
    before = {path.name: path.read_bytes() for path in (shipped / "hopper-medium").iterdir()}
    monkeypatch.setattr("fastdwm.shipped.ROOT", shipped)
    done = run("tune", "hopper-medium", "--out", out, "--write" if write else "--no-write", *FEW)
    assert {path.name: path.read_bytes() for path in (shipped / "hopper-medium").iterdir()} == before
    copies = [path for path in out.iterdir() if path.is_dir()]
    assert len(copies) == write
    for copy in copies:
        assert done.stdout.splitlines()[-1] == f"bundle: {copy}"
        assert Bundle.load(copy).tuning["table"] and Bundle.load(copy).fingerprint == make_bundle(*TWO).fingerprint


def test_an_evaluation_starts_from_what_the_bundle_was_tuned_to(folder, tmp_path):
    tuned = Settings(ITPOConfig(horizon=2, max_deviation=0.1), "meanflow", 2)
    save_tuned(folder, tuned)
    itpo = json.loads(json.dumps(tuned.record()["itpo"]))
    assert evaluated(folder, tmp_path) == (itpo, "meanflow", 2)
    # A flag changes one setting, also to its default.
    assert evaluated(folder, tmp_path, "--itpo.horizon", 8) == (itpo | {"horizon": 8}, "meanflow", 2)
    default = json.loads(json.dumps(Settings().record()["itpo"]))
    for flags in (("--preset", "default"), ("--world", "diffusion")):
        assert evaluated(folder, tmp_path, *flags) == (default, "diffusion", None)


def test_an_agent_decides_as_its_bundle_was_tuned_unless_told_otherwise(folder):
    save_tuned(folder, Settings(ITPOConfig(horizon=2, particles=1, max_deviation=0.1), "meanflow", 2))
    bundle = Bundle.load(folder)
    agent = Agent.of(bundle)
    assert (agent.config.horizon, agent.config.particles, agent.config.max_deviation) == (2, 1, 0.1)
    assert agent.world.dynamics.noise_steps == bundle.world("meanflow", steps=2).dynamics.noise_steps
    config = Agent.of(bundle, ITPOConfig()).config
    assert config == ITPOConfig(max_deviation=bundle.max_deviation)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"weights_sha256": "', '"weights_sha256": "0', "tuning: it was done on other weights; tune it again: "),
        ('"action_step": ', '"leash": 0.1, "radius": ', "tuning: leash is a setting of an earlier version; tune "),
    ],
    ids=["weights", "settings"],
)
def test_a_choice_for_something_else_is_refused_until_tuned_again(folder, tmp_path, old, new, message):
    save_tuned(folder, Settings(ITPOConfig(horizon=2)))
    path = folder / "bundle.json"
    # The first match is in the tuning, before the hash of the weights.
    path.write_text(path.read_text().replace(old, new, 1))
    args = ("hopper-medium", "--bundle", folder, "--out", tmp_path)
    refused(run("eval", *args), message)
    assert run("tune", *args, *FEW).returncode == 0
    assert Bundle.load(folder).tuning["table"]


def test_a_bundle_that_was_not_measured_is_not_tuned(folder, tmp_path):
    """Candidates multiply its maximum deviation."""
    make_bundle(max_deviation=None).save(folder)
    done = run("tune", "hopper-medium", "--bundle", folder, "--out", tmp_path / "out", *FEW)
    refused(done, "max_deviation", "report deviation BUNDLE")


def test_another_policy_is_not_tuned(folder, tmp_path):
    save_tuned(folder, Settings(ITPOConfig(horizon=2)))
    path = tmp_path / "policy.safetensors"
    save_checkpoint(path)
    assert Bundle.load(folder).with_policy(path).settings == Settings()
    assert evaluated(folder, tmp_path, "--checkpoint", path)[0]["horizon"] == ITPOConfig().horizon


ENDLESS = {"horizon": 10**9, "particles": 2**17, "inner_steps": 10**9, "termination_temperature": 1e300}


def tuning_with(**itpo):
    """Tuning of a bundle with other settings of a decision."""
    settings = Settings().record()
    return {"settings": settings | {"itpo": settings["itpo"] | itpo}, "weights_sha256": ""}


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({}, "tuning: settings: expected dict"),
        ({"settings": Settings().record()}, "tuning: weights_sha256: expected str"),
        ({"settings": {"itpo": {}}, "weights_sha256": ""}, "tuning: itpo: action_step is missing"),
        *((tuning_with(**{name: value}), f"tuning: itpo: {name}: expected at most") for name, value in ENDLESS.items()),
        (tuning_with(horizon=16, particles=4096, inner_steps=256), "expected at most .* imagined transitions"),
        (tuning_with(horizon=10**400), "bundle.json: expected JSON .expected finite numbers, got 1000"),
        *(
            ({"settings": {"itpo": {name: 1.0}}, "weights_sha256": ""}, f"tuning: {name} is a setting of an earlier")
            for name in REPLACED
        ),
        ({"settings": Settings(world="mlp").record(), "weights_sha256": ""}, "tuning: world: the bundle holds"),
        ({"settings": Settings().record() | {"lr": 1}, "weights_sha256": ""}, "tuning: 'lr' is not a setting"),
    ],
)
def test_a_damaged_choice_is_named(folder, tuning, message):
    """Settings that need endless time or memory are refused too."""
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tuning": tuning}))
    with pytest.raises(InputError, match=message) as error:
        Bundle.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["hoper-medium"], "unknown task"),
        (["hopper-medium", "--minutes", "0"], "minutes: expected a positive number, got 0.0"),
        (["hopper-medium", "--episodes", "-1"], "episodes: expected a positive number, got -1"),
        (["hopper-medium", "--bundle", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(args, message, tmp_path):
    refused(run("tune", *args, "--out", tmp_path), message)


def search(scores, noise=0.0, budget_s=100.0, costs=None):
    """Search where candidate i scores scores[i] on average, the base policy first; returns choice, trials and runs."""
    trials = [Trial(Settings(world=str(i))) for i in range(len(scores))]
    runs = []

    def run(settings, seeds):
        i = int(settings.world)
        runs.append((i, tuple(seeds)))
        # Odd seeds are harder for half of the candidates and easier for the others.
        return [scores[i] + noise * (-1) ** (seed + i) for seed in seeds], (costs or [1.0] * len(scores))[i]

    base, *others = trials
    finalists = halve(base, others, run, 20_000, 4, budget_s, lambda *_: None)
    return choose(base, finalists), base, others, runs


def test_halving_finds_the_best_and_spends_most_on_the_better():
    chosen, base, others, runs = search([10.0, 11, 12, 13, 20, 14, 15, 16, 17], noise=1.0)
    assert chosen is others[3]
    counts = [len(trial.scores) for trial in others]
    # 8 candidates run 4 episodes, 4 run 8, then the default (first), the best and the base policy go on.
    assert sorted(counts) == [4, 4, 4, 4, 8, 8, 64, 64] and counts[0] == counts[3] == len(base.scores) == 64
    # No candidate runs a seed twice, and all run the same seeds.
    assert len(runs) == len(set(runs))
    assert {seed for _, seeds in runs for seed in seeds} == set(range(20_000, 20_064))


def test_the_base_policy_is_recommended_where_nothing_beats_it():
    chosen, base, *_ = search([10.0, 8, 9, 7])
    assert chosen is base


def test_of_equals_the_cheaper_is_chosen():
    chosen, _, others, _ = search([10.0, 12.0, 12.05, 11.0], costs=[0.1, 3.0, 2.0, 1.0])
    assert chosen is others[1]
    chosen, _, others, _ = search([10.0, 12.05, 12.0, 11.0], costs=[0.1, 3.0, 2.0, 1.0])
    assert chosen is others[1]


def trial(*scores, cost=1.0):
    return Trial(Settings(), list(scores), cost)


def test_of_candidates_within_chance_the_cheaper_is_chosen():
    base = trial(10, 20, 30, 40, 50, 60, 70, 80, cost=0.1)
    lucky = trial(40, 5, 55, 20, 75, 30, 100, 60)
    assert lucky.iqm > base.iqm + 1 and choose(base, [lucky]) is base
    # The same gain on every seed is certain, however much scores vary between seeds.
    better = trial(*(score + 5 for score in base.scores))
    assert choose(base, [better]) is better


def test_a_fall_that_is_prevented_does_not_hide_a_sure_gain():
    base = trial(*[98.4] * 7, 40.0, cost=0.1)
    steady = trial(*[99.6] * 8)
    assert choose(base, [steady]) is steady


def test_rare_falls_count_although_the_interquartile_mean_ignores_them():
    base = trial(*[98.0] * 8, cost=0.1)
    reckless, careful = trial(*[104.0] * 7, 20.0), trial(*[100.0] * 8)
    assert reckless.iqm > careful.iqm and choose(base, [reckless, careful]) is careful
    assert choose(base, [reckless]) is base


def test_of_equals_that_cost_alike_the_better_mean_is_chosen():
    base = trial(*[50.0] * 8, cost=0.1)
    steady, shaky = trial(*[60.0] * 8, cost=1.1), trial(*[60.0] * 7, 55.0, cost=1.0)
    assert choose(base, [shaky, steady]) is steady
    assert choose(base, [shaky, trial(*[60.0] * 8, cost=2.0)]) is shaky


def test_without_time_the_default_is_compared_with_the_base_policy():
    chosen, base, others, _ = search([10.0, 11, 12, 13], budget_s=0.0)
    assert chosen is others[0]
    assert [len(trial.scores) for trial in (base, *others)] == [4, 4, 0, 0]


def test_candidates_start_with_the_default_and_differ():
    grid = candidates({"diffusion": 5, "meanflow": 1, "mlp": 1}, 0.1)
    assert grid[0] == Settings(ITPOConfig(), "diffusion", 5)
    assert len({str(settings) for settings in grid}) == len(grid)
    assert {settings.world for settings in grid} == {"diffusion", "meanflow"}
    assert all(settings.itpo.inner_steps > 0 for settings in grid)


@pytest.mark.parametrize("bound", [0.1, 1e-8])
def test_every_world_is_tried_with_factors_of_the_bundles_bound(bound):
    """Factor 1 is stored as none, so that a new measurement of the bound keeps the choice."""
    grid = candidates({"diffusion": 5, "meanflow": 1}, bound)
    for world in ("diffusion", "meanflow"):
        bounds = {settings.itpo.max_deviation for settings in grid if settings.world == world}
        assert None in bounds
        factors = sorted(x / bound for x in bounds - {None})
        assert factors == pytest.approx([0.5, 0.7, 1.5, 2.0], rel=1e-4)


def test_weights_that_float16_holds_take_half_the_room(tmp_path):
    bundle = make_bundle("diffusion", "meanflow")
    bundle.save(tmp_path / "full")
    rounded = bundle.in_half()
    rounded.save(tmp_path / "half")
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    # The bound of the unrounded weights is not that of these.
    assert rounded.max_deviation is None and bundle.max_deviation is not None
    loaded = Bundle.load(tmp_path / "half")
    assert loaded.fingerprint == rounded.fingerprint != bundle.fingerprint
    for name, value in loaded.policy.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, bundle.policy[name].half().float())
    assert torch.equal(loaded.statistics["obs_mean"], bundle.statistics["obs_mean"])
