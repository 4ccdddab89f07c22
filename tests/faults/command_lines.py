"""Invalid command lines."""

import contextlib
import io
import json
import random
import re
from importlib import import_module
from pathlib import Path

from bundles import VALUES

BASE = {
    "collect": ["hopper", "--policy", "random", "--out", "a/b-v0"],
    "eval": ["hopper-medium"],
    "report models": ["hopper-medium"],
    "report paper": ["a"],
    "study": ["hopper-medium"],
    "sweep": [],
    "train": ["hopper-medium"],
    "tune": ["hopper-medium"],
}
WORDS = (
    *(str(value) for value in VALUES), "-1", "--", "-", "@x", "1e400", "9" * 5000, "0x10", "１", "\x1b[2J", "a\nb",
    "\u202e", "\udc80", "[1, 2", "'", "hopper-medium:nan", "random:inf", "None", "true", "x" * 10**5, "{}", "/dev/zero",
    "~", "",
)  # fmt: skip
REFUSED = {
    "collect": ("--transitions 0", "--workers -1", "--seed -1", "--noise nan", "--env-kwargs {", "--out ../x"),
    "eval": ("--episodes 0", "--itpo.horizon -1", "--itpo.inner-steps 1000000000", "--itpo.particles 0", "--preset x"),
    "tune": ("--minutes 0", "--minutes nan", "--episodes x", "--threads 0"),
    "train": ("--rebrac.updates 0", "--rebrac.actor-lr nan", "--diffusion.denoise-steps 1000000000"),
}


def parse(command: str, argv: list[str]) -> None:
    """Parse a command line as the command does; for `collect`, read the policies too."""
    name, *report = command.split()
    module = import_module(f"fastdwm.{name}.__main__")
    if hasattr(module, "presets"):
        from fastdwm import command as reading

        own = {"eval": "tuned", "train": "cpu"}[name]
        reading.parse(module.presets(), name, "", argv, getattr(module, own))
    else:
        parsed = module.parse([*report, *argv])
        if name == "collect":
            module.prepare(*parsed)


def save_base(folder: Path) -> None:
    """Save all flags of each command."""
    flags = {}
    for command in BASE:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            parse(command, ["--help"])
        flags[command] = sorted(set(re.findall(r"--[a-z][a-z0-9.-]+", said.getvalue())))
    (folder / "flags.json").write_text(json.dumps(flags))


class Mutations:
    """Command lines with existing and unknown flags."""

    def __init__(self, base: Path):
        self.flags = json.loads((base / "flags.json").read_text())

    def __call__(self, rng: random.Random, place: Path) -> tuple[str, bool]:
        """Write a command and its arguments to place/line.json; see `campaign.Make`."""
        command = rng.choice(sorted(BASE))
        argv, wrong = list(BASE[command]), False
        kind = rng.choice(["values", "values", "word", "unknown", "refused"])
        if kind == "values":
            for _ in range(rng.choice([1, 1, 2, 4])):
                argv += [rng.choice(self.flags[command]), rng.choice(WORDS)]
        elif kind == "word":
            argv.insert(rng.randrange(len(argv) + 1), rng.choice(WORDS))
        elif kind == "unknown":
            argv += [rng.choice(["--no-such-flag", "--\x1b[2J", "--no-such=a\nb", "--itpo.x"]), rng.choice(WORDS)]
            wrong = True
        elif command in REFUSED:
            argv += rng.choice(REFUSED[command]).split(" ", 1)
            wrong = True
        (place / "line.json").write_text(json.dumps({"command": command, "argv": argv}))
        return f"{kind} of {command}", wrong
