"""Checks of a composed config: every key is known, every value has its type, range and choice; all findings in one message.

What a node may hold is declared once, where it is used: by the signature of its `_target_`, or, for a node without one, by
the annotations of a `Section` (`tae.runtime.settings` has one for each command). Ranges and choices are part of the
annotation: `Annotated[int, Ge(1)]`, `Literal["frame", "clip"]`. YAML files stay plain.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from tae.runtime.annotations import (
    Field,
    Fields,
    Section,
    annotation_of_each,
    converted,
    fields_of,
    is_built,
    is_imported_late,
    shown,
)
from tae.runtime.errors import UserError, first_line

DIRECTIVES = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}  # Hydra's
SHOWN_NAMES = 24


def check_config(
    cfg: DictConfig, section: type[Section], conflicts: Sequence[Callable[[DictConfig], str | None]] = ()
) -> None:
    """Refuse a config with anything that is wrong in it, all of it at once. Words for switches become true and false in it.

    Args:
        cfg: a command's composed config.
        section: what it may hold.
        conflicts: checks of settings that are each allowed, and do not fit together or this machine; each gives its finding.

    Raises:
        UserError: with one line for each finding.
    """
    check_keys(cfg, section)
    findings = Walk(cfg, values=True).run(Fields.of_section(section))
    for conflict in conflicts:
        try:
            finding = conflict(cfg)
        except Exception:
            if not findings:
                raise
            continue  # it needs a value that was found to be wrong already
        findings += [] if finding is None else [finding]
    refuse(findings)


def check_keys(cfg: DictConfig, section: type[Section]) -> None:
    """Refuse unknown keys and missing values where no `_target_` has to be imported to know them: in milliseconds.

    Raises:
        UserError: with one line for each.
    """
    refuse(Walk(cfg, values=False).run(Fields.of_section(section)))


def refuse(findings: Sequence[str]) -> None:
    if findings:
        raise UserError("\n".join(dict.fromkeys(findings)))


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the annotations of `function` do not allow; for constructors that are called from Python too.

    A default needs no check, so that constants of a module cost no import of pydantic.

    Raises:
        UserError: with one line for each, under the argument's own name.
    """
    known = Fields.of_call(function).known
    given = {name: value for name, value in arguments.items() if name in known and value is not known[name].default}
    found = [converted(name, value, known[name].annotation)[1] for name, value in given.items()]
    refuse([finding for finding in found if finding is not None])


@dataclass
class Walk:
    """One pass over a config.

    Args:
        values: look at types and ranges too, and into nodes with a `_target_`, which is imported for it.
    """

    cfg: DictConfig
    values: bool
    findings: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)  # values, as they are shown
    echoes: dict[str, str] = field(default_factory=dict)  # findings about an interpolation, with the value

    def run(self, fields: Fields) -> list[str]:
        """Every finding; a value that is wrong where it was given is not reported again where it is interpolated."""
        self.visit(self.cfg, fields, "")
        return self.findings + [finding for finding, value in self.echoes.items() if value not in self.wrong]

    def visit(self, node: DictConfig, fields: Fields, prefix: str) -> None:
        """Check a node's keys and what is below them."""
        for name in map(str, node):
            known = fields.known.get(name, fields.others)
            if name not in DIRECTIVES or not prefix:
                self.visit_key(node, name, known, list(fields.known), prefix)
        present = {str(name) for name in node}
        for name, known in fields.known.items():
            if known.required and name not in present:
                self.findings.append(f"{prefix}{name} is missing: give {prefix}{name}=VALUE.")

    def visit_key(self, node: DictConfig, name: str, known: Field | None, names: list[str], prefix: str) -> None:
        key = f"{prefix}{name}"
        if known is None:
            self.findings.append(f"{key} is unknown. {suggestion(key, [prefix + other for other in names], self.cfg)}")
        elif OmegaConf.is_missing(node, name):
            self.findings.append(f"{key} has no default: give {key}=VALUE on the command line.")
        else:
            try:
                value = node[name]
            except OmegaConfBaseException as error:
                self.findings.append(f"{key} cannot be resolved: {first_line(error)}")
                return
            self.visit_value(node, name, value, known.annotation, key, [prefix + other for other in names])

    def visit_value(self, node: Any, name: Any, value: Any, annotation: Any, key: str, names: list[str]) -> None:
        if isinstance(value, DictConfig) and value._is_none():
            value = None
        if isinstance(value, DictConfig) and "_target_" in value:
            if self.values:
                self.visit_target(value, key)
        elif isinstance(value, DictConfig) and not self.values and is_imported_late(annotation):
            return
        elif isinstance(value, DictConfig) and (fields := fields_of(annotation)) is not None:
            self.visit(value, fields, f"{key}.")
        elif isinstance(value, DictConfig) and (each := annotation_of_each(annotation)) is not None:
            for child in map(str, value):
                self.visit_value(
                    value, child, value[child], each | None, f"{key}.{child}", [f"{key}.{n}" for n in map(str, value)]
                )
        elif isinstance(value, DictConfig) and is_built(annotation):
            others = [other for other in names if other != key]
            self.findings.append(
                f"{key} is no _target_ to build, so nothing reads it. {suggestion(key, others, self.cfg)}"
            )
        elif isinstance(value, ListConfig) and any(isinstance(child, DictConfig) for child in value):
            for number, child in enumerate(value):
                self.visit_value(value, number, child, Any, f"{key}[{number}]", [])
        elif self.values:
            self.check_value(node, name, value, annotation, key)

    def visit_target(self, node: DictConfig, key: str) -> None:
        """Check a node against the signature of what it builds."""
        from hydra.utils import get_object

        try:
            function = get_object(node["_target_"])
            fields = Fields.of_call(function, partial=bool(node.get("_partial_")) or "_args_" in node)
        except Exception as error:  # whatever the import of a user's module raises
            self.findings.append(f"{key}._target_={node.get('_target_')} cannot be used: {first_line(error)}")
            return
        self.visit(node, fields, f"{key}.")

    def check_value(self, node: Any, name: Any, value: Any, annotation: Any, key: str) -> None:
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        allowed, finding = converted(key, plain, annotation)
        if finding is not None and OmegaConf.is_interpolation(node, name):
            self.echoes[finding] = shown(plain)
        elif finding is not None:
            self.findings.append(finding)
            self.wrong.add(shown(plain))
        elif type(allowed) is not type(value) and isinstance(allowed, bool | str):
            with read_write(node), open_dict(node):
                node[name] = allowed


def suggestion(key: str, names: Sequence[str], cfg: DictConfig) -> str:
    """The nearest known key: a sibling, or one of this name elsewhere; else all siblings."""
    name = key.rpartition(".")[2]
    siblings = {other.rpartition(".")[2]: other for other in names}
    elsewhere = [other for other in keys_of(cfg) if other.endswith(f".{name}") and other != key]
    if near := get_close_matches(name, siblings, n=1):
        return f"Did you mean {siblings[near[0]]}?"
    if elsewhere:
        return f"Did you mean {elsewhere[0]}?"
    shown_names = sorted(siblings)[:SHOWN_NAMES]
    return f"Known are: {', '.join(shown_names)}{', ...' if len(siblings) > SHOWN_NAMES else ''}." if names else ""


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """`a.b` for every key of a nested config."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for name in map(str, node):
            yield f"{prefix}{name}"
            yield from keys_of(node._get_node(name), f"{prefix}{name}.")
