"""The training loop of all models: it draws batches, logs metrics, and writes checkpoints that it can resume from.

The whole state of a `Trainer` is its `networks`, `optimisers`, `generator` and `n_updates`, so one function saves and
restores any of them.
"""

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fastdwm.errors import InputError, RunError
from fastdwm.files import write_atomically
from fastdwm.models.config import FitConfig
from fastdwm.models.nets import (
    Loss,
    Params,
    adam,
    copy_params,
    cosine,
    minimise,
    moments,
    move_towards,
    set_lr,
    set_moments,
    trained,
)
from fastdwm.weights import MAX_WEIGHT
from fastdwm_kernels.launch import captured, on_stream

EAGER_UPDATES = 3
"""eager updates of each kind before its capture, which initialise libraries and the optimisers' state"""

OnLine = Callable[[str, dict[str, float]], None]


class Trainer(Protocol):
    """The interface of a model in training: `advance` runs on the host, `step` can be captured in a graph."""

    networks: dict[str, Params]
    optimisers: dict[str, torch.optim.Adam]
    generator: torch.Generator
    n_updates: int

    def advance(self) -> Hashable:
        """Count an update and set its learning rates; return the kind of its step."""

    def step(self, batch: dict[str, Tensor], kind: Hashable) -> dict[str, Tensor]:
        """Take one gradient step; return scalars to log."""


class ModelTrainer:
    """Adam with a cosine learning rate, clipped gradients and an exponential moving average of the weights.

    networks: the gradient updates `raw`; `averaged` is its moving average, and used after training.
    """

    def __init__(
        self,
        params: Params,
        loss: Loss,
        config: FitConfig,
        generator: torch.Generator,
    ):
        """params: initial parameters; `networks` holds the trained ones.   loss(params, batch, generator): a scalar.
        config: without an `ema_rate` the average equals the raw weights.   generator: on the parameters' device."""
        self.loss, self.config, self.generator, self.n_updates = loss, config, generator, 0
        self.ema_rate = getattr(config, "ema_rate", 1.0)
        params = trained(params)
        self.networks = {"raw": params, "averaged": copy_params(params)}
        self.optimisers = {"raw": adam(params, config.lr)}

    def advance(self) -> None:
        """Count an update and set its learning rate; all steps are of one kind."""
        set_lr(self.optimisers["raw"], self.config.lr * cosine(self.n_updates, self.config.updates))
        self.n_updates += 1

    def step(self, batch: dict[str, Tensor], kind: None = None) -> dict[str, Tensor]:
        """Take one gradient step on the batch."""
        raw = self.networks["raw"]
        loss = self.loss(raw, batch, self.generator)
        norm = minimise(self.optimisers["raw"], raw, loss, self.config.grad_clip)
        move_towards(self.networks["averaged"], raw, self.ema_rate)
        return {"loss": loss.detach(), "grad_norm": norm}


class Batches:
    """Random rows of a dataset. All columns lie side by side in one matrix, so that a batch is one gather."""

    def __init__(self, columns: dict[str, np.ndarray], rows: np.ndarray, device: torch.device | str = "cpu"):
        """columns: (N,) or (N, d) arrays.   rows: indices of the rows to draw from."""
        self.slices, start = {}, 0
        for name, column in columns.items():
            width = 1 if column.ndim == 1 else column.shape[1]
            self.slices[name] = start if column.ndim == 1 else slice(start, start + width)
            start += width
        matrix = np.empty((len(rows), start), np.float32)
        for name, column in columns.items():
            matrix[:, self.slices[name]] = column[rows]
        self.matrix = torch.from_numpy(matrix).to(device)

    def sample(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Float32 views (size,) or (size, d) of rows drawn with replacement."""
        index = torch.randint(len(self.matrix), (size,), generator=generator, device=self.matrix.device)
        rows = self.matrix[index]
        return {name: rows[:, columns] for name, columns in self.slices.items()}


@dataclass(frozen=True)
class Loop:
    """Settings of the training loop, common to all parts of a run: folder, intervals and callbacks."""

    folder: Path
    log_every: int
    save_every: int
    on_progress: Callable[[str, int, int], None]
    on_line: OnLine | None = None

    def fit(
        self,
        name: str,
        trainer: Trainer,
        batches: Batches,
        batch_size: int,
        updates: int,
        *,
        measure: Callable[[int], dict[str, float]] = lambda n_updates: {},
        after_update: Callable[[int], None] = lambda n_updates: None,
    ) -> dict[str, float]:
        """Train up to `updates`, from the checkpoint in the folder if there is one; return the last line of metrics.

        Writes <name>.safetensors (the whole state, atomically) every `save_every` updates and at the end, and appends
        the mean of each scalar to <name>.jsonl every `log_every`. `measure(n_updates)` may add slow measurements to a
        line; `on_line(name, line)` gets each line; `after_update(n_updates)` runs before the update's state is saved.
        Raises RunError, before writing, once a scalar is not finite or a weight is larger than a bundle can hold.
        """
        checkpoint = self.folder / f"{name}.safetensors"
        if checkpoint.exists():
            restore(trainer, checkpoint)
        log = Log(name, self.folder, trainer.n_updates, self.on_line)
        update = (CapturedUpdates if batches.matrix.is_cuda else eager)(trainer, batches, batch_size)
        while trainer.n_updates < updates:
            scalars = update()
            n = trainer.n_updates
            log.add(n, scalars)
            logs, saves = (n % every == 0 or n == updates for every in (self.log_every, self.save_every))
            if logs or saves:
                log.check(trainer)
            after_update(n)
            if logs:
                log.write(n, measure)
            if saves:
                write_atomically(checkpoint, save(snapshot(trainer)))
            if n % 20 == 0 or n == updates:
                self.on_progress(name, n, updates)
        return log.lines[-1]


class Log:
    """The lines of metrics of one part: means of the scalars since the previous line, and updates per second."""

    def __init__(self, name: str, folder: Path, n_updates: int, on_line: OnLine | None):
        self.name, self.path, self.on_line = name, folder / f"{name}.jsonl", on_line
        self.lines = _rewind(self.path, n_updates)
        self._begin()

    def _begin(self) -> None:
        self.window: dict[str, list[tuple[int, Tensor]]] = {}
        self.start = perf_counter()

    def add(self, n_updates: int, scalars: dict[str, Tensor]) -> None:
        """Record the scalars of an update."""
        for key, value in scalars.items():
            self.window.setdefault(key, []).append((n_updates, value))

    def check(self, trainer: Trainer) -> None:
        """Raise RunError if an update since the last line gave a scalar that is not finite, or if a weight is larger
        than a bundle can hold."""
        errors = []
        for key, noted in self.window.items():
            values = torch.stack([value for _, value in noted])
            bad = values.isfinite().logical_not().nonzero()
            if len(bad):
                first = int(bad[0])
                errors.append((noted[first][0], key, float(values[first])))
        for network, params in trainer.networks.items():
            largest = max(float(value.detach().abs().max()) for value in params.values())
            if not largest <= MAX_WEIGHT:
                errors.append((trainer.n_updates, f"the largest weight of {network}", largest))
        if errors:
            n_updates, name, value = min(errors)
            advice = "give smaller step sizes, and another --out"
            raise RunError(f"{self.name}: the training diverged at update {n_updates}: {name} is {value:g}; {advice}")

    def write(self, n_updates: int, measure: Callable[[int], dict[str, float]]) -> None:
        """Append a line, with the values of `measure`, whose time does not count for updates per second."""
        means = {key: float(torch.stack([value for _, value in noted]).mean()) for key, noted in self.window.items()}
        speed = len(next(iter(self.window.values()))) / (perf_counter() - self.start)
        line = {"update": n_updates, **means, "updates_per_s": speed, **measure(n_updates)}
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.on_line is not None:
            self.on_line(self.name, line)
        self._begin()


def eager(trainer: Trainer, batches: Batches, batch_size: int) -> Callable[[], dict[str, Tensor]]:
    """A function that runs one update and returns its scalars."""

    def update() -> dict[str, Tensor]:
        kind = trainer.advance()
        return trainer.step(batches.sample(batch_size, trainer.generator), kind)

    return update


class CapturedUpdates:
    """Run updates on a GPU; each kind is captured with its batch as a CUDA graph after EAGER_UPDATES eager updates."""

    def __init__(self, trainer: Trainer, batches: Batches, batch_size: int):
        self.trainer, self.batches, self.batch_size = trainer, batches, batch_size
        self.eager_runs: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self.stream = torch.cuda.Stream(trainer.generator.device)

    def __call__(self) -> dict[str, Tensor]:
        kind = self.trainer.advance()
        runs = self.eager_runs[kind] = self.eager_runs.get(kind, 0) + 1
        if runs <= EAGER_UPDATES:
            # On the stream of the captures, where libraries are then initialised too.
            with on_stream(self.stream):
                return self.step(kind)
        if kind not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.trainer.generator)
            with captured(graph, self.stream):
                self.graphs[kind] = graph, self.step(kind)
        graph, info = self.graphs[kind]
        graph.replay()
        return {name: value.clone() for name, value in info.items()}

    def step(self, kind: Hashable) -> dict[str, Tensor]:
        return self.trainer.step(self.batches.sample(self.batch_size, self.trainer.generator), kind)


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    """The whole state of a trainer as named CPU tensors."""
    tensors = {
        f"networks.{network}.{name}": value.detach().cpu().contiguous()
        for network, params in trainer.networks.items()
        for name, value in params.items()
    }
    for network, optimiser in trainer.optimisers.items():
        for name, state in moments(optimiser, trainer.networks[network]).items():
            for key, moment in state.items():
                tensors[f"optimisers.{network}.{name}.{key}"] = moment.cpu().contiguous()
    return tensors | {"generator": trainer.generator.get_state(), "n_updates": torch.tensor(trainer.n_updates)}


@torch.no_grad()
def restore(trainer: Trainer, path: Path) -> None:
    """Restore a trainer's saved state; raises InputError for a damaged file or another architecture."""
    try:
        tensors = load_file(path)
        for network, params in trainer.networks.items():
            for name, value in params.items():
                value.copy_(tensors[f"networks.{network}.{name}"])
        for network, optimiser in trainer.optimisers.items():
            params, state = trainer.networks[network], {}
            for name in params:
                prefix = f"optimisers.{network}.{name}."
                state[name] = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            set_moments(optimiser, params, state)
        trainer.generator.set_state(tensors["generator"])
        trainer.n_updates = int(tensors["n_updates"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: not a checkpoint of this run ({error}); delete it to start anew") from None


def _rewind(log: Path, n_updates: int) -> list[dict[str, float]]:
    """Cut the file of metrics after the checkpoint, since later updates will run again; return the lines left."""
    lines = []
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            # The line that a killed run was writing.
            break
        if line["update"] <= n_updates:
            lines.append(line)
    write_atomically(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines
