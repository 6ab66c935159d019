"""Files appear whole or not at all."""

import pytest

from tae.runtime.files import replacing, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("half\ud800", encoding="utf-8")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
