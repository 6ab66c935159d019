"""UCF-101 from a local server that fails in every way a server can; archives that are not what they say."""

import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import data.ingest.download
from data.drawing import draw_clip, encode_mp4
from data.ingest.download import fetch, unpack
from tae.runtime.errors import UserError

pytest.importorskip("libarchive", reason="libarchive-c is not installed")
ROOT = Path(__file__).parents[3]


@contextmanager
def serving(files: dict[str, bytes], faults: list[str]) -> Iterator[tuple[str, list[str]]]:
    """An address of `files`, and the ranges asked for. Each GET takes the next of `faults`, while there are any."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            asked.append(self.headers.get("Range", ""))
            fault = faults.pop(0) if faults else ""
            if fault == "500":
                self.send_error(500)
            elif fault == "stall":
                time.sleep(1.5)
            else:
                self.answer(body=True, short=fault == "short")

        def answer(self, body: bool, short: bool = False) -> None:
            content = files[self.path.strip("/")]
            start, end = 0, len(content)
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                start, end = int(first), min(int(last) + 1, len(content))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                self.wfile.write(content[start : start + (end - start) // 2 if short else end])
                self.close_connection = short

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_download_goes_on_after_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is asked for again where it failed, and none that came."""
    monkeypatch.setattr(data.ingest.download, "DOWNLOAD_BLOCK", 1000)
    content = np.random.default_rng(0).bytes(4500)
    faults = ["", "500", "", "short", "stall", "", "500", "500"]
    with serving({"file.rar": content}, faults) as (address, asked):
        fetch(f"{address}/file.rar", tmp_path / "file.rar", attempts=3, stall=0.5, pause=0.01)
    assert (tmp_path / "file.rar").read_bytes() == content
    assert not list(tmp_path.glob("*.partial"))
    starts = [int(given.split("=")[1].split("-")[0]) for given in asked]
    assert starts == [0, 1000, 1000, 2000, 2000, 2000, 3000, 3000, 3000, 4000]


def test_a_download_that_was_given_up_goes_on_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.ingest.download, "DOWNLOAD_BLOCK", 1000)
    content = np.random.default_rng(0).bytes(2500)
    with serving({"file.rar": content}, ["", "500", "500"]) as (address, asked):
        with pytest.raises(UserError, match=r"file.rar cannot be fetched: .*Repeat the command"):
            fetch(f"{address}/file.rar", tmp_path / "file.rar", attempts=2, stall=5, pause=0.01)
        assert (tmp_path / "file.rar.partial").read_bytes() == content[:1000]
        assert not (tmp_path / "file.rar").exists()
        fetch(f"{address}/file.rar", tmp_path / "file.rar", attempts=2, stall=5, pause=0.01)
    assert (tmp_path / "file.rar").read_bytes() == content
    assert asked[-2:] == ["bytes=1000-1999", "bytes=2000-2499"]


def rar(files: dict[str, bytes]) -> bytes:
    """A RAR 4 archive that stores its files as they are: marker, archive header, file headers with content, end."""

    def block(kind: int, flags: int, body: bytes) -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head

    archive = b"Rar!\x1a\x07\x00" + block(0x73, 0, bytes(6))
    for name, content in files.items():
        sizes, crc = struct.pack("<II", len(content), len(content)), zlib.crc32(content)
        rest = struct.pack("<BIIBBHI", 3, crc, 0x21000000, 20, 0x30, len(name), 0o100644)
        archive += block(0x74, 0x8000, sizes + rest + name.encode()) + content
    return archive + block(0x7B, 0x4000, b"")


def zipped(path: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rar", "zip"])
def test_the_command_goes_from_the_address_to_shards(kind: str, tmp_path: Path) -> None:
    """With the official lists, through a server that fails now and then; again, it asks for nothing."""
    names = [f"v_Archery_g{group:02d}_c01.avi" for group in (1, 2, 8)]
    clips = [encode_mp4(draw_clip(np.random.default_rng(number), 9, 32, 44)) for number in range(3)]
    videos = {f"UCF-101/Archery/{name}": clip for name, clip in zip(names, clips, strict=True)}
    lists = {
        "ucfTrainTestlist/trainlist01.txt": f"Archery/{names[2]} 1\n".encode(),
        "ucfTrainTestlist/testlist01.txt": f"Archery/{names[0]}\nArchery/{names[1]}\n".encode(),
    }
    archive = rar(videos) if kind == "rar" else zipped(tmp_path / "v.zip", videos)
    served = {"videos": archive, "lists.zip": zipped(tmp_path / "l.zip", lists)}
    with serving(served, ["short", "500"]) as (address, asked):
        line = [sys.executable, "-m", "data.prepare", "dataset=ucf101", "download=true", "split=official1", "workers=1"]
        line += [f"source={tmp_path / 'source'}", f"output={tmp_path / 'out'}"]
        line += [f"download_from.videos={address}/videos", f"download_from.lists={address}/lists.zip"]
        for _ in range(2):
            ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
            assert "accepted: train │ 1" in ended.stdout
            assert "accepted: test  │ 2" in ended.stdout
    assert len(asked) == 4  # two archives of one block each, and two faults
    assert (tmp_path / "source" / "UCF-101" / "Archery" / names[0]).read_bytes() == clips[0]


@pytest.mark.parametrize(
    "name", ["../trace.avi", "UCF-101/../../trace.avi", "/tmp/trace.avi", "UCF-101\\..\\..\\trace.avi"]
)
@pytest.mark.parametrize("kind", ["rar", "zip"])
def test_an_archive_that_writes_elsewhere_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    files = {"UCF-101/a.avi": b"a", name: b"payload"}
    content = rar(files) if kind == "rar" else zipped(tmp_path / "archive", files)
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "deep" / "target").mkdir(parents=True)
    with pytest.raises(UserError, match="points out of its folder"):
        unpack(tmp_path / "archive", tmp_path / "deep" / "target", "UCF-101")
    assert not list(tmp_path.rglob("*trace*"))
    assert not Path("/tmp/trace.avi").exists()
    assert not (tmp_path / "deep" / "target" / "UCF-101").exists()


def test_links_damage_and_other_archives_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("UCF-101/link.avi")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    good = rar({"UCF-101/a.avi": b"content"})
    zipped_file = zipped(tmp_path / "zip", {"UCF-101/a.avi": b"content"})
    (tmp_path / "damaged").write_bytes(zipped_file.replace(b"content", b"c0ntent"))
    (tmp_path / "cut").write_bytes(rar({"UCF-101/a.avi": bytes(5000)})[:3000])
    (tmp_path / "other").write_bytes(rar({"readme.txt": b"hello"}))
    (tmp_path / "text").write_bytes(b"404: not found")
    for name, message in {
        "link": "is a link", "damaged": "is damaged", "cut": "is damaged", "other": "holds no folder",
        "text": "is damaged",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            unpack(tmp_path / name, tmp_path, "UCF-101")
    assert not (tmp_path / "UCF-101").exists()
    (tmp_path / "good").write_bytes(good)
    unpack(tmp_path / "good", tmp_path, "UCF-101")
    assert (tmp_path / "UCF-101" / "a.avi").read_bytes() == b"content"
