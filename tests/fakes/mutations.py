"""Damage to a folder of shards, as numbered cases, and what a reader makes of it. Runs in worker processes."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

BLOCK = 512  # bytes of a tar header, and what members are padded to
JSON_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "x", "../x", "\x00", [], {}, [[]],
    {"a": {}}, "pipe:x", "shard-000001.tar", "0" * 64,
)  # fmt: skip


def damage(shards: dict[str, bytes], index: bytes, number: int) -> tuple[dict[str, bytes], bytes]:
    """The case of this number: one to three mutations of one shard or of the index."""
    rng = random.Random(number)
    shards = dict(shards)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.35:
            index = mutate_json(index, rng) if rng.random() < 0.7 else mutate_bytes(index, rng)
        else:
            name = rng.choice(sorted(shards))
            mutate = mutate_members if kind < 0.6 else mutate_headers if kind < 0.8 else mutate_bytes
            shards[name] = mutate(shards[name], rng)
    if rng.random() < 0.7:  # an index that fits, so that the damage is not found by the size alone
        index = fit_sizes(index, shards)
    return shards, index


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, insert, repeat or blank a part."""
    changed = bytearray(content)
    start = rng.randrange(len(changed) + 1)
    stop = min(len(changed), start + rng.choice((1, 4, 30, BLOCK, 5000)))
    match rng.randrange(6):
        case 0 | 1:
            for _ in range(rng.choice((1, 3, 30))):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 2:
            del changed[start:]
        case 3:
            del changed[start:stop]
        case 4:
            changed[start:start] = rng.choice((changed[start:stop], rng.randbytes(stop - start), bytes(BLOCK)))
        case 5:
            changed[start:stop] = bytes(stop - start)
    return bytes(changed)


def members_of(content: bytes) -> list[bytes]:
    """Header and content of each member, as they stand in the file."""
    members, offset = [], 0
    while offset + BLOCK <= len(content) and content[offset : offset + 1] != b"\0":
        try:
            size = int(content[offset + 124 : offset + 135].rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        end = offset + BLOCK + -(-size // BLOCK) * BLOCK
        members.append(content[offset:end])
        offset = end
    return members


def mutate_members(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, exchange or empty members."""
    members = members_of(content)
    if not members:
        return content
    place, other = rng.randrange(len(members)), rng.randrange(len(members))
    match rng.randrange(4):
        case 0:
            del members[place]
        case 1:
            members.insert(other, members[place])
        case 2:
            members[place], members[other] = members[other], members[place]
        case 3:
            members[place] = with_header(members[place][:BLOCK], 124, b"00000000000\0")
    return b"".join(members) + bytes(2 * BLOCK)


def mutate_headers(content: bytes, rng: random.Random) -> bytes:
    """Another name, size, type or link in a header whose checksum is right."""
    members = members_of(content)
    if not members:
        return content
    place = rng.randrange(len(members))
    field, values = rng.choice(
        (
            (
                0,
                (
                    b"../evil.mp4\0",
                    b"/evil.mp4\0",
                    b"\xff\xfe.mp4\0",
                    b"\0",
                    b"clip0.mp4\0",
                    b"clip1.json\0",
                    b"a" * 100,
                ),
            ),
            (124, (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0", b"00000000001\0", b"xyz")),
            (156, (b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"V", b"\0", b"Z")),
            (157, (b"/etc/passwd\0", b"../..\0", b"clip0.mp4\0")),
            (257, (b"\0" * 8, b"ustar  \0", b"ustar\x0000")),
            (345, (b"../../\0", b"x" * 155)),
        )
    )
    members[place] = with_header(members[place], field, rng.choice(values))
    return b"".join(members) + bytes(2 * BLOCK)


def with_header(member: bytes, field: int, value: bytes) -> bytes:
    """Write a value into a header and correct its checksum."""
    header = bytearray(member[:BLOCK])
    header[field : field + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + member[BLOCK:]


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """Another value, a missing or a repeated entry anywhere in the tree."""
    try:
        root = json.loads(text)
    except ValueError:
        return text
    places: list[tuple[Any, Any]] = []
    nodes = [root]
    while nodes:
        node = nodes.pop()
        children = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        places += [(node, key) for key, _ in children]
        nodes += [child for _, child in children if isinstance(child, dict | list)]
    if not places:
        return text
    node, key = rng.choice(places)
    match rng.randrange(4):
        case 0 | 1:
            node[key] = rng.choice(JSON_VALUES)
        case 2:
            del node[key]
        case 3 if isinstance(node, dict):
            node[rng.choice(("", "x", "../x", "clip0", "a.b", key + "x"))] = node[key]
        case _:
            node.append(node[key]) if isinstance(node, list) else node.clear()
    return json.dumps(root).encode()


def fit_sizes(index: bytes, shards: dict[str, bytes]) -> bytes:
    try:
        root = json.loads(index)
        for entry in root["shards"]:
            if type(entry["bytes"]) is int:
                entry["bytes"] = len(shards[entry["name"]])
        return json.dumps(root).encode()
    except (ValueError, KeyError, TypeError):
        return index


def read(shards: dict[str, bytes], index: bytes, number: int, num_workers: int) -> str:
    """What becomes of a case: `refused`, `skipped` (and counted) or `unharmed`; everything else is raised."""
    from data.datamodule import ClipDataModule
    from tae.runtime.errors import UserError

    shards, index = damage(shards, index, number)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard, content in shards.items():
            (folder / shard).write_bytes(content)
        (folder / "index.json").write_bytes(index)
        module = ClipDataModule(
            {"test": f"{folder}/shard-*.tar"}, num_frames=3, frame_stride=1, resolution=8, batch_size=4,
            num_workers=num_workers, short_clip="repeat_last", max_skipped=1.0, shuffle_buffer=4, seed=0,
            output_dir=folder / "output", decode_timeout=10.0, read_tries=1,
        )  # fmt: skip
        try:
            loader = module.eval_dataloader("test")
        except UserError as error:
            if not str(error).startswith("data.shards.test"):
                raise AssertionError(f"not clear: {error}") from error
            return "refused"
        given = sum(len(batch["keys"]) for batch in loader)
        if given + len(loader.skipped) != len(loader.clips):
            raise AssertionError(f"{given} given, {len(loader.skipped)} skipped of {len(loader.clips)}")
        if {path.name for path in folder.iterdir()} - shards.keys() - {"index.json", "output"}:
            raise AssertionError("something was written")
        return "skipped" if loader.skipped else "unharmed"
