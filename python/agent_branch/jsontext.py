"""JSON as the server writes it, read without importing what the module json needs.

Importing that takes longer than many a comparison, for patterns of texts that only its parser in
Python uses; the one in C is there in every CPython, and where it is not, json does it all.
"""

from __future__ import annotations

from agent_branch.hints import Any


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
    """The value of a text that begins with it, as jsonb and json_build_object write it.

    Raises ``ValueError`` or ``StopIteration`` for another text.
    """
    return _scan(text, 0)[0]
