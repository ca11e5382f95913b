"""Labelled texts from files that a user may give, good and bad."""

from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.training import csv_rows
from serve_app.training.csv_rows import CsvRows, LabelledText, labels_of, read_csv, split_rows


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_are_read_by_their_columns_names(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffid,kind,words\n1,a,"two, and\nmore"\n\n2,b, x \n3,a,\n')
    read = read_csv(path, "words", "kind")
    assert read.rows == [LabelledText("two, and\nmore", "a"), LabelledText("x", "b")]
    assert read.num_blank == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("text,label\n", "has no row with a text"),
        ("text,label\n,a\n", "has no row with a text"),
        ("words,label\nx,a\n", "has no column 'text'; its columns are words, label: choose by --text-column"),
        ("text,text,label\nx,y,a\n", "has more than one column 'text'"),
        ("text,label\nx\n", "line 2: 1 fields are too few"),
        ("text,label\nx,a\ny,\n", "line 3: label is blank"),
        (b"text,label\nx,a\xff\n", "is not UTF-8"),
        (b"text,label\nx\0,a\n", "line 2 holds a NUL"),
        ('text,label\nx,a\n"y\n,a\n', "line 3: is not CSV"),
        ("text,label\nx,a\nit was slow, awful,neg\n", "line 3: 3 fields are too many for 2 columns; put a text"),
        ("a,text,label\n1,x\n", "line 2: 2 fields are too few"),
        ("text,label\n" + "x" * 2000 + ",a\n", "line 2 is longer than 1000 characters"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, content: str | bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE_CHARS", 1000)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_csv(write(tmp_path, content), "text", "label")


def test_a_hundred_megabytes_without_a_line_end_are_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    with path.open("wb") as file:
        file.write(b"text,label\n")
        file.truncate(100_000_000)
    with pytest.raises(ConfigError, match="line 2 is longer"):
        read_csv(path, "text", "label")


def test_rows_that_a_spreadsheet_leaves_empty_are_counted_as_blank(tmp_path: Path) -> None:
    path = write(tmp_path, "id,text,label\n1,x,a\n,,\n,\n2,,\n , ,\n3,y,b,,\n")
    assert read_csv(path, "text", "label") == CsvRows([LabelledText("x", "a"), LabelledText("y", "b")], num_blank=4)


def test_a_text_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    long = "x" * 150_000
    assert read_csv(write(tmp_path, f"text,label\n{long},a\n"), "text", "label").rows == [LabelledText(long, "a")]


def test_a_quoted_text_of_many_lines_is_bounded_by_its_first_line(tmp_path: Path) -> None:
    endless = 'text,label\nx,a\n"' + ("x" * 10_000 + "\n") * 101
    with pytest.raises(ConfigError, match="line 3: a field is longer than 1000000 characters"):
        read_csv(write(tmp_path, endless), "text", "label")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        read_csv(tmp_path / "none.csv", "text", "label")


def test_every_label_is_on_both_sides_of_the_split_and_the_seed_decides() -> None:
    rows = [LabelledText(str(number), "ab"[number % 2]) for number in range(40)] + [LabelledText("x", "c")] * 2
    training, validation = split_rows(rows, 0.1, seed=1)
    assert sorted(training + validation, key=str) == sorted(rows, key=str)
    assert labels_of(training) == labels_of(validation) == ["a", "b", "c"]
    assert split_rows(rows, 0.1, seed=1) == (training, validation)
    assert split_rows(rows, 0.1, seed=2) != (training, validation)


def test_too_few_labels_or_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        labels_of([LabelledText("x", "a")] * 3)
    with pytest.raises(ConfigError, match="label 'b' has one row"):
        split_rows([LabelledText("x", "a")] * 3 + [LabelledText("y", "b")], 0.5, 0)
