"""What is wrong with a file is said with line numbers, however hostile the file, without reading it whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.gateway.batches.input_lines import InputLines
from serve_app.gateway.batches.validation import MAX_ERRORS, FileCheck
from tests.batch_calls import COMPLETIONS, completion, jsonl


def checked(path: Path, content: bytes, *, max_requests: int = 100, max_line_bytes: int = 1000) -> FileCheck:
    path.write_bytes(content)
    check = FileCheck(COMPLETIONS, max_requests=max_requests, max_line_bytes=max_line_bytes)
    lines = InputLines(path, max_line_bytes)
    while not check.is_over and (chunk := lines.take()) is not None:
        check.feed(chunk)
    check.finish()
    return check


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_a_good_file_has_no_errors(path: Path) -> None:
    content = jsonl([completion("a"), completion("b")]).replace(b"\n", b"\r\n\n  \n") + jsonl([completion("c")])[:-1]
    check = checked(path, content)
    assert (check.errors, check.num_requests, check.model) == ([], 3, "tiny")


@pytest.mark.parametrize(
    ("line", "code", "param", "part"),
    [
        (b"{broken", "invalid_line", "body", "the line is not valid JSON"),
        (b"[1]", "invalid_line", "body", "the line is not a JSON object"),
        (b"\xff\xfe{}", "invalid_line", "body", "the line is not UTF-8 at byte 0"),
        (b"\0\0\0", "invalid_line", "body", "the line is not valid JSON"),
        (b'{"a":' * 80 + b"1" + b"}" * 80, "invalid_line", "a", "nested more than"),
        (b'{"custom_id": "x", "custom_id": "y"}', "invalid_line", "custom_id", "given twice"),
        (b"{}", "invalid_line", "custom_id", "custom_id is missing"),
        ({**completion("x"), "colour": 1}, "invalid_line", "colour", "colour is unknown"),
        ({**completion("x"), "custom_id": 7}, "invalid_line", "custom_id", "custom_id=7"),
        ({**completion("x"), "custom_id": ""}, "invalid_line", "custom_id", "custom_id"),
        ({**completion("x"), "custom_id": "x" * 513}, "invalid_line", "custom_id", "custom_id"),
        ({**completion("x"), "body": "text"}, "invalid_line", "body", "body="),
        ({**completion("x"), "method": "GET"}, "invalid_method", "method", "is not POST"),
        ({**completion("x"), "url": "/v1/embeddings"}, "mismatched_endpoint", "url", COMPLETIONS),
        ({**completion("x"), "url": "http://elsewhere/"}, "mismatched_endpoint", "url", COMPLETIONS),
        (completion("first"), "duplicate_custom_id", "custom_id", "stands on line 1"),
        (completion("x", model="other"), "mismatched_model", "body.model", "line 1"),
        (completion("x", model=None), "model_missing", "body.model", "model is missing"),
        (completion("x", stream=True), "stream_unsupported", "body.stream", "leave it out"),
        (completion("x", stream="yes"), "stream_unsupported", "body.stream", "leave it out"),
        (completion("x", priority=-5), "priority_unsupported", "body.priority", "priority is 1000"),
        (completion("x", prompt="x" * 1000), "line_too_large", None, "larger than 1000 bytes"),
    ],
)
def test_a_bad_line_is_told_by_its_number(
    path: Path, line: bytes | dict[str, Any], code: str, param: str | None, part: str
) -> None:
    written = line if isinstance(line, bytes) else json.dumps(line).encode()
    content = jsonl([completion("first")]) + b"\n" + written + b"\n" + jsonl([completion("last")])
    [error] = checked(path, content).errors
    assert (error.line, error.code, error.param) == (3, code, param)
    assert part in error.message


def test_a_file_without_a_request_is_refused(path: Path) -> None:
    assert [error.code for error in checked(path, b"\n \n").errors] == ["empty_file"]


def test_too_many_requests_are_told_at_the_first_that_is_too_much(path: Path) -> None:
    check = checked(path, jsonl([completion(str(number)) for number in range(9)]), max_requests=5)
    assert [(error.code, error.line) for error in check.errors] == [("too_many_requests", 6)]


def test_a_file_of_nothing_but_errors_is_not_read_to_its_end(path: Path) -> None:
    check = checked(path, b"{\n" * 200_000, max_requests=1_000_000)
    assert len(check.errors) == MAX_ERRORS
    assert check.num_requests == MAX_ERRORS


def test_one_line_of_megabytes_is_passed_over_without_being_held(path: Path) -> None:
    check = checked(path, b"x" * 5_000_000 + b"\n" + jsonl([completion("a")]))
    assert [(error.code, error.line) for error in check.errors] == [("line_too_large", 1)]
    assert check.num_requests == 2


def test_blank_lines_hide_nothing_that_comes_after_them(path: Path) -> None:
    check = checked(path, b"\n" * 600_000 + jsonl([completion("a")]) + b"\n" * 300_000 + b"{broken")
    assert check.num_requests == 2
    assert [(error.code, error.line) for error in check.errors] == [("invalid_line", 900_002)]


def test_a_line_may_be_as_long_as_allowed_and_no_longer(path: Path) -> None:
    line = jsonl([completion("a")])[:-1]
    for size, codes in ((1000, []), (1001, ["line_too_large"])):
        padded = line + b" " * (size - len(line))
        assert [error.code for error in checked(path, padded + b"\n").errors] == codes
        assert [error.code for error in checked(path, padded + b"\r\n").errors] == codes
        assert [error.code for error in checked(path, padded).errors] == codes
