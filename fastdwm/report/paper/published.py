"""Published numbers, on other data (D4RL v2) than ours, with their sources.

[A] The two-column text of arXiv 2603.22430 (v1): Tables 1 to 5. [B] its single-column sibling, which differs in places;
its AntMaze table is Table 2.
[RB] ReBRAC, arXiv 2305.09836, Table 2 (CQL there from An et al. 2021). [DF] Diffuser, arXiv 2205.09991, Table 2, as in
plotting/locomotion_scores.py of github.com/jannerm/diffuser. The columns' means are the averages that [A] prints.
"""

from dataclasses import dataclass

ROBOTS = ("halfcheetah", "hopper", "walker2d")
LEVELS = ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")
GENERATIVE_LEVELS = ("medium-expert", "medium", "medium-replay")

LOCOMOTION = tuple(f"{robot}-{level}" for robot in ROBOTS for level in LEVELS)
GENERATIVE = tuple(f"{robot}-{level}" for level in GENERATIVE_LEVELS for robot in ROBOTS)
MAZES = tuple(
    f"antmaze-{maze}"
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
)


@dataclass(frozen=True)
class Column:
    """A column of a published table."""

    name: str
    source: str
    values: dict[str, float]
    """value by task"""
    average: float
    """as printed"""


def _columns(tasks: tuple[str, ...], text: str) -> tuple[Column, ...]:
    """Parse columns from words: name, source, the printed average, and a value for each task."""
    words, size = text.split(), 3 + len(tasks)
    columns = (words[i : i + size] for i in range(0, len(words), size))
    return tuple(
        Column(name, source, dict(zip(tasks, map(float, values), strict=True)), float(average))
        for name, source, average, *values in columns
    )


# Values: halfcheetah, hopper, walker2d, of each the LEVELS in their order.
SCORES = _columns(
    LOCOMOTION,
    """
    TD3+BC  RB 70.3   30.9 54.7 93.4 89.1 45.0 75.0  8.5 60.9 109.6 87.8 55.1 97.9  2.0 77.7 110.0 110.4 68.0 90.3
    IQL     RB 72.9   19.5 50.0 95.5 92.7 42.1 75.0  10.1 65.2 108.8 85.5 89.6 104.4  11.3 80.7 96.9 112.1 75.4 97.5
    CQL     RB 73.6   31.1 46.9 97.3 95.0 45.3 76.9  5.3 61.9 106.5 96.9 86.3 101.9  5.1 79.5 109.3 109.1 76.8 94.2
    SAC-RND RB 82.6   27.6 66.4 102.6 108.1 51.2 81.2  19.6 91.1 109.8 109.8 97.2 107.4  18.7 92.7 104.5 104.6 89.4
                      105.3
    ReBRAC  A  81.53  29.59 65.87 105.22 100.29 50.21 82.19  8.56 102.05 104.73 105.70 95.82 107.49
                      20.22 84.78 112.15 111.81 80.67 100.16
    MPCwDWM A  85.33  29.9 70.05 106.14 105.35 59.89 85.149  8.56 103.38 105.06 107.42 103.14 108.77
                      20.22 88.91 116.65 115.76 95.87 105.76
    """,
)

# Where text B prints another number than text A; its ReBRAC column is that of [RB].
SCORES_B = {"hopper-random": 8.40, "hopper-expert": 104.30, "walker2d-random": 18.4}
AVERAGE_B = 85.18

# Values: medium-expert, medium, medium-replay, of each halfcheetah, hopper, walker2d.
GENERATIVE_SCORES = (
    *_columns(
        GENERATIVE,
        """
        DT       DF 74.7  86.8 107.6 108.1  42.6 67.6 74.0  36.6 82.7 66.6
        TT       DF 78.9  95.0 110.0 101.9  46.9 61.1 79.0  41.9 91.5 82.6
        MOPO     DF 42.1  63.3 23.7 44.6  42.3 28.0 17.8  53.1 67.5 39.0
        MOReL    DF 72.9  53.3 108.7 95.6  42.1 95.4 77.8  40.2 93.6 49.8
        MBOP     DF 47.8  105.9 55.1 70.2  44.6 48.8 41.0  42.3 12.4 9.7
        Diffuser DF 77.5  88.9 103.3 106.9  42.8 74.3 79.6  37.7 93.6 70.6
        """,
    ),
    Column("MPCwDWM", "A", {task: SCORES[-1].values[task] for task in GENERATIVE}, 94.4),
)

# The two texts differ in every row, and two printed averages from those of the rows: ReBRAC's in A, MPCwDWM's in B.
MAZE_SCORES = _columns(
    MAZES,
    """
    ReBRAC  A 77.62  99.0 89.0 86.7 83.0 59.0 51.0
    MPCwDWM A 85.07  99.0 90.0 94.4 94.0 67.0 66.0
    """,
)
MAZE_SCORES_B = _columns(
    MAZES,
    """
    ReBRAC  B 76.8   97.8 88.3 84.0 76.3 60.4 54.4
    MPCwDWM B 81.77  98.3 88.3 86.33 84.7 70.0 62.4
    """,
)

DYNAMICS_RMSE, REWARD_RMSE = _columns(
    LOCOMOTION,
    """
    paper A 0.7565  0.2318 0.5494 1.3065 0.5972 0.3996 0.4739  0.1268 0.0784 0.1375 0.1678 0.1008 0.1178
                    0.6591 1.4068 3.3412 1.5566 1.1100 1.2560
    paper A 0.1092  0.0477 0.1292 0.2763 0.1622 0.0918 0.1164  0.0082 0.0720 0.1415 0.0789 0.0192 0.0208
                    0.0244 0.0779 0.4902 0.1060 0.0459 0.0578
    """,
)

SOURCES = {
    "A": ("Tables 1 to 5 of the paper's two-column text (v1)", "https://arxiv.org/abs/2603.22430"),
    "B": ("Table 2 of the paper's single-column text", "https://arxiv.org/abs/2603.22430"),
    "RB": ("Table 2 of ReBRAC", "https://arxiv.org/abs/2305.09836"),
    "DF": ("Table 2 of Diffuser", "https://arxiv.org/abs/2205.09991"),
}
