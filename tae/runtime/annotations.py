"""What a setting may be, by its annotation: the settings below it, the value as its type, the words for what is allowed.

Ranges and choices are part of an annotation: `Annotated[int, Ge(1)]`, `Literal["frame", "clip"]`. A node without `_target_`
has the annotations of a `Section`, one with it those of the signature.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from annotated_types import Ge, Gt, Le, Lt

AtLeastOne = Annotated[int, Ge(1)]
NotNegative = Annotated[int, Ge(0)]
Pixels = Annotated[int, Ge(8)]  # of the side of a clip
AboveZero = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]

SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's words
CONTAINER_TYPES = (list, tuple, dict, Sequence, Mapping, Iterable)


class Section:
    """The settings of a node without `_target_`: annotated names; those with a value may be left out."""


class Built:
    """A node with `_target_`: of a group, or one that the user wrote."""


@dataclass(frozen=True)
class ArgumentsOf:
    """Annotation of a mapping, or of `**arguments`, that goes to `function` as keyword arguments.

    Args:
        function: itself, or the dotted name of what is not to be imported before values are checked.
        optional: null is allowed for each.
    """

    function: Callable[..., Any] | str
    optional: bool = False

    def fields(self) -> "Fields":
        from hydra.utils import get_object

        function = get_object(self.function) if isinstance(self.function, str) else self.function
        fields = Fields.of_call(function, partial=True)
        if not self.optional:
            return fields
        return Fields({name: Field(Union[known.annotation, None]) for name, known in fields.known.items()})  # noqa: UP007


@dataclass(frozen=True)
class Field:
    """What a setting may be. `Any` allows everything."""

    annotation: Any
    required: bool = False
    default: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Fields:
    """The settings of a node; `others` are allowed names that are not listed, None where there are none."""

    known: dict[str, Field]
    others: Field | None = None

    @classmethod
    def of_section(cls, section: type) -> "Fields":
        """From the annotations of a `Section` or a TypedDict."""
        hints = get_type_hints(section, include_extras=True)
        required = getattr(section, "__required_keys__", {name for name in hints if not hasattr(section, name)})
        return cls({name: Field(hint, name in required) for name, hint in hints.items()})

    @classmethod
    def of_call(cls, function: Callable[..., Any], partial: bool = False) -> "Fields":
        """From a signature; `partial` calls get what is required from the program."""
        hints, others = hints_of(function), None
        known: dict[str, Field] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            hint = hints.get(name, Any)
            if parameter.kind is parameter.VAR_KEYWORD:
                below = fields_of(hint)
                known |= {} if below is None else {name: Field(other.annotation) for name, other in below.known.items()}
                others = Field(hint) if below is None else None
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                required = parameter.default is parameter.empty and not partial
                known[name] = Field(hint, required, parameter.default)
        return cls(known, others)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a call's arguments; none where a library's cannot be looked up."""
    called: Any = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        return get_type_hints(called, include_extras=True)
    except Exception:  # names that exist for type checkers alone
        return {}


def fields_of(annotation: Any) -> Fields | None:
    """The settings below a key with this annotation, where it names them."""
    for member in members(annotation):
        if is_typeddict(member) or (inspect.isclass(member) and issubclass(member, Section)):
            return Fields.of_section(member)
    mark = arguments_of(annotation)
    return None if mark is None else mark.fields()


def arguments_of(annotation: Any) -> ArgumentsOf | None:
    """The mark of a mapping that becomes arguments, also of one in a union."""
    marks = getattr(annotation, "__metadata__", ())
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    found = (mark for mark in (*marks, *map(arguments_of, parts)) if isinstance(mark, ArgumentsOf))
    return next(found, None)


def is_imported_late(annotation: Any) -> bool:
    mark = arguments_of(annotation)
    return mark is not None and isinstance(mark.function, str)


def is_built(annotation: Any) -> bool:
    """Whether a mapping without `_target_` cannot be the value: an object is wanted."""
    kinds = [get_origin(member) or member for member in members(annotation)]
    plain = (Any, str, int, float, bool, type(None), *CONTAINER_TYPES)
    return any(inspect.isclass(kind) and kind not in plain for kind in kinds) and not {dict, Mapping} & set(kinds)


def annotation_of_each(annotation: Any) -> Any:
    """What a mapping of names to built nodes, or to nodes with known settings, has for each name; else None."""
    of_names = (get_args(member)[1] for member in members(annotation) if len(get_args(member)) == 2)
    return next((each for each in of_names if each is Built or fields_of(each) is not None), None)


def members(annotation: Any) -> list[Any]:
    """What a union is of; of anything else itself."""
    return [part for part, _ in parts_of(annotation)]


def converted(key: str, value: Any, annotation: Any) -> tuple[Any, str | None]:
    """(the value as its type, None), or (the value, what is wrong with it)."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value, None
    adapter = adapter_of(annotation)
    if adapter is None:
        return value, None
    from pydantic import ValidationError

    try:
        return adapter.validate_python(value), None
    except ValidationError:
        return value, f"{key}={shown(value)} is not allowed: give {described(annotation)}."
    except TypeError:  # a class that refuses to be asked about instances
        return value, None


def adapter_of(annotation: Any) -> Any:
    """pydantic's reader of an annotation, None for those that it has no word for."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError

    config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True, allow_inf_nan=False)
    try:
        return TypeAdapter(strict(annotation), config=config)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError, TypeError):
        return None


def strict(annotation: Any) -> Any:
    """The annotation with numbers and switches taken at their word: "3" is no number, and 1 is no switch."""
    from pydantic import BeforeValidator, Strict

    if annotation is bool:
        return Annotated[bool, Strict(), BeforeValidator(as_switch)]
    if annotation in (int, float):
        return Annotated[annotation, Strict()]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kept = [mark for mark in parts[1:] if not isinstance(mark, ArgumentsOf)]
        return Annotated[(strict(parts[0]), *kept)] if kept else strict(parts[0])  # type: ignore[return-value]
    if origin in (Union, UnionType):
        return Union[tuple(strict(part) for part in parts if part is not Built)]  # noqa: UP007  (of a computed tuple)
    if origin in CONTAINER_TYPES:
        return origin[tuple(strict(part) for part in parts)]
    return annotation


def as_switch(value: Any) -> Any:
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def described(annotation: Any) -> str:
    """What an annotation allows, in words."""
    words, choices, classes = [], [], []
    for part, marks in parts_of(annotation):
        kind = get_origin(part) or part
        if kind is Literal:
            choices += [shown(choice) for choice in get_args(part)]
        elif kind is bool:
            words += ["true", "false"]
        elif kind in NAMES:
            words.append(NAMES[kind] + in_range(marks))
        elif kind in CONTAINER_TYPES:
            words.append(f"a list (of {described(get_args(part)[0])})" if len(get_args(part)) == 1 else "a list")
        else:
            classes.append(f"a {getattr(kind, '__name__', kind)}")
    if choices:
        words = [*dict.fromkeys(choices), *words]
    *others, last = dict.fromkeys(words or classes)
    return f"{', '.join(others)} or {last}" if others else last


def parts_of(annotation: Any, marks: Sequence[Any] = ()) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The members of a union with what each is annotated with; null comes last."""
    if get_origin(annotation) is Annotated:
        yield from parts_of(get_args(annotation)[0], get_args(annotation)[1:])
    elif get_origin(annotation) in (Union, UnionType):
        for part in sorted(get_args(annotation), key=lambda part: part is type(None)):
            yield from parts_of(part, marks)
    else:
        yield annotation, marks


NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", type(None): "null", None: "null",
    dict: "a mapping", Mapping: "a mapping",
}  # fmt: skip


def in_range(marks: Iterable[Any]) -> str:
    """The limits of a number in words."""
    words = ((Ge, "at least", "ge"), (Gt, "greater than", "gt"), (Le, "at most", "le"), (Lt, "less than", "lt"))
    limits = [f"{word} {getattr(mark, name)}" for mark in marks for kind, word, name in words if isinstance(mark, kind)]
    return f", {' and '.join(limits)}" if limits else ""


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
