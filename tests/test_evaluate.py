"""Episodes, latencies and summaries, with a toy simulator and a toy agent that can be computed by hand."""

from dataclasses import dataclass, field

import gymnasium
import numpy as np
import pytest

from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError
from fastdwm.eval.compare import Evaluation
from fastdwm.eval.plot import check_video, collected_reward, side_by_side
from fastdwm.eval.summary import mean_diagnostics, summary
from fastdwm.measure import latency
from fastdwm.measure.latency import UNTIMED_DECISIONS, decision_latency, latency_ms
from fastdwm.measure.simulate import Episode, Predictions, Run, realised_return, run_episodes


class Walk(gymnasium.Env):
    """Simulator that adds the action to its only coordinate, which is also the reward, and starts at the seed.

    After 2 + seed % 5 steps it terminates if the seed is even, and is truncated if it is odd.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed=None, options=None):
        self.seed, self.x, self.left = seed, float(seed), 2 + seed % 5
        return np.array([self.x]), {}

    def step(self, action):
        self.x += float(action[0])
        self.left -= 1
        end = self.left == 0
        return np.array([self.x]), self.x, end and self.seed % 2 == 0, end and self.seed % 2 == 1, {}


@dataclass
class WalkSpec:
    """Stand-in for EnvSpec that keeps its environments."""

    envs: list[Walk] = field(default_factory=list)

    def make(self, render_mode=None):
        self.envs.append(Walk())
        return self.envs[-1]


class Counter:
    """Stand-in for Agent whose actions grow with an episode's decisions, so that mixed-up episodes show."""

    def __init__(self, batches=None):
        self.batches = [] if batches is None else batches
        self.reset()

    def reset(self, mask=None):
        self.count = None

    def act(self, obs):
        if self.count is None:
            self.count = np.zeros(len(np.atleast_2d(obs)))
        self.batches.append(len(self.count))
        self.count = self.count + 1
        self.discarded = self.count.astype(int) // 2
        return (0.1 * np.atleast_2d(obs) + self.count[:, None]).reshape(obs.shape).astype(np.float32)

    def keep(self, mask):
        self.count = self.count[mask]

    def diagnose(self):
        return {"objective_before": 100 * self.count, "grad_norm": self.count}

    def value(self, obs):
        return 1000 + obs[:, 0]


PREDICTED = {"max_steps": 50, "predictions": Predictions(horizon=2, discount=0.5, diagnose_every=1)}


def test_episodes_end_by_themselves_and_leave_the_batch():
    batches = []
    run = run_episodes(Counter(batches), WalkSpec(), [0, 3, 4], **PREDICTED)
    third = run.episodes[2]
    assert [(e.length, e.terminated) for e in run.episodes] == [(2, True), (5, False), (6, True)]
    assert batches == [3, 3, 2, 2, 2, 1] and [size for size, _ in run.act_calls] == batches
    # The toy agent discards half of its decisions.
    assert [e.discarded for e in run.episodes] == [1, 2, 3]
    # From 4: action 0.4 + 1 leads to 5.4, action 0.54 + 2 to 7.94.
    assert third.rewards[:2] == pytest.approx([5.4, 7.94]) and third.total == pytest.approx(sum(third.rewards))


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_an_episode_is_the_same_alone_as_in_a_batch(seed):
    seeds = [0, 1, 3, 4, 6]
    together = run_episodes(Counter(), WalkSpec(), seeds, **PREDICTED).episodes[seeds.index(seed)]
    alone = run_episodes(Counter(), WalkSpec(), [seed], **PREDICTED).episodes[0]
    np.testing.assert_array_equal(together.actions, alone.actions)
    together.actions = alone.actions = []
    assert together == alone


def test_step_limit_cuts_without_terminating():
    episodes = run_episodes(Counter(), WalkSpec(), [0, 4], max_steps=3).episodes
    assert [(episode.length, episode.terminated) for episode in episodes] == [(2, True), (3, False)]


def test_episodes_last_as_long_as_the_simulator_lets_them():
    class Idle:
        """Least that an agent without predictions needs."""

        discarded = np.zeros(2, int)

        def act(self, obs):
            return np.zeros((len(obs), 3), np.float32)

        def reset(self):
            pass

        def keep(self, mask):
            pass

    episodes = run_episodes(Idle(), EnvSpec("Hopper-v5", {}, 3), [0, 1]).episodes
    assert [(episode.length, episode.terminated) for episode in episodes] == [(3, False)] * 2


def test_episodes_without_any_limit_are_refused():
    with pytest.raises(InputError, match="max_steps: expected a number"):
        run_episodes(Counter(), WalkSpec(), [0])


def test_progress_ends_complete_and_shrinks_what_is_left():
    reports = []
    run_episodes(Counter(), WalkSpec(), [0, 4], max_steps=10, on_progress=lambda *counts: reports.append(counts))
    # 20 decisions at most; the first episode ends after 2, the second after 6
    assert reports == [(2, 20), (4, 12), (5, 12), (6, 12), (7, 12), (8, 8)]


def test_non_finite_action_never_reaches_the_simulator():
    agent, spec = Counter(), WalkSpec()
    agent.act = lambda obs: np.full(obs.shape, np.nan)
    with pytest.raises(AssertionError):
        run_episodes(agent, spec, [4], **PREDICTED)
    assert spec.envs[0].left == 6


def test_diagnostics_every_second_decision():
    predictions = Predictions(2, 0.5, diagnose_every=2)
    episode = run_episodes(Counter(), WalkSpec(), [4], max_steps=50, predictions=predictions).episodes[0]
    assert [record["decision"] for record in episode.diagnostics] == [0, 2, 4]
    assert [record["predicted_return"] for record in episode.diagnostics] == [100, 300, 500]


def test_prediction_meets_what_followed():
    episode = run_episodes(Counter(), WalkSpec(), [4], **PREDICTED).episodes[0]
    r = episode.rewards
    # the observation two decisions later is the reward before it (the toy's only coordinate)
    assert episode.diagnostics[1]["realised_return"] == pytest.approx(r[1] + 0.5 * r[2] + 0.25 * (1000 + r[2]))
    # six steps, then termination: decision 5 has one reward left and no value
    assert episode.diagnostics[5]["realised_return"] == pytest.approx(r[5])


@pytest.mark.parametrize(
    ("start", "terminated", "expected"),
    [
        # rewards 1 2 3 4, scale 10, H = 2, g = 0.5, V = 1000 at decisions 2 and 3
        (0, True, 10 + 0.5 * 20 + 0.25 * 1000),
        (1, False, 20 + 0.5 * 30 + 0.25 * 1000),
        (2, True, 30 + 0.5 * 40),
        (2, False, None),
        (3, True, 40.0),
        (3, False, None),
    ],
)
def test_realised_return_by_hand(start, terminated, expected):
    episode = Episode(seed=0, rewards=[1.0, 2.0, 3.0, 4.0], terminated=terminated)
    predictions = Predictions(horizon=2, discount=0.5, reward_scale=10.0)
    assert realised_return(episode, start, {2: 1000.0, 3: 1000.0}, predictions) == expected


def test_realised_return_without_horizon_is_the_value():
    episode = Episode(seed=0, rewards=[1.0])
    assert realised_return(episode, 0, {0: 7.0}, Predictions(0, 0.5)) == 7.0


def test_latency_of_one_episode_cycles_through_the_observations():
    agent, observed = Counter(), []
    act = agent.act
    agent.act = lambda obs: (observed.append(float(obs[0])), act(obs))[1]
    times = decision_latency(agent, [np.array([1.0]), np.array([2.0])])
    assert len(times) == latency.TIMED_DECISIONS
    assert observed[:4] == [1.0, 2.0, 1.0, 2.0]


def test_each_pass_through_the_observations_is_an_episode_of_its_own():
    agent, log = Counter(), []
    agent.act = lambda obs: log.append("act")
    agent.reset = lambda: log.append("reset")
    decision_latency(agent, [np.zeros(1)] * 3, decisions=1)
    assert log[:8] == ["reset", "act", "act", "act"] * 2


def test_latency_stops_when_decisions_are_slow(monkeypatch):
    monkeypatch.setattr(latency, "BUDGET_S", 1e-9)
    assert len(decision_latency(Counter(), [np.array([1.0])])) == 1


def test_summary_pairs_the_seeds():
    def run(returns):
        return Run([Episode(seed, rewards=[r], discarded=1) for seed, r in enumerate(returns)], [(2, 0.004)])

    latencies = {"base": [0.001], "itpo": [0.002, 0.004]}
    numbers = summary(Evaluation([0, 1], {"base": run([1, 10]), "itpo": run([3, 12])}, latencies, {}), lambda r: 10 * r)
    assert numbers["difference"]["score_pct"] == {"value": 20.0, "low": 20.0, "high": 20.0}
    assert numbers["itpo"]["return"]["mean"] == 7.5
    assert numbers["itpo"]["alone_latency"] == pytest.approx({"calls": 2, "p50_ms": 3.0, "p99_ms": None})
    assert numbers["itpo"]["discarded"] == 2


def test_a_success_rate_has_wilsons_interval():
    def run(returns):
        return Run([Episode(seed, rewards=[0.0, r]) for seed, r in enumerate(returns)], [(10, 0.004)])

    runs = {"base": run([0.0] * 10), "itpo": run([1.0] * 5 + [0.0] * 5)}
    evaluation = Evaluation(list(range(10)), runs, {"base": [0.001], "itpo": [0.001]}, {})
    numbers = summary(evaluation, lambda r: 100 * r, is_success=True)
    # Wilson's centre is (k + z^2 / 2) / (n + z^2); with k = 0, the interval ends at z^2 / (n + z^2), z = 1.96.
    assert numbers["base"]["success_pct"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 27.753}, abs=1e-3)
    half = 100 * 1.959964 * (10 / 4 + 1.959964**2 / 4) ** 0.5 / (10 + 1.959964**2)
    expected = {"value": 50.0, "low": 50 - half, "high": 50 + half}
    assert numbers["itpo"]["success_pct"] == pytest.approx(expected, abs=1e-3)
    difference = numbers["difference"]["score_pct"]
    assert difference["value"] == 50.0 and 0 < difference["low"] < 50 < difference["high"] < 100
    assert "success_pct" not in summary(evaluation, lambda r: 100 * r)["itpo"]


def test_a_99th_percentile_rests_on_two_thousand_decisions():
    # A hundredth of 2000 is twenty decisions: with 21 slow ones the percentile is one of them.
    times = [0.001] * 1979 + [0.5] * 21
    assert latency_ms(times)["p99_ms"] == pytest.approx(500)
    few = latency_ms(times[1:])
    assert few["p99_ms"] is None and (few["calls"], few["p50_ms"]) == (1999, pytest.approx(1))


def test_missed_deadlines_are_counted():
    assert latency_ms([0.001, 0.002, 0.004], deadline_ms=1.5)["missed"] == 2
    assert "missed" not in latency_ms([0.001])


def test_mean_diagnostics_leave_out_what_is_unknown():
    records = [
        {"decision": 0, "objective_before": 5.0, "predicted_return": 5.0, "realised_return": 4.0},
        {"decision": 1, "objective_before": 7.0, "predicted_return": 7.0, "realised_return": None},
        {"decision": 2, "objective_before": np.nan, "predicted_return": np.nan, "realised_return": 2.0},
    ]
    means = mean_diagnostics([Episode(0, diagnostics=records)])
    assert means == {"objective_before": 6.0, "predicted_return": 6.0, "realised_return": 3.0, "prediction_error": 1.0}


def test_collected_reward_stays_after_the_end():
    assert collected_reward(Episode(0, rewards=[1.0, 2.0]), 4).tolist() == [0, 1, 3, 3, 3]


def test_shorter_film_waits_for_the_longer():
    assert list(side_by_side([iter("ab"), iter("xyz")])) == [["a", "x"], ["b", "y"], ["b", "z"]]


def test_video_without_renderer_is_an_input_error():
    spec = WalkSpec()
    spec.make = lambda render_mode: (_ for _ in ()).throw(RuntimeError("no display\nmore"))
    with pytest.raises(InputError, match="cannot render here .*no display"):
        check_video(spec)


def test_the_warm_up_of_every_process_is_dropped():
    warm, cold = [(2, 0.001)] * 5, [(2, 1.0)] * UNTIMED_DECISIONS
    run = Run([], cold + warm + cold + warm, processes=[0, len(cold + warm)])
    assert run.batch_latency_s() == [0.001] * 10
    assert Run([], cold[:3]).batch_latency_s() == [1.0] * 3
