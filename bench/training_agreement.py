"""python bench/training_agreement.py [--updates N ..]: check that compiled updates train the weights of plain torch.

Rounding alone moves the weights of a training, and more with time: a difference of one bit grows where a relu switches.
So plain torch trains three times with the same batches and noise, twice with each initial weight rounded up or down at
random; compiled updates train twice, once with rounded weights. The table has distances between all weights, relative
to how far torch's moved. The compiled updates agree if they are about as far from torch as torch is from itself.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from provenance import provenance
from torch import Tensor
from trainers import plain_torch
from training_speed import PARTS, trainers

from fastdwm.train.fit import eager

Weights = dict[str, dict[str, Tensor]]


def unchanged(params: dict) -> dict:
    return params


def rounded(params: dict, seed: int) -> dict:
    """Move each weight to the next float above or below, at random."""
    generator, moved = torch.Generator().manual_seed(seed), {}
    for name, value in params.items():
        up = torch.rand(value.shape, generator=generator) < 0.5
        moved[name] = torch.nextafter(value, torch.where(up, torch.inf, -torch.inf))
    return moved


def weights(
    name: str, compiled: bool, moments: list[int], arrange: Callable[[dict], dict] = unchanged
) -> list[Weights]:
    """Networks of a part after each of these numbers of updates."""
    with nullcontext() if compiled else plain_torch():
        trainer, batches = trainers(arrange)[name]
        update = eager(trainer, batches, trainer.config.batch_size)
    results = []
    for n in range(max(moments) + 1):
        if n in moments:
            networks = trainer.networks.items()
            results.append({key: {k: v.detach().clone() for k, v in params.items()} for key, params in networks})
        update()
    return results


def distance(a: Weights, b: Weights) -> float:
    """Norm of the difference between all weights."""
    pairs = [(value, b[network][name]) for network, params in a.items() for name, value in params.items()]
    return sum(float((x.double() - y.double()).square().sum()) for x, y in pairs) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 10, 100, 1000], help="(default: 1 10 100 1000)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to train (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{', '.join(f'{key} {value}' for key, value in provenance('cpu').items())}\n")
    print("| part | updates | rounded torch - torch | rounded compiled - compiled | compiled - torch |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in args.parts:
        moments, (first, second) = [0, *args.updates], (partial(rounded, seed=seed) for seed in (1, 2))
        plain, *others = (weights(name, False, moments, arrange) for arrange in (unchanged, first, second))
        own, own_other = (weights(name, True, moments, arrange) for arrange in (unchanged, first))
        for i, n in enumerate(args.updates, 1):
            moved = distance(plain[i], plain[0])
            of_torch = ", ".join(f"{distance(other[i], plain[i]) / moved:.1e}" for other in others)
            pairs = (own_other[i], own[i]), (own[i], plain[i])
            cells = " | ".join([of_torch, *(f"{distance(*pair) / moved:.1e}" for pair in pairs)])
            print(f"| {name} | {n} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
