"""Paths and addresses of files, and of the files beside them."""

import re
from urllib.parse import urlsplit, urlunsplit

SHARD_IN_COMMAND = re.compile(r"[^\s/'\"=]+\.tar\b")


def scheme(address: str) -> str:
    """`http`, `https`, `s3`, `pipe`; any other `scheme://`; empty for a path."""
    if address.startswith("pipe:"):
        return "pipe"
    return address.split("://", 1)[0] if "://" in address else ""


def is_remote(address: str) -> bool:
    return scheme(address) != ""


def file_name(address: str) -> str:
    """The name of the file that is meant, without folder and query."""
    if scheme(address) == "pipe":
        names = SHARD_IN_COMMAND.findall(address)
        return names[-1] if names else ""
    if scheme(address) in ("http", "https"):
        return urlsplit(address).path.rsplit("/", 1)[-1]
    return address.rsplit("/", 1)[-1]


def beside(address: str, name: str) -> str:
    """The address of another file in the same folder: for a command, the same with another file's name."""
    if scheme(address) == "pipe":
        head, _, tail = address.rpartition(file_name(address))
        return head + name + tail
    if scheme(address) in ("http", "https"):
        parts = urlsplit(address)
        return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}"))
    folder, slash, _ = address.rpartition("/")
    return f"{folder}{slash}{name}"
