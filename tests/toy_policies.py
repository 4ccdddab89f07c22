"""Small files in the layouts of other libraries, from modules built as theirs."""

import json
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

OBS_DIM, ACTION_DIM = 11, 3


def mlp(*sizes, last=(), activation=nn.ReLU):
    """Sequential of linear layers with an activation between."""
    layers = []
    for d_in, d_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(d_in, d_out), activation()]
    return nn.Sequential(*layers[:-1], *last)


class Named(nn.Module):
    """Module with submodules of these names; its function is `call`."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def values(critics, obs, action):
    """Values (Q, N) of the critics, modules of observations and actions side by side."""
    return torch.stack([critic(torch.cat([obs, action], 1)).squeeze(-1) for critic in critics])


def corl_files(folder: Path) -> dict[str, tuple[Path, nn.Module, list[nn.Module]]]:
    """Checkpoint, policy and critics of every algorithm of CORL, by its name, each with a config.yaml beside it.

    A policy's function is what its `act` executes in evaluation mode.
    """
    torch.manual_seed(0)
    both, spread = OBS_DIM + ACTION_DIM, torch.zeros(ACTION_DIM)

    def critic(name, depth=2):
        return Named(lambda self, x: getattr(self, name)(x), **{name: mlp(both, *[16] * depth, 1)})

    def of_net(self, obs):
        return self.net(obs)

    def trunk(self, obs):
        return torch.tanh(self.mu(self.trunk(obs)))

    def cql(self, obs):
        return torch.tanh(self.base_network(obs).chunk(2, -1)[0])

    net = mlp(OBS_DIM, 16, 24, ACTION_DIM, last=[nn.Tanh()])
    inner = Named(of_net, net=mlp(OBS_DIM, 16, 16, ACTION_DIM, last=[nn.Tanh()]))
    log_std = nn.Parameter(spread.clone())
    actors = {
        "td3_bc": Named(of_net, net=net),
        "iql": Named(of_net, net=inner, log_std=log_std),
        "cql": Named(cql, base_network=mlp(OBS_DIM, 16, 16, 16, 2 * ACTION_DIM), log_std_offset=nn.Linear(1, 1)),
        "edac": Named(
            trunk,
            trunk=nn.Sequential(*mlp(OBS_DIM, 16, 16, 16), nn.ReLU()),
            mu=nn.Linear(16, ACTION_DIM),
            log_sigma=nn.Linear(16, ACTION_DIM),
        ),
    }
    critics = {name: [critic("network" if name == "cql" else "net") for _ in range(2)] for name in actors}
    critics["edac"] = [mlp(both, 16, 16, 1) for _ in range(5)]
    states = {name: {"actor": actor.state_dict(), "total_it": 3} for name, actor in actors.items()}
    first, second = ([one.state_dict() for one in critics[name]] for name in ("td3_bc", "cql"))
    states["td3_bc"] |= {"critic_1": first[0], "critic_2": first[1]}
    states["cql"] |= {"critic1": second[0], "critic2": second[1]}
    states["iql"]["qf"] = {f"q{i + 1}.{k}": v for i, q in enumerate(critics["iql"]) for k, v in q.state_dict().items()}
    stacked = [one.state_dict() for one in critics["edac"]]
    states["edac"]["critic"] = {
        f"critic.{name}": torch.stack([state[name].mT if value.dim() == 2 else state[name][None] for state in stacked])
        for name, value in stacked[0].items()
    }
    result = {}
    for name, state in states.items():
        path = folder / name / "checkpoint_9.pt"
        path.parent.mkdir()
        torch.save(state, path)
        path.with_name("config.yaml").write_text("discount: 0.98\nnormalize: false\nbackup_entropy: false\n")
        result[name] = path, actors[name], critics[name]
    return result


def awac_file(folder: Path) -> tuple[Path, nn.Module]:
    """Checkpoint and policy of CORL's awac.py, whose actions are not squashed; it standardises observations."""
    torch.manual_seed(1)
    actor = Named(
        lambda self, obs: self._mlp(obs).clamp(-1, 1),
        _mlp=mlp(OBS_DIM, 16, 16, 16, ACTION_DIM),
        _log_std=nn.Parameter(torch.zeros(ACTION_DIM)),
    )
    with torch.no_grad():
        actor._mlp[-1].weight *= 20
    torch.save({"actor": actor.state_dict()}, folder / "checkpoint_9.pt")
    return folder / "checkpoint_9.pt", actor


def cleanrl_file(path: Path, scale: float = 1.0, bias: float = 0.0) -> tuple[nn.Module, list[nn.Module]]:
    """Write a model of td3_continuous_action.py; policy, in the environment's actions, and critics."""
    torch.manual_seed(2)

    def act(self, obs):
        hidden = self.fc2(self.fc1(obs).relu()).relu()
        return torch.tanh(self.fc_mu(hidden)) * self.action_scale + self.action_bias

    def value(self, x):
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())

    layers = nn.Linear(OBS_DIM, 16), nn.Linear(16, 16), nn.Linear(16, ACTION_DIM)
    box = {"action_scale": torch.full((ACTION_DIM,), scale), "action_bias": torch.full((ACTION_DIM,), bias)}
    actor = Named(act, **dict(zip(("fc1", "fc2", "fc_mu"), layers, strict=True)), **box)
    critics = [
        Named(value, fc1=nn.Linear(OBS_DIM + ACTION_DIM, 16), fc2=nn.Linear(16, 16), fc3=nn.Linear(16, 1))
        for _ in range(2)
    ]
    torch.save((actor.state_dict(), *(critic.state_dict() for critic in critics)), path)
    return actor, critics


def d3rlpy_file(path: Path, kind: str = "cql", **params) -> tuple[nn.Module, list[nn.Module]]:
    """Write an algorithm as d3rlpy's `save` does; policy and critics, in normalised observations.

    params: of its config, beside encoders with ReLU and a discount of 0.97.
    """
    torch.manual_seed(3)

    def head(self, x):
        return (self._mu if hasattr(self, "_mu") else self._fc)(self._encoder._layers(x))

    def encoder(d_in):
        layers = [nn.Linear(d_in, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 8), nn.ReLU(), nn.LayerNorm(8)]
        return Named(None, _layers=nn.Sequential(*layers))

    def act(self, obs):
        return torch.tanh(head(self, obs))

    spread = nn.Linear(8, ACTION_DIM)
    actor = Named(act, _encoder=encoder(OBS_DIM), _mu=nn.Linear(8, ACTION_DIM), _logstd=spread)
    critics = [Named(head, _encoder=encoder(OBS_DIM + ACTION_DIM), _fc=nn.Linear(8, 1)) for _ in range(2)]
    relu = {"type": "vector", "params": {"activation": "relu"}}
    config = {"gamma": 0.97, "actor_encoder_factory": relu, "critic_encoder_factory": relu} | params
    state = {"policy": actor.state_dict(), "q_funcs": nn.ModuleList(critics).state_dict(), "log_temp": {}}
    torch.save(state, path.with_suffix(".pt"))
    text = json.dumps({"observation_shape": [11], "action_size": 3, "config": {"type": kind, "params": config}})
    saved = {"torch": path.with_suffix(".pt").read_bytes(), "config": text, "version": "2.8.1"}
    path.write_bytes(pickle.dumps(saved))
    (path.parent / "params.json").write_text(text)
    return actor, critics


def sb3_file(path: Path, seed: int = 4) -> None:
    """Write a model with the tensors of Stable-Baselines3's SAC."""
    torch.manual_seed(seed)
    actor = {"latent_pi": mlp(OBS_DIM, 16, 16), "mu": nn.Linear(16, ACTION_DIM), "log_std": nn.Linear(16, ACTION_DIM)}
    critics = {f"qf{i}": mlp(OBS_DIM + ACTION_DIM, 16, 16, 1) for i in range(2)}
    model = nn.ModuleDict({"actor": nn.ModuleDict(actor), "critic": nn.ModuleDict(critics)})
    content = BytesIO()
    torch.save(model.state_dict(), content)
    data = {"gamma": 0.98, "ent_coef": "auto", "use_sde": False, "policy_kwargs": {"use_sde": False}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", content.getvalue())
