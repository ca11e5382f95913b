"""Log lines: text, or one JSON object each."""

import json
import logging
import sys
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError
from serve_app.observability import JsonFormatter, configure_logging, fault_text


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The project's, as it is before a process has set it up."""
    found = logging.getLogger("serve_app")
    before = found.handlers, found.propagate, found.level
    found.handlers = []
    yield found
    found.handlers, found.propagate, level = before
    found.setLevel(level)


def formatted(message: str, *arguments: object) -> dict[str, Any]:
    record = logging.LogRecord("serve_app.x", logging.INFO, __file__, 1, message, arguments, None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told: dict[str, Any] = json.loads(line)
    return told


def test_what_an_event_names_becomes_fields_of_their_own_types() -> None:
    told = formatted("shard ready stage=%d rank=%d load_s=%.1f name=%s", 1, 0, 2.345, "demo")
    assert told["message"] == "shard ready stage=1 rank=0 load_s=2.3 name=demo"
    assert {name: told[name] for name in ("stage", "rank", "load_s", "name")} == {
        "stage": 1, "rank": 0, "load_s": 2.345, "name": "demo"
    }  # fmt: skip
    assert (told["level"], told["logger"]) == ("INFO", "serve_app.x")
    assert told["time"].endswith("+00:00")


def test_what_stands_without_a_name_takes_no_other_s() -> None:
    told = formatted("100%% of %s failed id=%s: %s", "all", "r1", "why")
    assert told["message"] == "100% of all failed id=r1: why"
    assert told["id"] == "r1"
    assert "all" not in told.values()


def test_no_field_hides_the_line_s_own() -> None:
    assert formatted("x level=%s message=%s", "mine", "mine")["level"] == "INFO"


def test_lines_and_exceptions_stay_in_one_line() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        record = logging.LogRecord("serve_app", logging.ERROR, __file__, 1, "two\nlines", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError: bad" in json.loads(line)["exception"]


@pytest.mark.parametrize(("asked", "is_json"), [("json", True), ("text", False), ("", False)])
def test_the_environment_chooses_the_format(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, asked: str, is_json: bool
) -> None:
    monkeypatch.setenv("RAYSHARD_LOG_FORMAT", asked)
    stream = StringIO()
    configure_logging(stream)
    logger.info("ready name=%s", "demo")
    assert stream.getvalue().startswith("{") == is_json
    assert stream.getvalue().startswith("INFO ") == (not is_json)


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RAYSHARD_LOG_FORMAT=xml .* text or json"):
        read_environment({"RAYSHARD_LOG_FORMAT": "xml"})


def test_a_fault_is_told_by_kind_and_frames_and_not_by_what_it_says() -> None:
    def fail() -> None:
        try:
            raise KeyError("secret")
        except KeyError as error:
            raise ValueError("a prompt") from error

    with pytest.raises(ValueError, match="a prompt") as raised:
        fail()
    told = fault_text(raised.value)
    assert told.startswith("ValueError\n")
    assert "caused by KeyError\n" in told
    assert told.count("in fail") == 2
    assert "secret" not in told.replace('KeyError("secret")', "")
    assert "raised" not in told


def test_causes_that_go_round_end() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert fault_text(first).count("caused by") == 3
