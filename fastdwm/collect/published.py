"""The policies that Deep OPE published for D4RL's robots, and which of them record the data of which task.

Source: github.com/google-research/deep_ope. Each robot has eleven snapshots of one SAC training, from 0 (untrained) to
10 (last). The snapshots of a level were chosen so that their return, measured in Gymnasium's v5 simulators with MuJoCo
3.4, is near that of D4RL's level of the same name. The ant's snapshot is the one that falls on its back least when it
has to turn. Pure data.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdwm.tables import markdown_table

SHA256 = {
    "ant_online_3.sampler.onnx": "40a09f37a3ee01ad526b0c06be43a4cb853a2a33c75904f52eca31b4ea67ada1",
    "halfcheetah_online_0.sampler.onnx": "4334ba01e909d4dc00409451a521a5dac3a665c147da308df88fa73d958e298a",
    "halfcheetah_online_1.sampler.onnx": "67017e2289d6be8c46ad33cc7510b60d3911dd2f0ad6e12267c445d7b04b117a",
    "halfcheetah_online_2.sampler.onnx": "b7fbf7783513bb9ebaec25d275bb36cf367e91371d11a3dff3253922b3a1824a",
    "halfcheetah_online_3.sampler.onnx": "839f315bdd3798381114d682c9c693722aaab289a351f81964f3d40e08ceff39",
    "halfcheetah_online_4.sampler.onnx": "f04951539979d606cf7e807336a1ab4cfb1f84965fcd841c417082bb4fe8fd68",
    "halfcheetah_online_5.sampler.onnx": "3b9f0beead66106803307b7c1514a4b578008e66b79df11198582f8ae7b3f6aa",
    "halfcheetah_online_6.sampler.onnx": "29c75af78381303c41193651888a83a4cb44d07b85a926f468bbba7a5c6f292d",
    "halfcheetah_online_7.sampler.onnx": "36c443f4e41313620d68ad0d768f8bd8a924ee2b8b9a789337458f90626bd981",
    "halfcheetah_online_8.sampler.onnx": "c822b802fd67690eb81960030f1c175ed35b9a784e373c12638a0c3bf952c1a1",
    "halfcheetah_online_9.sampler.onnx": "6fc36adbc1920731348802c491427b2b5b4a9e8441b92ed4e907759236147bb8",
    "halfcheetah_online_10.sampler.onnx": "5ac447a70f1b51f08b3844a458bb844222eaa467a0bc91703ac6784d142fd6d7",
    "hopper_online_0.sampler.onnx": "1c26620e590c8d3238a460660bc7747d11e037b03a1c06d6f2ffde631eece70e",
    "hopper_online_1.sampler.onnx": "7a38ff51d21313e0c14a2d98cd515ef444f651a327cbd872b2cba6ddd8920801",
    "hopper_online_2.sampler.onnx": "17ed4756b3b3fad2c3f9f8ea894bbb8b83b2aa6acb5b1bb70ccfd926a6dd75e8",
    "hopper_online_3.sampler.onnx": "6b653de84dfa7df00993cd5023629d390247d809072dcf3a4f820d84979bfec3",
    "hopper_online_4.sampler.onnx": "5a351b3c8aeb67f1775171f7e56c56bcf317640ddfaad2fa337153b30dfc3120",
    "hopper_online_5.sampler.onnx": "d821cb952207472becf18f3b8823b9a8329f9d66ecf27e5884eb6eaebd945b84",
    "hopper_online_6.sampler.onnx": "11110f5dd4f409d0be07c2f259f590853c594551be9dfb13f8a114d0b43c94d4",
    "hopper_online_7.sampler.onnx": "9e9af3717b9ed06955027d4c53822c4902de39c04b16c1d46b694ab17a6f29e0",
    "hopper_online_8.sampler.onnx": "dd902f7c56ec3a26dc1fa6e3e6b9845586deebf4548f601c6824f9f759b68b11",
    "hopper_online_9.sampler.onnx": "56bd2e789acf12824015ad71be448681de390e7b52ee0dcd8b66dfffc3f1aad6",
    "hopper_online_10.sampler.onnx": "0749b19fa9efad2beffb33fedc2358b6a3a00e0c4e26754dcb6037cfca8ff408",
    "walker_online_0.sampler.onnx": "a5ccaedc15355b5c723c2ddc5ad4e1d890a6efd94953e1dcde067064e2e91ef1",
    "walker_online_1.sampler.onnx": "93f19c2596f8a1fd4dedd5c6a3cd45ff6e97cc66c7e2482e2963f3945478c040",
    "walker_online_2.sampler.onnx": "d4a71a758249044c55d0bc91006bc2f093dffd5c00e2f0afb9b3560df704f6cd",
    "walker_online_3.sampler.onnx": "4280c9aa91e4f446b9268a77559fc809bca0b7e56a9c42fa9de6f9bd54c41abf",
    "walker_online_4.sampler.onnx": "971ed0bebed6127c18cb6038ee9dc8a8a5d64be649974f69f5b14f8b589e5b6e",
    "walker_online_5.sampler.onnx": "8f16038a7355b3d4c16508654ea052b13e572197c6a09444680a9dc38bff3f23",
    "walker_online_6.sampler.onnx": "d35e387b18ef0ecfedd66f3b367bb80455b194c77efcd4507dae895fe014a7fa",
    "walker_online_7.sampler.onnx": "894244041df3451d581efa1933f8a0e0be57839732d3356bcd861093aaf52555",
    "walker_online_8.sampler.onnx": "78884ba85c1a8780c2bffd709dacbecd09c5641e335d888fa66496d530e4ea96",
    "walker_online_9.sampler.onnx": "2dd2aa556bc4196c8c03a8d32fe9a527b0f3e5aecb2551cb23566ce2deed8816",
    "walker_online_10.sampler.onnx": "93466ec524eff2ca73a157cf120dff3a4ca8923c4666223403b9e51e792e7c95",
}
"""hash of every published file, but of the ant's alone that is used"""

_FILES = {"halfcheetah": "halfcheetah", "hopper": "hopper", "walker2d": "walker"}

# The feet of D4RL's walker have another friction than those of Gymnasium's v5.
_ENV_KWARGS: dict[str, dict[str, Any]] = {"walker2d": {"xml_file": "walker2d.xml"}}

# The snapshot of each robot for a level; for medium-replay, the number of snapshots from the first on.
_MEDIUM = {"halfcheetah": 1, "hopper": 5, "walker2d": 3}
_EXPERT = {"halfcheetah": 10, "hopper": 8, "walker2d": 10}
_REPLAY = {"halfcheetah": 2, "hopper": 6, "walker2d": 4}


_MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")


@dataclass(frozen=True)
class Published:
    """How the data of one task are recorded from published policies."""

    task: str
    robot: str
    policies: tuple[str, ...]
    """file names, or `random`; all have equal shares of the transitions"""
    transitions: int

    @property
    def out(self) -> str:
        """Minari id of the dataset."""
        return f"deepope/{self.robot}/{self.task.removeprefix(f'{self.robot}-')}-v0"

    def arguments(self, folder: Path | str) -> list[str]:
        """Arguments of `python -m fastdwm.collect`, without --workers.   folder: where the policies are."""
        steers = self.robot == "antmaze"
        words = [self.task if steers else self.robot]
        for name in self.policies:
            words += ["--policy", name if name == "random" else f"{folder}/{name}"]
        words += ["--out", self.out, "--transitions", str(self.transitions), "--seed", "0"]
        kwargs = _ENV_KWARGS.get(self.robot)
        words += ["--env-kwargs", json.dumps(kwargs)] if kwargs else []
        # D4RL's noise.
        return words + (["--steer", "--noise", "0.2"] if steers else [])


def _tasks(robot: str) -> list[Published]:
    def snapshots(*numbers: int) -> tuple[str, ...]:
        return tuple(f"{_FILES[robot]}_online_{number}.sampler.onnx" for number in numbers)

    medium, expert = _MEDIUM[robot], _EXPERT[robot]
    levels = {
        "random": (("random",), 1_000_000),
        "medium": (snapshots(medium), 1_000_000),
        "expert": (snapshots(expert), 1_000_000),
        "medium-expert": (snapshots(medium, expert), 2_000_000),
        "medium-replay": (snapshots(*range(_REPLAY[robot])), 400_000),
        "full-replay": (snapshots(*range(11)), 1_000_000),
    }
    return [Published(f"{robot}-{level}", robot, *what) for level, what in levels.items()]


def _mazes() -> list[Published]:
    """The AntMaze tasks."""
    return [Published(f"antmaze-{level}", "antmaze", ("ant_online_3.sampler.onnx",), 400_000) for level in _MAZES]


PUBLISHED = {item.task: item for items in (*map(_tasks, _FILES), _mazes()) for item in items}
"""how to record each task, by name"""


def tables() -> str:
    """The published files and the command of each task as Markdown."""
    lines = [
        markdown_table(("file", "SHA-256"), ([name, f"`{digest}`"] for name, digest in SHA256.items())),
        "",
        "```bash",
    ]
    for item in PUBLISHED.values():
        # Words that begin with a variable are not quoted, so that the shell expands it.
        words = [word if word.startswith("$") else shlex.quote(word) for word in item.arguments("$POLICIES")]
        lines.append(f"python -m fastdwm.collect {' '.join(words)}")
    return "\n".join([*lines, "```", ""])
