"""Patterns of shards to their paths and addresses: braces, globs, lists."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import braceexpand

from data.shards.format import INDEX
from data.storage.address import file_name, is_remote, scheme
from data.storage.remote import Access, glob_s3
from tae.runtime.errors import UserError
from tae.runtime.paths import WILDCARDS, glob_files, to_path


def expand_patterns(patterns: str | Sequence[str], option: str, access: Access) -> list[str]:
    """The shards that patterns stand for, each once, under its first path.

    Raises:
        UserError: a pattern that nothing matches, or that cannot be read.
    """
    return _without_repeats(url for pattern in _as_list(patterns) for url in _expand(pattern, option, access))


def missing_shards(patterns: str | Sequence[str], option: str) -> str | None:
    """What is wrong with patterns of which no local shard is there; None if nothing is, or if they are elsewhere.

    Reads no index: a check of every split before a training has begun.
    """
    try:
        for pattern in _as_list(patterns):
            if scheme(pattern) == "":
                _expand(pattern, option, Access())
    except UserError as error:
        return str(error)
    return None


def _without_repeats(urls: Iterable[str]) -> list[str]:
    """Each shard once, under its first path."""
    first: dict[str, str] = {}
    folders: dict[str, str] = {}
    for url in urls:
        first.setdefault(url if is_remote(url) else _real_path(url, folders), url)
    return list(first.values())


def _real_path(path: str, folders: dict[str, str]) -> str:
    """As `os.path.realpath`, which looks at every folder of a path, for many files of few folders."""
    if os.path.islink(path):  # noqa: PTH114  # a Path for each of many files takes longer than the question
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return f"{folders[folder]}/{name}"


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _expand(pattern: str, option: str, access: Access) -> list[str]:
    """The paths or addresses that a pattern stands for."""
    kind = scheme(pattern)
    if kind not in ("", "http", "https", "s3", "pipe"):
        raise UserError(f"{option}={pattern}: only paths, http(s):// and s3:// addresses can be read.")
    if kind == "pipe" and not access.allow_pipe:
        raise UserError(
            f"{option}={pattern} would run a command. Set data.allow_pipe=true if it comes from you and is meant; else give "
            "paths, http(s):// or s3:// addresses."
        )
    if not kind and to_path(pattern).is_file():  # a name with braces in it
        return [str(to_path(pattern))]
    try:
        urls = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{option}={pattern}: the braces do not pair up.") from error
    found = [match for url in urls for match in _glob(url, option, access)]
    missing = [path for path in found if not is_remote(path) and not os.path.isfile(path)]  # noqa: PTH113
    if missing or not found:
        what = "nothing has such a name"
        if missing:
            what = f"{missing[0]} {'is a folder' if Path(missing[0]).is_dir() else 'does not exist'}"
        raise UserError(
            f"{option}={pattern} matches no shard: {what}{'' if kind else f' (looked for from {Path.cwd()})'}. "
            "Give a brace pattern, a glob, a list or an http(s) or s3 address of .tar files, as `python -m data.prepare` "
            "writes them."
        )
    return found


def _glob(pattern: str, option: str, access: Access) -> list[str]:
    """The sorted files that match; one without wildcards stands for itself, there or not."""
    kind = scheme(pattern)
    if kind == "pipe" and not file_name(pattern):
        raise UserError(
            f"{option}={pattern}: the command does not name a .tar file, beside which its {INDEX} would lie."
        )
    if not kind:
        return glob_files(pattern)
    wildcards = {"http": "*", "https": "*", "pipe": ""}.get(kind, WILDCARDS)
    if not any(character in pattern for character in wildcards):
        return [pattern]
    if kind in ("http", "https"):
        raise UserError(
            f"{option}={pattern}: http servers do not list files. Use braces: shard-{{000000..000007}}.tar."
        )
    try:
        return glob_s3(pattern, access.timeout)
    except UserError:
        raise
    except Exception as error:  # botocore's and aiohttp's errors have no common class
        raise UserError(f"{option}={pattern} cannot be listed: {type(error).__name__}: {error}") from error
