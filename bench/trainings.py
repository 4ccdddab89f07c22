"""python bench/trainings.py RUN...: how trainings went, from the folders that `fastdwm.train` left, as a table.

Scores of the policy after each tenth, in a few real episodes each, which chose nothing; beside them what somebody
without a simulator sees: the critics' value of the first states (Q), fitted Q evaluation's, and the distance from the
data's actions.
"""

import json
import sys
from pathlib import Path

HEAD = ("run", "data", "updates", "b1", "target rate", "score after each tenth", "Q", "FQE", "realised", "distance")


def row(folder: Path) -> list[str]:
    """The run's line; what the run does not know is empty."""
    config = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "rebrac.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "score_pct" in line]
    header = folder / "bundle" / "bundle.json"
    bundle = json.loads(header.read_text()) if header.exists() else {}
    critic = bundle.get("report", {}).get("critic", {})
    last = measured[-1]
    return [
        folder.name,
        f"{bundle['dataset']['mean_score_pct']:.0f}" if bundle else "",
        f"{config['rebrac']['updates'] // 1000}k",
        f"{config['rebrac']['actor_bc_coef']:g}",
        f"{config['rebrac']['target_rate']:g}",
        ", ".join(f"{line['score_pct']:.0f}" for line in measured),
        f"{last['q_start']:.0f}",
        f"{critic['fqe']:.0f}" if critic else "",
        f"{last['discounted_return']:.0f}",
        f"{last['bc_distance']:.2f}",
    ]


def main(folders: list[str]) -> None:
    rows = [HEAD, ["---"] * len(HEAD), *(row(Path(folder)) for folder in folders)]
    print("\n".join("| " + " | ".join(cells) + " |" for cells in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
