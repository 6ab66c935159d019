"""Lists, dictionaries and sorting that spill to disk do what Python's own do, and leave nothing behind."""

import io
from collections import defaultdict
from pathlib import Path

import pytest

from tae import UserError
from tae.runtime.scratch import ScratchDict, ScratchList, group_on_disk, sort_on_disk

# Order by code points is not that of UTF-16, and a name that is no UTF-8 holds half of a pair.
TEXTS = ["b", "a/x", "a", "", "a-b", "\U0001f600", "\uf8ff", "\udcff.mp4", "é", "a\0b", "Z", "a", "日本", "b"]


@pytest.fixture(params=[1, 3, 100])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All items on disk, some, or none."""
    monkeypatch.setattr("tae.runtime.scratch.HELD", request.param)
    monkeypatch.setattr("tae.runtime.scratch.READ", 2)


def test_a_list_is_read_like_any_other(held: None) -> None:
    items = ScratchList(enumerate(TEXTS))
    items.append((99, "end"))
    expected = [*enumerate(TEXTS), (99, "end")]
    assert list(items) == list(items) == expected
    assert len(items) == len(expected)
    assert (items[0], items[-1], items[3:5]) == (expected[0], expected[-1], expected[3:5])
    with pytest.raises(IndexError):
        items[len(expected)]
    assert not ScratchList()


def test_a_dictionary_keeps_the_first_value_or_the_set_one(held: None) -> None:
    numbers: ScratchDict[int] = ScratchDict()
    assert [numbers.add(text, number) for number, text in enumerate(TEXTS)] == [
        text not in TEXTS[:number] for number, text in enumerate(TEXTS)
    ]
    numbers["Z"] = 7
    assert [numbers.get(text) for text in ("b", "Z", "none")] == [0, 7, None]


def test_order_and_groups_are_those_of_python(held: None) -> None:
    items = list(enumerate(TEXTS))
    assert list(sort_on_disk(items, key=lambda item: item[1])) == sorted(items, key=lambda item: item[1])
    groups = defaultdict(list)
    for item in items:
        groups[item[1]].append(item)
    assert list(group_on_disk(items, key=lambda item: item[1])) == list(groups.values())


def test_no_file_is_seen_and_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tae.runtime.scratch.HELD", 2)
    items = ScratchList(range(5))
    assert list(items) == list(range(5))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: io.FileIO("/dev/full", "w+"))
    with pytest.raises(UserError, match=r"No space left on device.*TMPDIR=DIR"):
        ScratchList(range(5))
