"""JSON as the server writes it, read and written without importing what the module json needs.

Importing that takes longer than many a comparison, for patterns of texts that only its parser in
Python uses; the one in C is there in every CPython, and where it is not, json does it all.
"""

from __future__ import annotations

from agent_branch.hints import Any, Callable


class _Plainly:
    """How values are made: as by json.loads()."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _scanner() -> Any:
    try:
        import _json
    except ImportError:
        import json

        return json.JSONDecoder().raw_decode
    make: Any = _json.make_scanner
    return make(_Plainly)


_scan = _scanner()


def parsed(text: str) -> Any:
    """The value that is a text, as jsonb and json_build_object write it: no blanks around it.

    Raises ``ValueError`` for another text.
    """
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        end = -1
    if end != len(text):
        raise ValueError(f"not JSON: {text[:100]!r}")
    return value


def _writer(item: str, key: str) -> Callable[[Any], str]:
    """``item``, ``key``: what parts items, and keys from values."""
    try:
        from _json import encode_basestring, make_encoder
    except ImportError:
        import json

        return json.JSONEncoder(ensure_ascii=False, separators=(item, key)).encode
    encode = make_encoder(None, _refuse, encode_basestring, None, key, item, False, False, True)
    return lambda value: "".join(encode(value, 0))


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is no value of JSON")


# The text of a value: as json.dumps() makes it, other letters than English ones as they are; and
# without blanks.
written = _writer(", ", ": ")
compact = _writer(",", ":")
