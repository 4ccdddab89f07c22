"""A small training in a process of its own, which dies at a given write."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from fastdwm.config import DiffusionConfig, MeanFlowConfig, MLPConfig, ReBRACConfig, RewardConfig, TrainConfig
from fastdwm.train import __main__ as command

PATHS = {"os.rename": 2, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "shutil.rmtree": 1}
"""events that change a folder, and how many of their arguments are paths"""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def tiny() -> TrainConfig:
    """A few updates of every part, each saved often."""
    config = {"updates": 4, "batch_size": 8, "hidden": (8,)}
    models = {"diffusion": DiffusionConfig, "meanflow": MeanFlowConfig, "mlp": MLPConfig}
    parts = {name: kind(**config) for name, kind in models.items()}
    rebrac = ReBRACConfig(**config | {"hidden": (8, 8)})
    parts["diffusion"] = replace(parts["diffusion"], denoise_steps=2)
    config = TrainConfig(rebrac=rebrac, reward=RewardConfig(**config), **parts, log_every=2, save_every=2)
    return replace(config, eval_episodes=0, fqe_updates=4, threads=1)


class Crash:
    """Counts what the process does to a folder, and kills it (kill -9) before, or just after, event `number`."""

    def __init__(self, folder: Path, number: int | None, after: bool):
        self.folder, self.number, self.after, self.busy = str(folder), number, after, False
        self.kinds: list[str] = []
        """event and suffix of the file, of all events so far"""

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.busy or not self._ours(event, arguments):
            return
        self.kinds.append(f"{event} {''.join(Path(arguments[0]).suffixes)}")
        if len(self.kinds) == self.number:
            self.busy = True
            if self.after and event == "open":
                os.open(arguments[0], arguments[2])
            os.kill(os.getpid(), signal.SIGKILL)

    def _ours(self, event: str, arguments: tuple) -> bool:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & WRITING
            return bool(writes) and os.fspath(arguments[0]).startswith(self.folder) if _named(arguments[0]) else False
        paths = arguments[: PATHS.get(event, 0)]
        return any(_named(path) and os.fspath(path).startswith(self.folder) for path in paths)


def _named(path: object) -> bool:
    return isinstance(path, str | Path)


def train(request: dict) -> dict:
    """Train in a fork; returns how it ended and the kinds of the writes it got to.

    request: folder `out`, `dataset`, event `number` to die at (none: run to the end), and whether `after` it.
    """
    out, reading = Path(request["out"]), os.pipe()
    child = os.fork()
    if child == 0:
        os.environ["FASTDWM_CACHE"] = request["cache"]
        crash, code = Crash(out, request["number"], request["after"]), 1
        try:
            sys.addaudithook(crash)
            # The data are random numbers, no recording of the simulator.
            config = replace(tiny(), dataset=request["dataset"], out=out, trust_env=True)
            command.main("hopper-medium", config)
            crash.busy, code = True, 0
            os.write(reading[1], json.dumps(crash.kinds).encode())
        finally:
            os._exit(code)
    os.close(reading[1])
    with os.fdopen(reading[0]) as pipe:
        kinds = json.loads(pipe.read() or "[]")
    status = os.waitpid(child, 0)[1]
    return {"outcome": "trained", "code": os.waitstatus_to_exitcode(status), "kinds": kinds}
