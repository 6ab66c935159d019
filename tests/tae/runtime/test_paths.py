"""What a folder holds and what a text means as a path, in every command alike."""

from pathlib import Path

import pytest

import tae
from tae import UserError
from tae.losses.lpips import check_available, load_network
from tae.runtime.cli import at_home
from tae.runtime.paths import glob_files, list_files, to_path


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_linked_folders_are_followed_each_folder_once(tmp_path: Path) -> None:
    """A loop, two links to one folder, a link out of the source and one to a folder within it."""
    make(tmp_path, "source/a/x.mp4", "elsewhere/deep/y.mp4")
    (tmp_path / "source" / "loop").symlink_to(tmp_path / "source")
    (tmp_path / "source" / "again").symlink_to(tmp_path / "source" / "a")
    (tmp_path / "source" / "out1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source" / "out2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source" / "a")
    (tmp_path / "source" / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "source" / "itself").symlink_to(tmp_path / "source" / "itself")
    assert dict(list_files(tmp_path / "source")) == {
        "a/x.mp4": "",
        "again": "a link to a folder that is read already (a)",
        "broken": "not a regular file (a broken link?)",
        "itself": "not a regular file (a broken link?)",
        "loop": "a link to a folder that is read already (.)",
        "out1/deep/y.mp4": "",
        "out1/back": "a link to a folder that is read already (a)",
        "out2": "a link to a folder that is read already (out1)",
    }


def test_hidden_files_and_what_lies_in_hidden_folders_are_told(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "._a.mp4", ".Trash-1000/files/b.mp4", "c/.ipynb_checkpoints/c.mp4", "c/d.mp4")
    hidden = "in a hidden folder"
    assert list(list_files(tmp_path)) == [
        (".Trash-1000/files/b.mp4", hidden),
        ("._a.mp4", "hidden file"),
        ("a.mp4", ""),
        ("c/.ipynb_checkpoints/c.mp4", hidden),
        ("c/d.mp4", ""),
    ]


def test_the_output_is_no_part_of_the_source(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "out/train/shard.tar", "out.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert [entry.path for entry in list_files(tmp_path, tmp_path / "out")] == ["a.mp4", "out.mp4"]


def test_files_are_sorted_as_paths_are(tmp_path: Path) -> None:
    make(tmp_path, "b/a.mp4", "b.mp4", "a-b/x.mp4", "a/x.mp4", "a.b/x.mp4")
    paths = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.mp4"))]
    assert [entry.path for entry in list_files(tmp_path)] == paths


def test_a_path_is_not_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "set[1]/train/shard-0.tar", "set[1]/train/shard-1.tar", "set1/train/shard-9.tar", "what?.tar")
    folder = f"{tmp_path}/set[1]/train"
    assert glob_files(f"{folder}/shard-*.tar") == [f"{folder}/shard-0.tar", f"{folder}/shard-1.tar"]
    assert glob_files(f"{folder}/shard-1.tar") == [f"{folder}/shard-1.tar"]
    assert glob_files(f"{tmp_path}/what?.tar") == [f"{tmp_path}/what?.tar"]
    assert glob_files(f"{tmp_path}/set[0-9]/*/*.tar") == [f"{tmp_path}/set1/train/shard-9.tar"]
    assert glob_files(f"{tmp_path}/gone[1].tar") == []
    assert glob_files(f"{tmp_path}/gone.tar") == [f"{tmp_path}/gone.tar"]  # whoever opens it says that it is not there
    monkeypatch.chdir(tmp_path)
    assert glob_files("set[1]/*/shard-0.tar") == ["set[1]/train/shard-0.tar"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path, "videos/shard-0.tar")
    assert to_path("~/videos") == tmp_path / "videos"
    assert glob_files("~/videos/*.tar") == [f"{tmp_path}/videos/shard-0.tar"]


@pytest.mark.parametrize("key", ["output_dir", "+data.cache_dir", "source"])
def test_a_tilde_needs_no_quotes_on_the_command_line(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bash writes the home folder itself; in other shells Hydra refused the value."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home(f"{key}=~/videos") == f"{key}={tmp_path}/videos"
    for other in (f"{key}=a~b", "~callbacks.best", f"{key}='~/videos'", f"{key}=~no-such-user/videos"):
        assert at_home(other) == other


def test_there_is_one_way_from_text_to_a_path() -> None:
    """A path that one check expands and the reader behind it does not fails late."""
    root = Path(tae.__file__).parents[1]
    files = [file for package in ("tae", "data") for file in (root / package).rglob("*.py")]
    callers = {str(file.relative_to(root)) for file in files if "expanduser(" in file.read_text(encoding="utf-8")}
    assert callers == {"tae/runtime/paths.py", "tae/runtime/cli.py"}


def test_weights_below_the_home_folder_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They passed the check, and then were not found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vgg.pth").write_bytes(b"no weights")
    check_available("vgg", "~/vgg.pth")
    with pytest.raises(UserError, match="is not a readable weights file"):
        load_network("vgg", "~/vgg.pth")
