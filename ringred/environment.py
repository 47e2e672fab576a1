"""The settings of this process: its RINGRED_* variables, and Horovod's where ours are not set.

Invariant: reading never fails and never prints, since that is for all ranks together to do; see check() and announce().
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ringred.errors import UsageError

LEVELS = ("debug", "info", "warning", "error")
"""What RINGRED_LOG_LEVEL may be, from much to little."""

HOROVOD_LEVELS = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "fatal": "error",
}

SET_BY_LAUNCHERS = {
    f"HOROVOD_{name}"
    for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "HOSTNAME", "SECRET_KEY")
}
"""Nobody's wish, so nothing is said about them."""


@dataclass(frozen=True)
class Twin:
    """A variable of Horovod's that stands in for one of ours.

    `translate` takes its value and returns ours, or None where it asks for what holds anyhow. It raises ValueError with
    the rule that the value breaks.
    """

    horovod: str
    ringred: str
    translate: Callable[[str], str | None]


@dataclass
class Reading:
    """What the environment says.

    Attributes:
        settings: values of RINGRED_* variables, the translated ones among them.
        twins: which variable of Horovod's was read for which of ours.
        ignored: variables of Horovod's that mean nothing here.
        problems: an error text for each variable of Horovod's whose value is wrong; it is left out of settings.
    """

    settings: dict[str, str]
    twins: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _whole(value: str) -> str:
    if not (value.isascii() and value.isdigit()):
        raise ValueError("a whole number of bytes, 0 or more")
    return value


def _seconds(value: str) -> str:
    rule = "a number of seconds from 0 to 1e9"
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError(rule) from None
    if not 0 <= seconds <= 1e9:
        raise ValueError(rule)
    return f"{seconds:.15g}"


def _disabled(value: str) -> str | None:
    if not (value.isascii() and value.isdigit()):
        raise ValueError("0 or 1")
    return "0" if int(value) else None


def _level(value: str) -> str:
    if value.lower() not in HOROVOD_LEVELS:
        raise ValueError("one of " + ", ".join(HOROVOD_LEVELS))
    return HOROVOD_LEVELS[value.lower()]


def _file(value: str) -> str | None:
    return None if value == "DYNAMIC" else value  # start_timeline() needs no permission here


TWINS = (
    Twin("HOROVOD_FUSION_THRESHOLD", "RINGRED_FUSION_THRESHOLD", _whole),
    Twin("HOROVOD_TIMELINE", "RINGRED_TIMELINE", _file),
    Twin("HOROVOD_STALL_CHECK_DISABLE", "RINGRED_STALL_SECONDS", _disabled),
    Twin("HOROVOD_STALL_CHECK_TIME_SECONDS", "RINGRED_STALL_SECONDS", _seconds),
    Twin("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "RINGRED_TIMEOUT_SECONDS", _seconds),
    Twin("HOROVOD_LOG_LEVEL", "RINGRED_LOG_LEVEL", _level),
)
"""In order of precedence, where two stand in for the same."""


def read(environment: Mapping[str, str] = os.environ) -> Reading:
    """What this process's environment says, or another's. Never fails; Horovod's empty variables count as not set."""
    reading = Reading({name: value for name, value in environment.items() if name.startswith("RINGRED_")})
    for twin in TWINS:
        value = environment.get(twin.horovod, "")
        if not value or twin.ringred in reading.settings:
            continue
        try:
            translated = twin.translate(value)
        except ValueError as rule:
            reading.problems.append(
                f"{twin.horovod} must be {rule}: it is {value!r}. It is read because {twin.ringred} is not set."
            )
            continue
        if translated is not None:
            reading.settings[twin.ringred] = translated
            reading.twins[twin.horovod] = twin.ringred
    known = {twin.horovod for twin in TWINS} | SET_BY_LAUNCHERS
    reading.ignored = sorted(name for name in environment if name.startswith("HOROVOD_") and name not in known)
    return reading


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError, naming Horovod's variable, if one that stands in for ours has a wrong value."""
    problems = read(environment).problems
    if problems:
        raise UsageError(" ".join(problems))


def announce(environment: Mapping[str, str] = os.environ) -> None:
    """Say on stderr which of Horovod's variables are read, and, if asked for much, which are not. Rank 0 calls it."""
    reading = read(environment)
    level = reading.settings.get("RINGRED_LOG_LEVEL", "warning")
    if reading.twins and _shows(level, "warning"):
        read_as = (
            f"{horovod}={environment[horovod]} as {ours}={reading.settings[ours]}"
            for horovod, ours in reading.twins.items()
        )
        _say("reads " + ", ".join(read_as))
    if reading.ignored and _shows(level, "info"):
        _say("ignores what has no meaning here: " + ", ".join(reading.ignored))


def _shows(level: str, kind: str) -> bool:
    return level in LEVELS and LEVELS.index(level) <= LEVELS.index(kind)


def say(text: str, kind: str, settings: Mapping[str, str]) -> None:
    """Write a line to stderr if the level that is asked for shows its kind, one of LEVELS."""
    if _shows(settings.get("RINGRED_LOG_LEVEL", "warning"), kind):
        _say(text)


def _say(text: str) -> None:
    print(f"ringred: {text}", file=sys.stderr, flush=True)
