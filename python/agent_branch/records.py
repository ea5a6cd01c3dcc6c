"""Classes of plain values: what dataclasses makes of them, but made in a fraction of the time.

Each session of the server that compares branches imports its modules anew, and dataclasses takes
longer for that, with what it imports itself and the methods that it compiles for every class, than
many a comparison.  Here methods are shared, and ``__init__`` is compiled when the first instance
is made.  Only what this package uses is there: slots always; ``frozen``; ``field`` with a default,
a factory, and ``compare``.  Type checkers see dataclasses.
"""

from __future__ import annotations

from operator import attrgetter

from agent_branch.hints import TYPE_CHECKING, Any

MISSING: Any = object()


class _Field:
    # Some are what dataclasses.replace() looks at.
    __slots__ = ("_field_type", "compare", "default", "default_factory", "init", "name")

    def __init__(self, default: Any, default_factory: Any, compare: bool) -> None:
        self.name = ""
        self.default = default
        self.default_factory = default_factory
        self.compare = compare
        self.init = True
        self._field_type = None


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    def field(*, default=MISSING, default_factory=MISSING, compare=True):
        return _Field(default, default_factory, compare)

    def dataclass(*, frozen=False, slots=True):
        assert slots
        return lambda cls: _made(cls, frozen)

    def replace(instance, /, **changes):
        for name in instance.__dataclass_fields__:
            changes.setdefault(name, getattr(instance, name))
        return instance.__class__(**changes)


def _made(cls: type, frozen: bool) -> type:
    """The class again, with slots and methods."""
    fields = {}
    for name in cls.__dict__.get("__annotations__", ()):  # noqa: RUF063
        given = cls.__dict__.get(name, MISSING)
        one = given if isinstance(given, _Field) else _Field(given, MISSING, True)
        one.name = name
        fields[name] = one
    left_out = {"__dict__", "__weakref__", *fields}
    body = {name: value for name, value in cls.__dict__.items() if name not in left_out}
    key = attrgetter(*(name for name, one in fields.items() if one.compare))
    body.update(
        __slots__=tuple(fields),
        __match_args__=tuple(fields),
        __dataclass_fields__=fields,
        __eq__=_equality(key),
        __hash__=_hash(key) if frozen else None,
    )
    body.setdefault("__repr__", _repr)
    if frozen:
        body.update(__setattr__=_refuse, __delattr__=_refuse)

    def first_init(self: Any, *values: Any, **named: Any) -> None:
        init = _init(made)
        made.__init__ = init  # type: ignore[misc]
        init(self, *values, **named)

    body["__init__"] = first_init
    made = type(cls)(cls.__name__, cls.__bases__, body)
    return made


def _equality(key: Any) -> Any:
    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        if other.__class__ is not self.__class__:
            return NotImplemented
        same: bool = key(self) == key(other)
        return same

    return __eq__


def _hash(key: Any) -> Any:
    return lambda self: hash(key(self))


def _repr(self: Any) -> str:
    values = (f"{name}={getattr(self, name)!r}" for name in self.__slots__)
    return f"{self.__class__.__qualname__}({', '.join(values)})"


def _refuse(self: Any, name: str, *_: object) -> None:
    raise AttributeError(f"cannot change field {name!r}")


def _init(cls: Any) -> Any:
    """Its ``__init__``; values are set past ``__setattr__``, which may refuse."""
    parameters, lines = ["self"], []
    known: dict[str, Any] = {"MISSING": MISSING}
    for name, one in cls.__dataclass_fields__.items():
        known[f"set_{name}"] = cls.__dict__[name].__set__
        value = name
        if one.default_factory is not MISSING:
            known[f"make_{name}"] = one.default_factory
            parameters.append(f"{name}=MISSING")
            value = f"make_{name}() if {name} is MISSING else {name}"
        elif one.default is not MISSING:
            known[f"default_{name}"] = one.default
            parameters.append(f"{name}=default_{name}")
        else:
            parameters.append(name)
        lines.append(f" set_{name}(self, {value})")
    # The text is made of names of fields alone.
    exec("\n".join([f"def __init__({', '.join(parameters)}):", *lines]), known)  # noqa: S102
    return known["__init__"]
