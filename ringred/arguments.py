"""Checks of arguments that many functions take. What they refuse was started nowhere: the errors are UsageErrors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from ringred.errors import UsageError
from ringred.ops import Op


def shown(value: Any) -> str:
    """A value and its type, for errors."""
    return f"{value!r}, of type {type(value).__qualname__}"


def check_text(text: Any, argument: str) -> None:
    """A name or tag travels as UTF-8."""
    if not isinstance(text, str):
        raise UsageError(f"{argument} must be a str: it is {shown(text)}. Convert it with str().")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{argument} must be text that UTF-8 can encode: it is {text!r}, with a lone surrogate. Decode it from "
            "bytes with errors='replace'."
        ) from None


def check_name(name: Any) -> None:
    """The name of an operation: None, or a str."""
    if name is not None:
        check_text(name, "name")


def checked_op(op: Any, function: str, known: Iterable[Op] = Op) -> Op:
    """The op that is meant: one of `known`, or its number as an integer of any kind, which a bool is not."""
    if type(op) is Op and op in known:  # at once: abstract classes take their time
        return op
    if isinstance(op, Integral) and not isinstance(op, bool):
        for one in known:
            if op == one:
                return one
    *names, last = [one.name for one in known]
    raise UsageError(
        f"op must be {', '.join(names)} or {last} for {function}: it is {shown(op)}. Give "
        "it by its name, such as op=Sum."
    )


def checked_factor(factor: Any, argument: str) -> float:
    """A finite real number as a float."""
    if type(factor) is float and math.isfinite(factor):
        return factor
    try:
        number = float(factor) if isinstance(factor, Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        said = "an integer beyond float64" if isinstance(factor, Integral) else shown(factor)
        raise UsageError(f"{argument} must be a finite real number: it is {said}. Pass a float.")
    return number


def checked_factors(factors: tuple[Any, Any]) -> tuple[float, float]:
    """prescale_factor and postscale_factor."""
    return checked_factor(factors[0], "prescale_factor"), checked_factor(factors[1], "postscale_factor")


def check_path(path: Any, function: str) -> None:
    """The path of a file, which must be text."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(
            f"{function} takes the path of a file, a str that is not empty and has no NUL: it is {shown(path)}. Decode "
            "bytes with os.fsdecode()."
        )


def is_whole(number: Any) -> bool:
    """Whether it is an integer, of any kind but bool."""
    return isinstance(number, Integral) and not isinstance(number, bool)
