"""The picture and the video of an evaluation. The video needs the extra `video` (imageio)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError
from fastdwm.eval.compare import Evaluation
from fastdwm.measure.simulate import Episode
from fastdwm.pictures import save_png

# Readable in black and white: line style and hatching differ as well as the shade.
STYLES = {
    "base": {"color": "0.45", "linestyle": "--", "hatch": "///"},
    "itpo": {"color": "black", "linestyle": "-", "hatch": None},
}
VIDEO_FPS = 30
JITTER = 0.12
"""farthest horizontal distance of a point from its policy's place"""
RESAMPLES = 1000


def save_plot(
    evaluation: Evaluation, path: Path, title: str, score_pct: Callable[[float], float], score: str = "score"
) -> Path:
    """Save a PNG. Left: both scores of each seed; middle: the reward collected so far, mean and std over episodes;
    right: its difference in units of the score, mean and 95 % interval over the seeds.

    score_pct: score of a return.   score: its name.
    """
    from matplotlib.figure import Figure

    # A Figure of its own needs no display and does not touch pyplot's global state.
    figure = Figure(figsize=(14, 4), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    pairs, curves, gap = figure.subplots(1, 3, width_ratios=(2, 3, 3))
    draw_pairs(pairs, evaluation, score_pct, score)
    n_steps = max(episode.length for run in evaluation.runs.values() for episode in run.episodes)
    collected = {
        policy: np.stack([collected_reward(episode, n_steps) for episode in run.episodes])
        for policy, run in evaluation.runs.items()
    }
    draw_collected(curves, collected, evaluation.titles)
    scores = {policy: score_pct(rewards) for policy, rewards in collected.items()}
    draw_difference(gap, scores["itpo"] - scores["base"])
    gap.set(ylabel=f"{score}: {evaluation.titles['itpo']} - base policy so far (mean, 95 %)")
    return save_png(figure, path)


def draw_pairs(axes: Any, evaluation: Evaluation, score_pct: Callable[[float], float], score: str) -> None:
    """Draw both scores of each seed, joined by a line, and their means; spread, so that no point hides another."""
    scores = [
        [score_pct(episode.total) for episode in evaluation.runs[policy].episodes] for policy in evaluation.titles
    ]
    spread = JITTER * np.linspace(-1, 1, len(scores[0])) if len(scores[0]) > 1 else np.zeros(1)
    axes.plot(np.array([[0.0], [1.0]]) + spread, scores, color="0.8", linewidth=0.8)
    for x, (policy, values) in enumerate(zip(evaluation.titles, scores, strict=True)):
        axes.plot(x + spread, values, "o", color=STYLES[policy]["color"], markersize=4)
        axes.plot([x - 0.25, x + 0.25], [np.mean(values)] * 2, color="black", linewidth=3)
    axes.set(xticks=[0, 1], xticklabels=evaluation.titles.values(), xlim=(-0.5, 1.5), ylabel=f"{score} (bar: mean)")
    axes.ticklabel_format(axis="y", useOffset=False)


def draw_collected(axes: Any, collected: dict[str, np.ndarray], titles: dict[str, str]) -> None:
    """Draw the reward collected so far by each policy, (episodes, steps + 1)."""
    for policy, rewards in collected.items():
        style, steps = STYLES[policy], np.arange(rewards.shape[1])
        mean, std = rewards.mean(0), rewards.std(0)
        axes.plot(steps, mean, color=style["color"], linestyle=style["linestyle"], label=titles[policy])
        shade = {"facecolor": style["color"], "edgecolor": style["color"], "hatch": style["hatch"]}
        axes.fill_between(steps, mean - std, mean + std, alpha=0.2, linewidth=0, **shade)
    axes.set(xlabel="environment step", ylabel="reward collected so far (mean ± std)", xlim=(0, rewards.shape[1] - 1))
    axes.legend(loc="upper left")


def draw_difference(axes: Any, gaps: np.ndarray) -> None:
    """Draw the mean of gaps (episodes, steps + 1) and, of several episodes, its bootstrap interval."""
    steps, n = np.arange(gaps.shape[1]), len(gaps)
    axes.axhline(0, color="0.45", linestyle="--", linewidth=1)
    axes.plot(steps, gaps.mean(0), color="black")
    if n > 1:
        # How often each resample draws each episode.
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        low, high = np.percentile(counts @ gaps / n, (2.5, 97.5), axis=0)
        axes.fill_between(steps, low, high, color="black", alpha=0.2, linewidth=0)
    axes.set(xlabel="environment step", xlim=(0, gaps.shape[1] - 1))


def collected_reward(episode: Episode, n_steps: int) -> np.ndarray:
    """Undiscounted reward after 0, 1, ..., n_steps steps, (n_steps + 1,); constant after the episode has ended."""
    collected = np.concatenate([[0.0], np.cumsum(episode.rewards)])
    return np.pad(collected, (0, n_steps - episode.length), mode="edge")


def check_video(env_spec: EnvSpec) -> None:
    """Raise InputError unless a frame can be rendered and imageio is installed."""
    try:
        import imageio  # noqa: F401
    except ImportError:
        raise InputError("video: needs imageio: pip install 'fastdwm[video]'") from None
    try:
        with env_spec.make(render_mode="rgb_array") as env:
            env.reset(seed=0)
            frame = env.render()
    # To the user, all failures of drivers mean the same.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        hint = "headless machines need MUJOCO_GL=egl or MUJOCO_GL=osmesa and its library"
        raise InputError(f"video: cannot render here ({type(error).__name__}: {reason}); {hint}") from None
    if not isinstance(frame, np.ndarray):
        raise InputError(f"video: expected a picture from {env_spec.id}, got {type(frame).__name__}")


def save_video(env_spec: EnvSpec, evaluation: Evaluation, stem: Path) -> Path:
    """Save a video of both policies' first episode, side by side, in real time; the shorter one stops at its end.

    It replays the recorded actions on the recorded seed, so it shows the episodes that were scored.
    Writes `stem`.mp4, or .gif if imageio has no ffmpeg; returns the path.
    """
    import imageio

    path = stem.with_suffix(".mp4" if has_ffmpeg() else ".gif")
    titles = evaluation.titles
    films = [replay(env_spec, evaluation.runs[policy].episodes[0], title) for policy, title in titles.items()]
    # imageio's GIF writer wants the duration of a frame in ms, its ffmpeg writer frames per second.
    timing = {"fps": VIDEO_FPS} if path.suffix == ".mp4" else {"duration": 1000 / VIDEO_FPS, "loop": 0}
    with imageio.get_writer(path, **timing) as writer:
        for frames in side_by_side(films):
            writer.append_data(np.concatenate(frames, 1))
    return path


def has_ffmpeg() -> bool:
    """Whether imageio can write mp4."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def replay(env_spec: EnvSpec, episode: Episode, title: str) -> Iterator[np.ndarray]:
    """Yield frames (height, width, 3) uint8 of the episode at about VIDEO_FPS, including the last one."""
    with env_spec.make(render_mode="rgb_array") as env:
        env.reset(seed=episode.seed)
        stride = max(1, round(env.metadata.get("render_fps", VIDEO_FPS) / VIDEO_FPS))
        collected = 0.0
        for t, action in enumerate(episode.actions):
            if t % stride == 0:
                yield caption(env.render(), f"{title}  step {t}  return {collected:.0f}")
            collected += float(env.step(action)[1])
        yield caption(env.render(), f"{title}  step {episode.length}  return {collected:.0f}")


def caption(frame: np.ndarray, text: str) -> np.ndarray:
    """Draw a line of text at the top of the frame."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(12, frame.shape[0] // 24))
    draw.text((8, 6), text, fill="white", stroke_width=2, stroke_fill="black", font=font)
    return np.asarray(image)


def side_by_side(films: Sequence[Iterator[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Yield one frame of each film at a time; films that have ended repeat their last frame until all have ended."""
    frames: list[np.ndarray | None] = [None] * len(films)
    while True:
        fresh = [next(film, None) for film in films]
        if all(frame is None for frame in fresh):
            return
        frames = [old if new is None else new for old, new in zip(frames, fresh, strict=True)]
        yield frames
