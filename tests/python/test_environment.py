"""Horovod's variables stand in for ours where ours are not set."""

from __future__ import annotations

import pytest

from ringred import UsageError, bootstrap, environment


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"HOROVOD_FUSION_THRESHOLD": "0"}, {"RINGRED_FUSION_THRESHOLD": "0"}),
        ({"HOROVOD_FUSION_THRESHOLD": "134217728"}, {"RINGRED_FUSION_THRESHOLD": "134217728"}),
        ({"HOROVOD_TIMELINE": "trace.json"}, {"RINGRED_TIMELINE": "trace.json"}),
        ({"HOROVOD_TIMELINE": "DYNAMIC"}, {}),
        ({"HOROVOD_STALL_CHECK_TIME_SECONDS": "60"}, {"RINGRED_STALL_SECONDS": "60"}),
        ({"HOROVOD_STALL_CHECK_TIME_SECONDS": "0.5"}, {"RINGRED_STALL_SECONDS": "0.5"}),
        ({"HOROVOD_STALL_CHECK_TIME_SECONDS": "1e6"}, {"RINGRED_STALL_SECONDS": "1000000"}),
        (
            {"HOROVOD_STALL_CHECK_DISABLE": "1", "HOROVOD_STALL_CHECK_TIME_SECONDS": "9"},
            {"RINGRED_STALL_SECONDS": "0"},
        ),
        (
            {"HOROVOD_STALL_CHECK_DISABLE": "0", "HOROVOD_STALL_CHECK_TIME_SECONDS": "9"},
            {"RINGRED_STALL_SECONDS": "9"},
        ),
        ({"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "120"}, {"RINGRED_TIMEOUT_SECONDS": "120"}),
        ({"HOROVOD_LOG_LEVEL": "trace"}, {"RINGRED_LOG_LEVEL": "debug"}),
        ({"HOROVOD_LOG_LEVEL": "FATAL"}, {"RINGRED_LOG_LEVEL": "error"}),
        ({"HOROVOD_FUSION_THRESHOLD": ""}, {}),
        ({"HOROVOD_CYCLE_TIME": "0.1", "HOROVOD_RANK": "0"}, {}),
    ],
)
def test_translation(given: dict[str, str], settings: dict[str, str]) -> None:
    assert environment.read({**given, "HOME": "/"}).settings == settings


@pytest.mark.parametrize("own", ["8", ""])
def test_our_variable_wins_also_when_it_is_empty(own: str) -> None:
    given = {"HOROVOD_FUSION_THRESHOLD": "not a number", "RINGRED_FUSION_THRESHOLD": own}
    reading = environment.read(given)
    assert reading.settings == {"RINGRED_FUSION_THRESHOLD": own}
    assert not reading.twins and not reading.problems


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("HOROVOD_FUSION_THRESHOLD", "64M", "a whole number of bytes, 0 or more"),
        ("HOROVOD_FUSION_THRESHOLD", "-1", "a whole number of bytes"),
        ("HOROVOD_STALL_CHECK_TIME_SECONDS", "soon", "a number of seconds from 0 to 1e9"),
        ("HOROVOD_STALL_CHECK_TIME_SECONDS", "nan", "a number of seconds from 0 to 1e9"),
        ("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "-1", "a number of seconds"),
        ("HOROVOD_STALL_CHECK_DISABLE", "yes", "0 or 1"),
        ("HOROVOD_LOG_LEVEL", "loud", "one of trace, debug, info, warning, error, fatal"),
    ],
)
def test_wrong_value_is_an_error_that_names_horovods_variable(name: str, value: str, rule: str) -> None:
    given = {name: value}
    assert environment.read(given).settings == {}
    with pytest.raises(UsageError) as error:
        environment.check(given)
    assert str(error.value).startswith(f"{name} must be {rule}")
    assert repr(value) in str(error.value)


def test_nothing_to_check_is_no_error() -> None:
    environment.check({"HOROVOD_CYCLE_TIME": "soon", "RINGRED_STALL_SECONDS": "soon"})


def test_one_line_says_what_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    environment.announce({"HOROVOD_FUSION_THRESHOLD": "0", "HOROVOD_LOG_LEVEL": "warning", "HOROVOD_AUTOTUNE": "1"})
    assert capfd.readouterr().err == (
        "ringred: reads HOROVOD_FUSION_THRESHOLD=0 as RINGRED_FUSION_THRESHOLD=0, "
        "HOROVOD_LOG_LEVEL=warning as RINGRED_LOG_LEVEL=warning\n"
    )


def test_what_means_nothing_is_mentioned_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    given = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_AUTOTUNE": "1", "HOROVOD_SIZE": "4"}
    environment.announce(given)
    assert capfd.readouterr().err == ""
    environment.announce({**given, "RINGRED_LOG_LEVEL": "info"})
    said = capfd.readouterr().err
    assert said == "ringred: ignores what has no meaning here: HOROVOD_AUTOTUNE, HOROVOD_CYCLE_TIME\n"
    environment.announce({"HOROVOD_TIMELINE": "t", "RINGRED_LOG_LEVEL": "error"})
    assert capfd.readouterr().err == ""


def test_the_core_gets_the_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", "123")
    monkeypatch.delenv("RINGRED_FUSION_THRESHOLD", raising=False)
    assert bootstrap.environment()["RINGRED_FUSION_THRESHOLD"] == "123"
