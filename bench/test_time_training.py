"""One training update of each part with the batch size of training, in plain torch and with compiled updates."""

from contextlib import nullcontext

import pytest
import torch
from problems import Size
from trainers import PARTS, plain_torch

from fastdwm.train.fit import EAGER_UPDATES

PEERS = {"cpu": ("reference", "fused"), "cuda": ("reference", "reference graph")}


def width_alone(size: Size) -> Size:
    return Size(D=size.D, device=size.device)


RACES = {"test_update": (width_alone, PEERS)}


@pytest.mark.parametrize("name", PARTS)
def test_update(name, size, peer, problem, race):
    """Time updates, which must stay finite and change the parameters."""
    with plain_torch() if peer == "reference" else nullcontext():
        part = PARTS[name](problem)
    update = part.update(captured=peer == "reference graph")
    before = part.trainer.networks[part.network]["w0"].detach().clone()
    # Captured updates are eager before they are captured.
    losses = [update() for _ in range(2 * EAGER_UPDATES)][-1]
    after = part.trainer.networks[part.network]["w0"].detach()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    operation = f"{name} update" + (" with policy step" if name == "rebrac" else "")
    race(operation, problem.size, peer, update, None, batch_size=part.batch_size)
