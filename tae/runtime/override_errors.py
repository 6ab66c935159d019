"""What a refusal of Hydra's means for the command line, and what to write in its place."""

import re
import shlex
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, open_dict

from tae.runtime.errors import first_line
from tae.runtime.schema import suggestion

PLAIN = re.compile(r"(?P<key>[\w.@/]+)=(?P<value>.*)", re.DOTALL)


def explain(error: HydraException, config_folder: str, config_name: str, arguments: Sequence[str]) -> str:
    """One message for an exception that Hydra raised while it read `arguments` or composed the config."""
    if isinstance(error, OverrideParseException):
        return quoting(error.override) or str(error)
    if isinstance(error, ConfigCompositionException):
        overrides = [argument for argument in arguments if PLAIN.fullmatch(argument)]
        unknown = unknown_keys(error, config_folder, config_name, overrides)
        if unknown:
            return "\n".join(unknown)
    cause = first_line(error.__cause__) if error.__cause__ is not None else ""
    return "\n".join(line for line in (str(error).rstrip(), cause) if line)


def quoting(override: str) -> str | None:
    """The way to write an override with brackets, commas or spaces in it, where it can be written."""
    parts = re.fullmatch(r"(?P<key>[+~]*[\w.@/]+)=(?P<value>.*)", override, re.DOTALL)
    if parts is None:
        return None
    escaped = re.sub(r'(\\*)(")', r"\1\1\\\2", parts["value"])
    quoted = f'{parts["key"]}="{escaped}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except OverrideParseException:
        return None
    return (
        f"{override}: Hydra takes brackets, commas, quotes and equals signs for its own, unless the value is quoted for it "
        f"too. In a shell: {shlex.quote(quoted)}"
    )


def unknown_keys(error: HydraException, config_folder: str, config_name: str, overrides: Sequence[str]) -> list[str]:
    """A line with the nearest known key for each override of an unknown key, the first of which `error` is about."""
    kept, lines = list(overrides), []
    with initialize_config_dir(config_folder, version_base="1.3"):
        while True:
            wrong = next((override for override in kept if is_about(error, override)), None)
            if wrong is None:
                return []
            kept.remove(wrong)
            lines.append(wrong)
            try:
                cfg = compose(config_name, overrides=kept, return_hydra_config=True)
                break
            except HydraException as another:
                error = another
    groups = [str(name) for name in cfg.hydra.runtime.choices if "/" not in str(name)]  # also those that hold nothing
    with open_dict(cfg):
        del cfg["hydra"]
    return [about(override.partition("=")[0], override, cfg, groups) for override in lines]


def is_about(error: HydraException, override: str) -> bool:
    return f"Could not override '{override.partition('=')[0]}'" in str(error)


def about(key: str, override: str, cfg: DictConfig, groups: Sequence[str]) -> str:
    """A key that is not in the config: the nearest one, or the way to add an argument that the config does not list."""
    parent, _, _ = key.rpartition(".")
    node, top = cfg, list(dict.fromkeys([*map(str, cfg), *groups]))
    for name in parent.split(".") if parent else ():
        node = node.get(name) if isinstance(node, DictConfig) else None
        if not isinstance(node, DictConfig):
            return f"{key} is unknown. {suggestion(key, top, cfg)}"
    names = [f"{parent}.{name}" for name in map(str, node)] if parent else top
    text = f"{key} is unknown. {suggestion(key, names, cfg)}"
    if "_target_" in node:
        text += f" Another argument of {node['_target_']} is given as +{override}"
    return text
