"""Profile decisions in the simulator: NVTX ranges around their parts, a Chrome trace, and a table of time per range.

The package itself has no ranges; this script puts them around its functions. Under Nsight Systems or Nsight Compute
(`--external`) it makes only the ranges; otherwise torch's profiler records them.
"""

import argparse
import functools
import json
import os
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

try:
    import nvtx
except ImportError:
    nvtx = None

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.itpo import objective, rules
from fastdwm.itpo.fused import FusedObjective
from fastdwm_kernels.rollout import imagine

WARM_UP = 5
"""number of decisions before the profile, in which kernels are compiled and graphs captured"""


LEVELS = {"decision": 0, "gradient": 1, "rollout forward": 2, "VJP": 2, "update": 1, "limit": 1, "environment step": 0}
"""depth of each range inside the others"""
RANGES = list(LEVELS)


@contextmanager
def span(name: str):
    """A range for Nsight and for torch's profiler."""
    annotated = nvtx.annotate(name, domain="fastdwm") if nvtx else nullcontext()
    with annotated, torch.profiler.record_function(name):
        yield


def wrap(owner: object, attribute: str, name: str) -> None:
    """Put a range around a function or method of its owner."""
    function = getattr(owner, attribute)

    @functools.wraps(function)
    def ranged(*args, **kwargs):
        with span(name):
            return function(*args, **kwargs)

    setattr(owner, attribute, ranged)


def add_ranges() -> None:
    """Put ranges around decision, gradient (forward and VJP), update and limit."""
    wrap(Agent, "act", "decision")
    wrap(rules.Bound, "step", "update")
    wrap(rules.Bound, "act", "limit")
    for kind in (objective.ReferenceObjective, FusedObjective):
        wrap(kind, "gradient", "gradient")
    # Autograd computes the VJP of the reference path, operators that of the fused path.
    wrap(objective, "imagine", "rollout forward")
    wrap(torch.autograd, "grad", "VJP")
    wrap(imagine, "imagine", "rollout forward")
    wrap(imagine, "backward", "VJP")
    if torch.cuda.is_available():
        from fastdwm_kernels.rollout.triton_ops import Rollout

        wrap(Rollout, "imagine", "rollout forward")
        wrap(Rollout, "backpropagate", "VJP")


class Still:
    """Random observations instead of a simulator."""

    def __init__(self, bundle: Bundle):
        self.mean, self.std = (bundle.statistics[f"obs_{name}"].numpy() for name in ("mean", "std"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def reset(self, seed: int | None = None):
        self.random = np.random.default_rng(seed)
        return self.step(None)[0], {}

    def step(self, action):
        return self.mean + self.std * self.random.normal(size=self.mean.shape), 0.0, False, False, {}


def simulator(bundle: Bundle):
    """The bundle's environment, or random observations if no simulator is installed."""
    try:
        import gymnasium  # noqa: F401
        import mujoco  # noqa: F401
    except ImportError as error:
        print(f"{error}: decisions are made in random observations")
        return Still(bundle)
    return bundle.task.env.make()


def run(agent: Agent, env, steps: int, seed: int) -> None:
    """Make `steps` decisions in the simulator, and restart when an episode ends."""
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = agent.act(obs)
        with span("environment step"):
            obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            agent.reset()
            obs, _ = env.reset()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="profiles/run.sh", description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", default="hopper-medium", help="default: %(default)s")
    parser.add_argument("--backend", choices=("auto", "reference", "fused"), default="auto")
    parser.add_argument("--bundle", type=Path, help="trained weights; default: those shipped for the task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", type=int, default=ITPOConfig.particles, help="default: %(default)s")
    parser.add_argument("--horizon", type=int, default=ITPOConfig.horizon, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="decisions to profile; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the trace; default: %(default)s")
    parser.add_argument("--ncu", action="store_true", help="Nsight Compute of one sampler kernel")
    parser.add_argument("--external", action="store_true", help="only make ranges, for another profiler")
    return parser.parse_args()


def table(profile: torch.profiler.profile, steps: int, cuda: bool) -> None:
    """Print the time per range and per operator; on a GPU per kernel, also those of a replayed graph."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    events = profile.key_averages()
    # On a GPU every range has a second event, without host time.
    ranges = [event for event in events if event.key in RANGES and event.cpu_time_total > 0]
    total = sum(event.cpu_time_total for event in ranges if event.key in ("decision", "environment step"))
    drawn = Table(title=f"time per range over {steps} decisions")
    for name in ("range", "calls", "ms per call", "of all", "GPU ms per call"):
        drawn.add_column(name, justify="left" if name == "range" else "right")
    for event in sorted(ranges, key=lambda event: RANGES.index(event.key)):
        share = f"{100 * event.cpu_time_total / total:.1f} %"
        gpu = f"{event.device_time_total / event.count / 1e3:.3f}" if event.device_time_total else ""
        indent = "  " * LEVELS[event.key]
        drawn.add_row(indent + event.key, str(event.count), f"{event.cpu_time / 1e3:.3f}", share, gpu)
    console.print(drawn)
    order = f"self_{'device' if cuda else 'cpu'}_time_total"
    print(events.table(sort_by=order, row_limit=30 if cuda else 12, max_name_column_width=60))


def rows(profile: torch.profiler.profile, cuda: bool) -> list[dict]:
    """Microseconds per call of ranges, then of kernels (without a GPU: operators) in order of their own time."""
    events = profile.key_averages()
    own = f"self_{'device' if cuda else 'cpu'}_time_total"
    ranges = [(event, event.cpu_time_total) for event in events if event.key in RANGES]
    others = [(event, getattr(event, own)) for event in events if event.key not in RANGES]
    others = sorted(others, key=lambda pair: -pair[1])[:60]
    return [{"name": e.key, "calls": e.count, "us": total / e.count} for e, total in ranges + others if total > 0]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    bundle = Bundle.load(args.bundle or args.task)
    config = ITPOConfig(horizon=args.horizon, particles=args.particles)
    agent = Agent.of(bundle, config, seed=args.seed, device=args.device, backend=args.backend)
    add_ranges()
    cuda = args.device.startswith("cuda")
    # Without this, CUPTI is torn down and set up again, and loses the kernels of graphs captured before.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with simulator(bundle) as env:
        if not args.external:
            # CUPTI must start before the graphs are captured, or it does not record their kernels.
            with torch.profiler.profile(activities=activities):
                torch.zeros(1, device=args.device)
        run(agent, env, WARM_UP, args.seed)
        if args.external:
            run(agent, env, args.steps, args.seed)
            return
        with torch.profiler.profile(activities=activities) as profile:
            run(agent, env, args.steps, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"title": f"profile of {args.steps} decisions", "rows": rows(profile, cuda)}
    (args.out / "profile.json").write_text(json.dumps(content, indent=1))
    table(profile, args.steps, cuda)
    trace = args.out / f"profile-{bundle.task.name}-{args.backend}-{datetime.now():%Y%m%d-%H%M%S}.json"
    profile.export_chrome_trace(str(trace))
    print(f"trace for chrome://tracing or ui.perfetto.dev: {trace}")


if __name__ == "__main__":
    main()
