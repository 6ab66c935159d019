"""Files by path or address: local, `http(s)://` and `s3://` through fsspec, and `pipe:` commands where they are allowed.

Every read has a time limit and is tried again with growing pauses, going on at the byte where it stood: what reads
from such a file sees neither a byte twice nor a gap. Shards from elsewhere may be kept in a local cache.
"""

import io
import os
import random
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import fsspec

from data.storage.address import is_remote, scheme
from data.storage.cache import ShardCache
from tae.runtime.errors import UserError

READ_BLOCK = 1 << 20  # bytes of one read, and what is rather read and thrown away than asked for again
LOCAL_BLOCK = 1 << 16  # a search through the headers of a local shard reads so much at each
S3_BLOCK = 8 << 20  # S3 answers a request for a range after tens of milliseconds
LONGEST_PAUSE = 60.0  # seconds
SLOWEST = 1_000  # bytes per second; a source that gives less for the length of a timeout has stalled


@dataclass(frozen=True)
class Access:
    """How files are read.

    Args:
        tries: of each read, before it counts as failed. The second follows at once, then the pauses double from 1 s.
        timeout: seconds without an answer, or with next to nothing arriving, after which a try is given up.
        cache: where remote shards are kept; None reads them from their source each time.
        allow_pipe: run `pipe:COMMAND` in a shell and read what it prints.
    """

    tries: int = 8
    timeout: float = 60.0
    cache: ShardCache | None = None
    allow_pipe: bool = False


class SourceError(OSError):
    """A file cannot be read, after every try; the message is the reason in plain words."""


def open_file(address: str, access: Access, size: int | None = None, sha256: str = "") -> BinaryIO:
    """Open a file for reading and seeking.

    Args:
        size: its length in bytes, where that is known: a shorter one is a fault.
        sha256: of its content. With it (and `size`) the file may come from the cache, and is checked on its way there.

    Raises:
        SourceError: when opening through the cache; without one, when reading.
    """
    source = partial(_buffered, address, access, size)
    if access.cache is not None and is_remote(address) and size is not None and sha256:
        return access.cache.open(sha256, size, source) or source()
    return source()


def _buffered(address: str, access: Access, size: int | None) -> BinaryIO:
    block = READ_BLOCK if is_remote(address) else LOCAL_BLOCK
    return cast(BinaryIO, io.BufferedReader(RetriedFile(address, access, size), block))


def glob_s3(pattern: str, timeout: float) -> list[str]:
    """The sorted `s3://` addresses that match a pattern."""
    return sorted(f"s3://{path}" for path in filesystem("s3", timeout).glob(pattern))


def filesystem(kind: str, timeout: float) -> fsspec.AbstractFileSystem:
    """fsspec's file system for `http`, `https` or `s3`, with time limits and without retries of its own.

    Raises:
        UserError: the package for it is not installed.
    """
    if kind != "s3":
        import aiohttp  # here, because local shards need no network code

        limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
        return fsspec.filesystem(kind, client_kwargs={"timeout": limits, "trust_env": True})
    try:
        import s3fs
    except ImportError as error:
        raise UserError(
            's3:// addresses need the package s3fs: python -m pip install "temporal-autoencoder[s3]", or copy the '
            "shards to a local folder."
        ) from error
    retries = {"total_max_attempts": 1}
    settings = {"connect_timeout": timeout, "read_timeout": timeout, "retries": retries}
    store = s3fs.S3FileSystem(config_kwargs=settings, use_listings_cache=False)
    store.retries = 1
    return store


class RetriedFile(io.RawIOBase):
    """A file read from any position on; each fault is followed by another try at the same byte."""

    def __init__(self, address: str, access: Access, size: int | None) -> None:
        self.address = address
        self.access = access
        self.size = size
        self._scheme = scheme(address)
        self._position = 0
        self._stream: Any = None
        self._stream_position = 0
        self._jumps = self._scheme != "pipe"  # whether opening in the middle is cheaper than reading up to there
        self._waited, self._received = 0.0, 0  # since the source's speed was last judged
        self._stalls = 0  # how often in a row it was too slow: single bytes that still come must not count as success

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Only notes the position; the next read goes there."""
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end of a remote file need not be known")
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self.size is None else min(len(buffer), self.size - self._position)
        if wanted <= 0:
            return 0
        data = self._read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, wanted: int) -> bytes:
        """At least one byte, none only at the end of a file of unknown length."""
        for attempt in range(1, self.access.tries + 1):
            try:
                data = self._try(wanted)
                if data or self.size is None:
                    return data
                raise EOFError(f"it ends after {self._position} of {self.size} bytes")
            except UserError:
                raise
            except Exception as error:  # each library behind fsspec has errors of its own
                self._drop()
                failures = max(attempt, self._stalls)
                if failures >= self.access.tries or self._is_final(error):
                    tries = "" if failures == 1 else f", {failures} times"
                    raise SourceError(f"{_plain(error)}{tries}") from error
                time.sleep(_pause(failures))
        raise AssertionError("unreachable")

    def _is_final(self, error: Exception) -> bool:
        """Whether trying again is no use: a local file stays short, and what nobody knows to exist may well be a typo."""
        unknown = (FileNotFoundError, PermissionError)
        return (
            (self._scheme == "" and isinstance(error, EOFError))
            or (self.size is None and isinstance(error, unknown))
            or type(error).__name__ == "NoCredentialsError"  # botocore's, which need not be installed
        )

    def _try(self, wanted: int) -> bytes:
        if self._stream is not None and self._scheme == "":
            self._stream.seek(self._position)
            self._stream_position = self._position
        gap = self._position - self._stream_position
        if self._stream is None or gap < 0 or (gap > READ_BLOCK and self._jumps):
            self._drop()
            self._open()
        while (gap := self._position - self._stream_position) > 0:
            if not self._receive(min(gap, READ_BLOCK)):
                raise EOFError(f"it ends after {self._stream_position} bytes, {self._position} were read before")
        return self._receive(min(wanted, READ_BLOCK))

    def _receive(self, wanted: int) -> bytes:
        started = time.monotonic()
        data = self._stream.read(wanted)
        self._stream_position += len(data)
        self._waited += time.monotonic() - started
        self._received += len(data)
        if self._waited > self.access.timeout:
            waited, received = self._waited, self._received
            self._waited, self._received = 0.0, 0
            self._stalls = self._stalls + 1 if received < SLOWEST * waited else 0
            if self._stalls:
                raise TimeoutError(f"only {received} bytes came in {waited:.0f} s")
        return data

    def _open(self) -> None:
        """Open the source, at the position where that is possible, else at its beginning."""
        start = self._position if self._jumps else 0
        if self._scheme == "":
            self._stream = open(self.address, "rb", buffering=0)  # noqa: SIM115, PTH123
            self._stream.seek(start)
        elif self._scheme == "pipe":
            self._stream = PipeReader(self.address.removeprefix("pipe:"), self.access.timeout)
        elif self._scheme == "s3":
            store = filesystem("s3", self.access.timeout)
            self._stream = store.open(self.address, block_size=S3_BLOCK, cache_type="readahead")
            self._stream.seek(start)
        else:
            start = self._open_http(start)
        self._stream_position = start

    def _open_http(self, start: int) -> int:
        """One request for all that follows; gives where the answer starts: some servers know no ranges."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        web = filesystem(self._scheme, self.access.timeout)
        # With block_size=0 fsspec streams the answer; a size spares it a request for that.
        self._stream = web.open(self.address, block_size=0, size=1, headers=headers)
        answer = self._stream.r
        if start and answer.status != 206:
            self._jumps = False
            return 0
        if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError(f"the server answered with another range: {answer.headers.get('Content-Range')}")
        return start

    def _drop(self) -> None:
        if self._stream is not None:
            with suppress(Exception):  # it may be broken, and is not needed any more
                self._stream.close()
            self._stream = None


class PipeReader:
    """What a shell command prints."""

    def __init__(self, command: str, timeout: float) -> None:
        self.timeout = timeout
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)

    def read(self, size: int) -> bytes:
        if not self._poll.poll(self.timeout * 1000):
            raise TimeoutError(f"the command printed nothing for {self.timeout:g} s")
        data = os.read(self._output.fileno(), size)
        if not data and (code := self._process.wait(self.timeout)):
            raise OSError(f"the command ended with exit code {code}")
        return data

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


def _pause(failures: int) -> float:
    """Seconds before the next try; random by a quarter, so that many readers do not come back as one."""
    if failures == 1:
        return 0.0  # a connection that idled away while training was busy with something else
    return min(2.0 ** (failures - 2), LONGEST_PAUSE) * random.SystemRandom().uniform(0.75, 1.25)


def _plain(error: Exception) -> str:
    """An error's first line; its class where it has none."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
