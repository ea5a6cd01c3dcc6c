"""Names for annotations, which nobody looks up when the program runs.

The modules that they come from take longer to import than many a comparison takes, and each
session of the server that compares branches imports them anew: so here are only stand-ins.
Type checkers see the real ones.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable as Callable
    from collections.abc import Collection as Collection
    from collections.abc import Iterable as Iterable
    from collections.abc import Iterator as Iterator
    from collections.abc import Mapping as Mapping
    from collections.abc import Sequence as Sequence
    from types import TracebackType as TracebackType
    from typing import IO as IO
    from typing import Any as Any
    from typing import Literal as Literal
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import TypeVar as TypeVar
else:

    class Protocol:
        """A class that others have the methods of; ``[]`` makes no other class of it."""

        __slots__ = ()

        def __class_getitem__(cls, _):
            return cls

    IO = Any = Callable = Collection = Iterable = Iterator = Mapping = Sequence = Protocol
    TracebackType = Literal = NoReturn = Protocol

    def TypeVar(name):  # noqa: N802
        return name
