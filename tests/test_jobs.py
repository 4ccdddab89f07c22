"""Files and identities of finished jobs, and folders that are refused in one line."""

import json

import pytest

from fastdwm.errors import InputError
from fastdwm.files import write_json
from fastdwm.jobs.identity import differences, digest, read_identity, refuse_other
from fastdwm.jobs.results import read_all

IDENTITY = {"format": 1, "task": "hopper-medium", "rebrac": {"updates": 60, "hidden": [16, 16]}}


def test_identities_that_agree_differ_in_nothing():
    assert differences(json.loads(json.dumps(IDENTITY)), IDENTITY) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "hopper-expert"}, ["task: hopper-expert, now hopper-medium"]),
        ({"rebrac": {"updates": 80, "hidden": [16]}}, ["rebrac.updates: 80, now 60", "rebrac.hidden: [16], now"]),
        ({"removed": True}, ["removed: True, now None"]),
        ({"rebrac": None}, ["rebrac: None, now {'updates': 60, 'hidden': [16, 16]}"]),
    ],
    ids=["value", "nested", "unknown", "missing"],
)
def test_every_difference_is_named_with_dots(change, words, tmp_path):
    assert len(differences(IDENTITY | change, IDENTITY)) == len(words)
    with pytest.raises(InputError) as error:
        refuse_other(IDENTITY | change, IDENTITY, tmp_path, "training")
    message = str(error.value)
    assert message.startswith(f"out: {tmp_path} holds another training (") and "\n" not in message
    assert all(word in message for word in words) and "--out" in message


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_a_file_without_an_identity_is_refused(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"out: cannot use the folder {tmp_path}: "):
        read_identity(path, "training")


def test_digests_tell_identities_apart_whatever_the_order_of_keys():
    assert digest(dict(reversed(IDENTITY.items()))) == digest(IDENTITY) != digest(IDENTITY | {"format": 2})


def test_finished_jobs_are_read_by_name_and_others_refused(tmp_path):
    for name in ("b", "a"):
        write_json(tmp_path / f"{name}.json", {"identity": IDENTITY, "name": name})
    records = read_all(tmp_path, "study", IDENTITY)
    assert list(records) == ["a", "b"] and records["b"]["name"] == "b"
    with pytest.raises(InputError, match=r"holds another study \(format: 1, now 2\)"):
        read_all(tmp_path, "study", IDENTITY | {"format": 2})
    (tmp_path / "notes.json").write_text("[1, 2]")
    with pytest.raises(
        InputError, match=r"notes.json is not a finished job of a study \(identity: None\); move it away"
    ):
        read_all(tmp_path, "study", IDENTITY)
