"""Values for columns: any that the type takes, unlike those of other rows where it can be."""

from __future__ import annotations

import re
from datetime import date, timedelta
from secrets import randbelow, token_hex
from typing import TYPE_CHECKING
from uuid import uuid4

from mgf.sqlalchemy.audit._sql import literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit._probe._shapes import Slot

_FIXED = {
    "bool": "false",
    "money": "1",
    "date": "2001-01-01",
    "time": "12:00",
    "timetz": "12:00+00",
    "timestamp": "2001-01-01 12:00",
    "timestamptz": "2001-01-01 12:00+00",
    "interval": "1 hour",
    "json": "{}",
    "jsonb": "{}",
    "jsonpath": "$",
    "xml": "<probe/>",
    "inet": "192.0.2.1",
    "cidr": "192.0.2.0/24",
    "macaddr": "02:00:00:00:00:01",
    "macaddr8": "02:00:00:00:00:00:00:01",
    "point": "(0,0)",
    "line": "{1,1,1}",
    "lseg": "[(0,0),(1,1)]",
    "box": "((0,0),(1,1))",
    "path": "[(0,0),(1,1)]",
    "polygon": "((0,0),(1,1),(1,0))",
    "circle": "<(0,0),1>",
    "tsquery": "probe",
    "ltree": "probe",
    "geometry": "POINT(0 0)",
    "geography": "POINT(0 0)",
    "pg_lsn": "0/1",
    "hstore": "",
}
# Digits that fit every value of the type.
_DIGITS = {"int2": 4, "int4": 9, "int8": 15, "float4": 6, "float8": 9, "oid": 9, "xid8": 9}
# Values that conditions ask for, again and again.
_COMMON = {
    "N": ("1", "0", "100", "10", "-1", "0.5"),
    "S": ("a", "A", "1", "probe@example.com", "https://example.com/", "EUR", "en", "#000000", ""),
    "D": ("2001-01-01", "2101-01-01"),
    "B": ("false", "true"),
}
_NUMBER = re.compile(r"(?<![\w.'])-?\d+(?:\.\d+)?(?![\w.'])")
_STRING = re.compile(r"'((?:[^']|'')*)'")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def cast(value: str | None, type_: str) -> str:
    """Return a value as it stands in SQL, with its type."""
    return f"CAST({'NULL' if value is None else literal(value)} AS {type_})"


def invent(slot: Slot) -> str | None:
    """Return a value of a column's type; None where nobody can know one."""
    if slot.category == "S":
        return _text(slot)
    if slot.base in _DIGITS:
        return _number(_DIGITS[slot.base])
    if slot.base == "uuid":
        return str(uuid4())
    if slot.kind == "e":
        return next(iter(slot.labels), None)
    if slot.category == "A":
        return "{}"
    if slot.kind == "r":
        return _range(slot)
    if slot.kind == "m":
        return "{}"
    sized = _sized(slot)
    return _FIXED.get(slot.base) if sized is None else sized


def candidates(slot: Slot, conditions: str) -> Iterator[str | None]:
    """Yield values that may fulfil conditions, those that stand in them among the first."""
    seen = dict.fromkeys([invent(slot), *_written(slot, conditions), *_usual(slot, conditions)])
    yield from (value for value in seen if value is not None and _fits(slot, value))
    if not slot.not_null:
        yield None


def takes_uuid_text(slot: Slot) -> bool:
    """Say whether a UUID fits a column as text."""
    return slot.category == "S" and (_size(slot.type) or 36) >= 36


def _text(slot: Slot) -> str:
    value = f"probe-{token_hex(8)}"
    size = _size(slot.type)
    # What is random of it comes last.
    return value if size is None or size >= len(value) else value[-size:]


def _number(digits: int) -> str:
    low = 10 ** (digits - 1)
    return str(low + randbelow(8 * low))


def _range(slot: Slot) -> str:
    """Return a range that meets no other and is not empty, which keys may refuse."""
    if slot.base in ("int4range", "int8range", "numrange"):
        low = int(_number(6))
        return f"[{low},{low + 1})"
    if slot.base in ("daterange", "tsrange", "tstzrange"):
        low_day = date(2001, 1, 1) + timedelta(days=randbelow(1_000_000))
        return f"[{low_day},{low_day + timedelta(days=1)})"
    return "empty"


def _sized(slot: Slot) -> str | None:
    size = _size(slot.type)
    if slot.base == "numeric":
        if size is None:
            return _number(9)
        scale = int(match[1]) if (match := re.search(r",(-?\d+)\)", slot.type)) else 0
        digits = min(size - scale, 9)
        return _number(digits) if digits > 0 else "0"
    if slot.base in ("bit", "varbit"):
        return "1" * (size or 1)
    if slot.base in ("vector", "halfvec"):
        return f"[{','.join('0' * (size or 1))}]"
    if slot.base == "bytea":
        return f"\\x{token_hex(8)}"
    return None


def _size(type_: str) -> int | None:
    match = re.search(r"\((\d+)", type_)
    if match is not None:
        return int(match[1])
    return 1 if type_ in ("character", '"char"') else 63 if type_ == "name" else None


def _written(slot: Slot, conditions: str) -> Iterator[str]:
    """Yield what stands in conditions, and what lies beside it."""
    if slot.category == "N":
        for one in _NUMBER.findall(conditions) + _strings(conditions, _NUMBER):
            whole = float(one)
            yield from (one, f"{whole + 1:g}", f"{whole - 1:g}")
    elif slot.category in "SD":
        yield from _strings(conditions)
    elif slot.base == "uuid":
        yield from _strings(conditions, _UUID)
    elif slot.kind == "e":
        yield from slot.labels


def _usual(slot: Slot, conditions: str) -> Iterator[str]:
    yield from _COMMON.get(slot.category, ())
    if slot.category == "S":
        for length in sorted({int(float(one)) for one in _NUMBER.findall(conditions)}):
            if 0 < length <= 1000:
                yield from (token_hex(length)[:length], _letters(length), _number(length))


def _letters(length: int) -> str:
    return "".join(chr(ord("A") + randbelow(26)) for _ in range(length))


def _strings(conditions: str, pattern: re.Pattern[str] | None = None) -> list[str]:
    found = [one.replace("''", "'") for one in _STRING.findall(conditions)]
    return [one for one in found if pattern is None or pattern.fullmatch(one)]


def _fits(slot: Slot, value: str) -> bool:
    """Say whether a cast of the value would not be refused."""
    if slot.category == "N":
        digits = _DIGITS.get(slot.base, 0)
        whole = digits > 0 and not slot.base.startswith("float")
        return not whole or (value.lstrip("-").isdigit() and len(value.lstrip("-")) <= digits)
    if slot.category == "D":
        return (
            re.match(r"\d\d:" if slot.base in ("time", "timetz") else r"\d{4}-", value) is not None
        )
    size = _size(slot.type)
    return slot.category != "S" or size is None or len(value) <= size
