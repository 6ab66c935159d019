"""The videos of a source, a folder or a list, and a unique key for each."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from data.ingest.frame_folders import find_frame_folders, name_of
from data.ingest.lists import Row, read_list
from data.ingest.rejected import Rejected
from data.ingest.splits import UCF101_NAME, Cut, Video
from data.shards.columns import STRING
from data.shards.format import IMAGE_EXTENSIONS, MAX_JSON_BYTES, MEDIA_EXTENSIONS, VIDEO_EXTENSIONS
from data.shards.keys import UniqueKeys
from data.shards.metadata import CAPTION
from tae.runtime.errors import UserError
from tae.runtime.paths import list_files, to_path
from tae.runtime.scratch import ScratchDict, ScratchList, group_on_disk

BESIDE = "beside"  # captions in a text file of the same name
FRAMES = "frames"  # the dataset whose videos are folders of pictures
ARCHIVES = {".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"}


@dataclass(frozen=True)
class Choice:
    """How a source is read; see conf/prepare.yaml.

    columns, explode: of a list, as `data.ingest.lists.read_list` takes them.
    root:          the folder that a list's relative paths begin at, None for its own.
    captions:      `BESIDE`, or of a list of paths the file with as many lines of captions.
    group_pattern: searched in each path; what its first group in brackets matches, or else the whole of it, is the video's
                   group. A path in which it is not found makes a group of its own.
    """

    columns: Mapping[str, str | None] | None = None
    explode: Sequence[str] = ()
    root: Path | None = None
    captions: str | None = None
    group_pattern: str | None = None


@dataclass(frozen=True)
class Found:
    """The files of a source.

    videos:   the candidates, by name
    rejected: the others, with the reason why they are none
    kinds:    types of the further fields that a list gives
    """

    videos: Sequence[Video]
    rejected: Rejected
    kinds: Mapping[str, str]


def find_videos(
    source: Path,
    dataset: str,
    output: Path | None = None,
    choice: Choice | None = None,
    endings: Callable[[int], Sequence[str]] | None = None,
) -> Found:
    """Find every file of a source.

    Args:
        source: a folder, whose files come sorted; a list (`data.ingest.lists`), whose files come in its order; or a video.
        output: what lies in it is no part of the source.
        endings: what so many parts of a file have behind its key in their own. None: parts cannot be made into clips, and
            a list that asks for them is refused.

    Raises:
        UserError: a list that cannot be read, an archive, or a pattern that cannot be used or is found in no path.
    """
    choice = choice or Choice()
    files, kinds = _files_of(source, dataset, output, choice, cutting=endings is not None)
    naming = _Naming(source, dataset, choice.group_pattern, endings)
    rejected: Rejected = ScratchList()
    videos = ScratchList(_accept(files, dataset, naming, rejected))
    if choice.group_pattern and videos and not naming.matches:
        raise UserError(f"group_pattern={choice.group_pattern} is found in no path, such as {videos[0].path}.")
    if choice.captions == BESIDE:
        videos, rejected, kinds = _with_captions_beside(root_of(source), videos, rejected)
    return Found(videos, rejected, kinds)


def find_media(
    source: Path,
    output: Path | None = None,
    choice: Choice | None = None,
    endings: Callable[[int], Sequence[str]] | None = None,
) -> Found:
    """The videos of a source, or where it holds none its images; arguments and errors as in `find_videos`."""
    found = find_videos(source, "folder", output, choice, endings)
    return found if found.videos else find_videos(source, "images", output, choice, endings)


def _read_caption(path: Path) -> str:
    """The text of a file; "" where it cannot be read, or is longer than metadata may be."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES // 2)
            return "" if file.read(1) else text.decode("utf-8-sig", errors="replace").strip()
    except OSError:
        return ""


SourceFiles = Iterable[tuple[Row, str, tuple[Cut, ...]]]  # with the reason to reject it, or ""


def _accept(files: SourceFiles, dataset: str, naming: "_Naming", rejected: Rejected) -> Iterator[Video]:
    """The files that may be videos; the others are added to `rejected`."""
    for row, reason, cuts in files:
        if reason := reason or _why_not(row.path, dataset):
            rejected.append((row.path, reason))
        else:
            yield naming.video(row, cuts)


class _Naming:
    """Gives each file of a source its key, label and group; counts the paths in which the group's pattern is found."""

    def __init__(
        self, source: Path, dataset: str, group_pattern: str | None, endings: Callable[[int], Sequence[str]] | None
    ) -> None:
        self.source = source
        self.dataset = dataset
        self.pattern = _compile(group_pattern)
        self.endings = endings
        self.keys = UniqueKeys()
        self.matches = 0

    def video(self, row: Row, cuts: tuple[Cut, ...]) -> Video:
        path = name_of(row.path, self.source) if self.dataset == FRAMES else row.path
        folder, stem, suffix = split_path(path)
        endings = self.endings(len(cuts)) if self.endings else ()
        key = self.keys.claim(stem + suffix if self.dataset == FRAMES else stem, endings)
        name = UCF101_NAME.match(stem) if self.dataset == "ucf101" else None
        match = self.pattern.search(row.path) if self.pattern else None
        self.matches += match is not None
        found = match[1 if match.lastindex else 0] if match else name["group"] if name else ""
        label = row.label or folder.rpartition("/")[2] or (name["label"] if name else "")
        return Video(row.path, key, label, row.group or found or key, row.split, row.more or None, cuts)


def _files_of(
    source: Path, dataset: str, output: Path | None, choice: Choice, cutting: bool
) -> tuple[SourceFiles, Mapping[str, str]]:
    _check_use(source, choice)
    if not source.is_file():
        entries = list_files(source, output)
        if dataset == FRAMES:
            return ((row, reason, ()) for row, reason in find_frame_folders(entries)), {}
        return ((Row(entry.path), entry.reason, ()) for entry in entries), {}
    if dataset == FRAMES:
        raise UserError(f"source={source}: dataset={FRAMES} takes a folder, in which are folders of numbered pictures.")
    extension = source.suffix.lower()
    if extension.lstrip(".") in kind_of(dataset)[1]:
        return [(Row(source.name), "", ())], {}
    if extension in ARCHIVES:
        raise UserError(
            f"source={source} is an archive. Unpack it and give its folder; shards of WebDataset are trained on as they are "
            "(python -m data.index)."
        )
    captions = None if choice.captions is None else to_path(choice.captions)
    rows, kinds = read_list(source, choice.columns, choice.explode, captions)
    return _listed(rows if cutting else _whole(rows, source), source, root_of(source, choice.root)), kinds


def _check_use(source: Path, choice: Choice) -> None:
    """Refuse what nothing reads for a source of this kind.

    Raises:
        UserError: something is given for lists and the source is none, or the other way round.
    """
    if source.is_file() and not _is_media(source):
        if choice.captions is not None and (choice.captions == BESIDE or not to_path(choice.captions).is_file()):
            raise UserError(
                f"captions={choice.captions} is no file with captions for the list source={source}. A list of paths needs "
                f"one with as many lines; of a table columns.caption=NAME names them. captions={BESIDE} is for folders."
            )
        return
    renamed = [f"columns.{name}={column}" for name, column in (choice.columns or {}).items() if column != name]
    given = [
        *renamed[:1],
        *([f"explode={','.join(choice.explode)}"] if choice.explode else []),
        *([f"root={choice.root}"] if choice.root is not None else []),
        *([f"captions={choice.captions}"] if choice.captions not in (None, BESIDE) else []),
    ]
    if given:
        kind = "a folder" if source.is_dir() else "a single file"
        raise UserError(
            f"{given[0]} is for lists, and source={source} is {kind}. Leave it out; captions={BESIDE} takes the text files "
            "of the videos' names."
        )


def _is_media(source: Path) -> bool:
    return source.suffix.lower().lstrip(".") in MEDIA_EXTENSIONS


def _with_captions_beside(
    folder: Path, videos: Iterable[Video], rejected: Rejected
) -> tuple[ScratchList[Video], Rejected, Mapping[str, str]]:
    """The videos with what stands in the text files of their names, which are no rejected files then."""
    used: ScratchDict[bool] = ScratchDict()
    captioned: ScratchList[Video] = ScratchList()
    for video in videos:
        beside = str(PurePosixPath(video.path).with_suffix(".txt"))
        if text := _read_caption(folder / beside):
            used[beside] = True
        captioned.append(video._replace(more={CAPTION: text}) if text else video)
    if not any(video.more for video in captioned):
        raise UserError(f"captions={BESIDE}: no video in {folder} has a .txt of its name beside it.")
    return captioned, ScratchList(entry for entry in rejected if not used.get(entry[0])), {CAPTION: STRING}


def kind_of(dataset: str) -> tuple[str, frozenset[str]]:
    """What a dataset is made of, in words, and the extensions of its files."""
    return ("a video", VIDEO_EXTENSIONS) if dataset not in ("images", FRAMES) else ("an image", IMAGE_EXTENSIONS)


def root_of(source: Path, root: Path | None = None) -> Path:
    """What the paths of a source's videos are relative to; `root` as in `Choice`."""
    if source.is_dir():
        return source
    return source.parent if root is None or _is_media(source) else root


def _whole(rows: Iterable[Row], source: Path) -> Iterator[Row]:
    """Rows that are no parts of files.

    Raises:
        UserError: one is.
    """
    for row in rows:
        if row.start is not None or row.end is not None:
            raise UserError(
                f"source={source} has start and end for its videos, and to cut them they must be encoded: reencode=true. "
                "Where they are cut already, columns.start=null columns.end=null keeps both as fields."
            )
        yield row


def _listed(rows: Iterable[Row], source: Path, root: Path) -> SourceFiles:
    """The files of a list; rows of one file that are parts of it make one entry."""
    for numbered in group_on_disk(enumerate(rows, 1), key=lambda numbered: numbered[1].path):
        members = [member for _, member in numbered]
        name = members[0].path
        if not name:
            yield from ((Row(f"row {number} of {source.name}"), "no path", ()) for number, _ in numbered)
            continue
        row = replace(members[0], path=str(to_path(name)))
        if reason := _why_no_file(root / row.path):
            yield row, reason, ()
            continue
        whole = [member for member in members if member.start is None and member.end is None]
        wrong = [member for member in members if member.split != row.split]
        if len(whole) == len(members):
            yield row, "", ()
            yield from ((row, "listed more than once", ()) for _ in members[1:])
        elif whole or wrong:
            yield row, "listed as a whole and in parts" if whole else "its parts are in different splits", ()
        else:
            cuts = tuple(Cut(member.start, member.end, member.label, member.more) for member in members)
            yield replace(row, more={}), "", cuts


def _why_no_file(path: Path) -> str:
    """The reason why a path is no file that can be read; "" if it is one."""
    try:
        return "" if path.is_file() else "not a regular file" if path.exists() else "no such file"
    except OSError as error:  # a folder that may not be looked into; a text that is no path, being too long
        return f"cannot be read: {error.strerror}"


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise UserError(f"group_pattern={pattern} is no regular expression: {error}.") from error


def _why_not(path: str, dataset: str) -> str:
    if dataset == FRAMES:
        return ""
    kind, extensions = kind_of(dataset)
    _, stem, suffix = split_path(path)
    if suffix.lower().lstrip(".") not in extensions:
        return f"not {kind} by its extension ({suffix or 'none'})"
    if dataset == "ucf101" and not UCF101_NAME.match(stem):
        return "not named v_<Class>_gXX_cYY as the clips of UCF-101 are (use dataset=folder for other videos)"
    return ""


def split_path(path: str) -> tuple[str, str, str]:
    """Folder, stem and suffix of a normal path as `PurePosixPath` has them, in a tenth of its time."""
    folder, _, name = path.rpartition("/")
    dot = name.rfind(".")
    return (folder, name[:dot], name[dot:]) if 0 < dot < len(name) - 1 else (folder, name, "")
