"""YAML that a parser would misread or choke on is refused, with its line."""

import time
from pathlib import Path

import pytest

from serve_app.planning.yaml_document import read_document


def messages(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    return [str(problem) for problem in read_document(path).problems]


def test_plain_yaml_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text("a: &a {b: [1, 2.5, true, null, 'x']}\nc: *a\n")
    document = read_document(path)
    assert document.problems == []
    assert document.value == {key: {"b": [1, 2.5, True, None, "x"]} for key in ("a", "c")}


@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        ("012", "012 reads as an octal or binary number in YAML; put it in quotes, or write the decimal number"),
        ("1:30", "1:30 reads as a number to base 60 in YAML"),
        ("2026-01-01", "2026-01-01 reads as timestamp in YAML; put it in quotes"),
        ("1e3", "1e3 reads as text in YAML, not as a number"),
        ("9" * 400, "is too large a number; use at most 18 digits"),
    ],
)
def test_scalars_that_yaml_reads_oddly_are_refused_with_their_line(tmp_path: Path, scalar: str, expected: str) -> None:
    (message,) = messages(tmp_path, f"name: a\nargs: {{max_model_len: {scalar}}}\n")
    assert "serve_config.yaml, line 2: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 2000, "more than 32 open brackets; nest less"),
        ("- " * 2000, "more than 32 levels"),
        ("a: 1\na: 2\n", "line 2: key 'a' is given twice in one place; keep one"),
        ("1: 2\n", "line 1: key '1' is not text; put it in quotes"),
        ("a: [\n", "not YAML"),
        ("a: &a [*a]\n", "aliases repeat more than 20000 parts"),
        ("a: &a0 [x, x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 20)), "aliases repeat"),
        ("a: !!python/object/apply:os.system [x]\n", "not YAML (could not determine a constructor"),
        ("- a\n" * 30_000, "more than 32 levels, 20000 parts"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not YAML"),
        ("a: \x00\n", "special characters are not allowed"),
        ("", "empty file; begin with applications:"),
        ("~", "empty file; begin with applications:"),
        ("#" * 1_100_000, "1100000 bytes are too many; a Serve file has at most 1048576"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused_quickly(tmp_path: Path, text: str, expected: str) -> None:
    start_s = time.process_time()
    assert expected in messages(tmp_path, text)[0]
    assert time.process_time() - start_s < 5


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (problem,) = read_document(tmp_path / "none.yaml").problems
    assert "none.yaml: cannot be read (No such file or directory)" in str(problem)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_bytes(b"a: \xff")
    assert "byte 3 is not UTF-8" in str(read_document(path).problems[0])
