"""Make the published policy of the ant, which walks along +x, walk towards any point.

The policy does not observe its position, so it walks in any direction in a world that is turned. The ant has a
four-fold symmetry: its legs are renamed so that the policy always observes a yaw near its usual one.

An observation here is AntMaze's (29,): position 2, height, quaternion 4, joint angles 8 (hip and ankle of four legs),
velocity 3, angular velocity 3 (in the ant's own frame), joint velocities 8. Actions have the same order of joints, but
begin with the last leg.
"""

import numpy as np

from fastdwm.collect.behaviour import Act

POLICY_SIZES = (111, 8)
"""sizes of the policy's observation, the ant's 27 numbers without position and 84 contact forces, and of its action"""
USUAL_YAW = 20.0
"""yaw with which the policy walks, relative to its direction (degrees)"""
MOST_YAW = 60.0
"""deviation from USUAL_YAW at which the legs are renamed; 45 would rename them back and forth"""

_LEGS = 4
_ANKLE_SIGNS = np.array([1.0, -1.0, -1.0, 1.0])
"""sign of each leg's bent ankle"""
_QUARTER_TURNS = [np.array([[c, -s], [s, c]], float) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]


class Walker:
    """Walks towards a point; one per episode, for it remembers how the legs are named.

    act: the policy, which takes POLICY_SIZES[0] observations.
    """

    def __init__(self, act: Act):
        self.act, self.turns = act, None

    def __call__(self, obs: np.ndarray, point: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The action (8,) for obs (29,) towards the point (2,) (m)."""
        heading = np.arctan2(point[1] - obs[1], point[0] - obs[0])
        off = np.degrees(yaw(obs[3:7]) - heading) - USUAL_YAW
        if self.turns is None or abs((off + 90 * self.turns + 180) % 360 - 180) >= MOST_YAW:
            self.turns = int(np.round(-off / 90)) % _LEGS
        body = turned(obs, heading, self.turns)
        policy_obs = np.zeros(POLICY_SIZES[0])
        policy_obs[: len(body)] = body
        return turned_back(self.act(policy_obs, rng), self.turns)


def turned(obs: np.ndarray, heading: float, turns: int) -> np.ndarray:
    """The state (27,), without position, of obs (29,) with the world turned by -heading and the legs renamed.

    turns: the legs are named as if the ant were turned by so many quarter turns.
    """
    body, c, s = obs.copy(), np.cos(heading), np.sin(heading)
    quaternion = multiplied(multiplied(about_z(-heading), obs[3:7]), about_z(turns * np.pi / 2))
    body[3:7] = quaternion if quaternion[0] >= 0 else -quaternion
    body[15:17] = np.array([[c, s], [-s, c]]) @ obs[15:17]
    body[18:20] = _QUARTER_TURNS[-turns % _LEGS] @ obs[18:20]
    for i in (7, 21):
        body[i : i + 8 : 2] = np.roll(obs[i : i + 8 : 2], -turns)
        body[i + 1 : i + 8 : 2] = np.roll(obs[i + 1 : i + 8 : 2] * _ANKLE_SIGNS, -turns) * _ANKLE_SIGNS
    return body[2:]


def turned_back(action: np.ndarray, turns: int) -> np.ndarray:
    """The action (8,) of the real legs for that of the renamed ones."""
    hips, ankles = np.roll(action[0::2], -1), np.roll(action[1::2], -1)
    result = np.empty(2 * _LEGS)
    result[0::2] = np.roll(hips, turns + 1)
    result[1::2] = np.roll(np.roll(ankles * _ANKLE_SIGNS, turns) * _ANKLE_SIGNS, 1)
    return result


def yaw(quaternion: np.ndarray) -> float:
    """Angle about the z axis (rad)."""
    w, x, y, z = quaternion
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def is_on_its_back(obs: np.ndarray) -> bool:
    """Whether the ant of obs (29,) is upside down, from where it never gets up."""
    return 1 - 2 * (obs[4] ** 2 + obs[5] ** 2) < 0


def about_z(angle: float) -> np.ndarray:
    """Quaternion of a rotation about the z axis by the angle (rad)."""
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def multiplied(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Product of two quaternions."""
    w, x, y, z = first
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]) @ second
