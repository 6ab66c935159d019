"""Checks of composed configs: unknown keys, types, ranges, choices, switches, signatures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tae import TemporalAutoencoder, UserError
from tae.runtime.annotations import ArgumentsOf, AtLeastOne, Built, Section
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.schema import check_arguments, check_config, check_keys
from tae.runtime.settings import COMMAND_SETTINGS


class Inner(Section):
    clips: Annotated[int, Ge(0), Le(9)]


class Shape:
    """Stands for a user's class."""

    def __init__(self, width: AtLeastOne, flags: Sequence[str] = (), quick: bool = False, depth: float | None = None):
        pass


class Settings(Section):
    thing: Built
    named: Mapping[str, Annotated[Mapping[str, Any] | None, ArgumentsOf(Shape)]] | None = None
    others: Mapping[str, Built] | None = None
    inner: Inner
    size: AtLeastOne | None
    rate: float
    name: str
    mode: Literal["a", "b"]
    switch: bool
    maybe: bool | None = None


def open_shape(width: int, **others: Any) -> None:
    pass


def passing_on(name: str, **shape: Annotated[Any, ArgumentsOf(Shape)]) -> None:
    pass


HERE = f"{__name__}."
FINE: dict[str, Any] = {
    "thing": {"_target_": f"{HERE}Shape", "width": 3},
    "inner": {"clips": 2},
    "size": None,
    "rate": 1,
    "name": "x",
    "mode": "a",
    "switch": True,
}


def config(**changes: Any) -> DictConfig:
    return OmegaConf.merge(FINE, changes)


def refusal(cfg: DictConfig, check: Callable[..., None] = check_config) -> list[str]:
    with pytest.raises(UserError) as caught:
        check(cfg, Settings)
    return str(caught.value).splitlines()


def test_what_is_right_passes_unchanged() -> None:
    others = {"one": {"_target_": f"{HERE}open_shape", "width": 1, "anything": 2}, "none": None}
    cfg = config(others=others, named={"a": {"width": 3}, "b": None})
    before = OmegaConf.to_container(cfg)
    check_config(cfg, Settings)
    assert OmegaConf.to_container(cfg) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nmae": "y"}, "nmae is unknown. Did you mean name?"),
        ({"clips": 3}, "clips is unknown. Did you mean inner.clips?"),
        ({"inner": {"klips": 3}}, "inner.klips is unknown. Did you mean inner.clips?"),
        ({"others": {"thign": {"width": 3}}}, "others.thign is no _target_ to build, so nothing reads it. "),
        ({"thing": {"widht": 3}}, "thing.widht is unknown. Did you mean thing.width?"),
        (
            {"thing": {"_target_": f"{HERE}passing_on", "name": "n", "quik": True}},
            "thing.quik is unknown. Did you mean thing.quick?",
        ),
        ({"thing": {"width": 0}}, "thing.width=0 is not allowed: give a whole number, at least 1."),
        ({"thing": {"width": "3"}}, "thing.width=3 is not allowed: give a whole number, at least 1."),
        ({"thing": {"depth": "deep"}}, "thing.depth=deep is not allowed: give a number or null."),
        ({"thing": {"flags": 3}}, "thing.flags=3 is not allowed: give a list (of a text)."),
        ({"thing": {"quick": 1}}, "thing.quick=1 is not allowed: give true or false."),
        ({"named": {"a": {"widht": 3}}}, "named.a.widht is unknown. Did you mean named.a.width?"),
        ({"named": {"a": {"width": 0}}}, "named.a.width=0 is not allowed: give a whole number, at least 1."),
        ({"named": {"a": 3}}, "named.a=3 is not allowed: give a mapping or null."),
        ({"thing": {"_target_": f"{HERE}Nothing"}}, f"thing._target_={HERE}Nothing cannot be used: "),
        ({"size": True}, "size=true is not allowed: give a whole number, at least 1 or null."),
        ({"size": 1.5}, "size=1.5 is not allowed: give a whole number, at least 1 or null."),
        ({"rate": float("nan")}, "rate=nan is not allowed: give a number."),
        ({"mode": "c"}, "mode=c is not allowed: give a or b."),
        ({"inner": {"clips": 10}}, "inner.clips=10 is not allowed: give a whole number, at least 0 and at most 9."),
        ({"switch": "nope"}, "switch=nope is not allowed: give true or false."),
        ({"name": "${nowhere}"}, "name cannot be resolved: Interpolation key 'nowhere' not found"),
        ({"name": "???"}, "name has no default: give name=VALUE on the command line."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(changes: dict[str, Any], told: str) -> None:
    cfg = OmegaConf.create(FINE)
    for key, value in changes.items():
        node = OmegaConf.merge(cfg[key], value) if isinstance(value, dict) and key in cfg else value
        cfg[key] = node
    lines = refusal(cfg)
    assert any(line.startswith(told) for line in lines), lines
    assert "_target_" in told or len(lines) == 1


def test_everything_that_is_wrong_is_said_in_one_message() -> None:
    """A wrong value once, though it is interpolated elsewhere; a check across wrong settings is left out."""
    cfg = config(size=0, mode="c", rate="${mode}", thing={"quick": "perhaps"})

    def conflict(given: DictConfig) -> str | None:
        return "too large" if given.size + given.mode > 3 else None

    with pytest.raises(UserError) as caught:
        check_config(cfg, Settings, [conflict, lambda given: "unlucky"])
    keys = [line.split("=")[0] for line in str(caught.value).splitlines()]
    assert keys == ["thing.quick", "size", "mode", "unlucky"]


def test_a_check_that_fails_by_itself_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        check_config(config(), Settings, [lambda given: 1 / 0])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("word", "meaning"),
    [("yes", True), ("no", False), ("on", True), ("off", False), ("True", True), ("FALSE", False), (False, False)],
)
def test_words_of_yaml_are_switches(word: object, meaning: bool) -> None:
    cfg = config(switch=word, maybe=word, thing={"quick": word}, name=5)
    check_config(cfg, Settings)
    assert (cfg.switch, cfg.maybe, cfg.thing.quick, cfg.name) == (meaning, meaning, meaning, "5")


def test_keys_are_checked_without_importing_what_is_built() -> None:
    cfg = config(thing={"_target_": "no.such.module"}, nmae=1)
    assert refusal(cfg, check_keys) == ["nmae is unknown. Did you mean name?"]


def test_what_is_left_out_is_missing() -> None:
    cfg = config()
    del cfg["thing"], cfg["mode"]
    assert [line.split()[0] for line in refusal(cfg)] == ["thing", "mode"]
    cfg = config(thing={"_partial_": True})
    del cfg.thing["width"]
    check_config(cfg, Settings)


def test_a_constructor_names_its_own_arguments() -> None:
    with pytest.raises(UserError) as caught:
        check_arguments(Shape, {"self": 1, "width": 0, "flags": (), "quick": 2})
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == ["width", "quick"]


@pytest.mark.parametrize("command", COMMAND_SETTINGS)
def test_every_command_accepts_its_own_defaults(command: str) -> None:
    required = {
        "prepare": ["source=x"],
        "verify": ["shards=x"],
        "index": ["shards=x"],
        "inspect": ["shards=x"],
        "encode": ["source=x"],
        "reconstruct": ["source=x"],
        "export": ["output=x"],
        "pca": ["output=x"],
        "train": ["output_dir=x", "logger=[csv,tensorboard,wandb]", "strategy=ddp", "scheduler=one_cycle"],
        "evaluate": ["output_dir=x"],
    }
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose(command, overrides=required.get(command, []))
    check_config(cfg, COMMAND_SETTINGS[command])


def test_the_models_settings_are_the_constructors() -> None:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose(
            "train", overrides=["+model.base_chanels=8", "output_dir=x", "data.allow_pipe=no", "optimizer.fused=off"]
        )
    with pytest.raises(UserError, match=r"^model\.base_chanels is unknown\. Did you mean model\.base_channels\?$"):
        check_config(cfg, COMMAND_SETTINGS["train"])
    assert cfg.data.allow_pipe is False
    assert cfg.optimizer.fused is False
    assert set(cfg.model) - {"base_chanels"} >= set(TemporalAutoencoder().architecture)
