"""Labelled texts from a CSV file, which is not to be trusted."""

import csv
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from serve_app.errors import ConfigError

MAX_LINE_CHARS = 1_000_000
MAX_ROWS = 10_000_000


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class CsvRows:
    """The rows of a file that have a text, and how many have none."""

    rows: list[LabelledText]
    num_blank: int


def read_csv(path: Path, text_column: str, label_column: str) -> CsvRows:
    """The rows of a CSV file with a header. Raises ConfigError that names the line."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give a CSV file with a header line")
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_CHARS))  # the module has one for all of its readers
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = _read_rows(file, path, text_column, label_column)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start} of a block); save it as UTF-8") from error
    if not read.rows:
        raise ConfigError(f"{path} has no row with a text; add some below the header")
    return read


def _read_rows(file: TextIO, path: Path, text_column: str, label_column: str) -> CsvRows:
    lines = _numbered_rows(file, path)
    _, header = next(lines, (0, None))
    text_index, label_index = _columns(path, header, text_column, label_column)
    num_columns = len(header or ())
    rows: list[LabelledText] = []
    num_blank = 0
    for number, fields in lines:
        if len(fields) <= max(text_index, label_index) and any(fields):
            raise ConfigError(f"{path}, line {number}: {len(fields)} fields are too few; mend the line")
        if any(fields[num_columns:]):
            told = f"{len(fields)} fields are too many for {num_columns} columns"
            raise ConfigError(f"{path}, line {number}: {told}; put a text that holds commas in quotes")
        row = LabelledText(fields[text_index], fields[label_index]) if any(fields) else LabelledText("", "")
        if not row.text:
            num_blank += 1
        elif not row.label:
            raise ConfigError(f"{path}, line {number}: {label_column} is blank; write a label")
        else:
            rows.append(row)
        if len(rows) > MAX_ROWS:
            raise ConfigError(f"{path} has more than {MAX_ROWS} rows; train on a part of it")
    return CsvRows(rows, num_blank)


def _numbered_rows(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row that is not an empty line, and the line that it begins in."""
    reader = csv.reader(_bounded_lines(file, path), strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, [field.strip() for field in fields]
            number = reader.line_num + 1
    except csv.Error as error:
        is_long = "field larger than field limit" in str(error)
        told = f"a field is longer than {MAX_LINE_CHARS} characters" if is_long else f"is not CSV: {error}"
        raise ConfigError(f"{path}, line {number}: {told}; is a quote left open?") from error


def labels_of(rows: list[LabelledText]) -> list[str]:
    """The labels in their alphabetical order. Raises ConfigError when there is only one."""
    labels = sorted({row.label for row in rows})
    if len(labels) < 2:
        raise ConfigError(f"all rows have the label {labels[0][:80]!r}; a classifier needs at least two")
    return labels


def split_rows(
    rows: list[LabelledText], validation_share: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Rows to train on, and rows to validate on: of each label the same share, at least one of each on both sides."""
    by_label: dict[str, list[LabelledText]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    randomness = random.Random(seed)
    training: list[LabelledText] = []
    validation: list[LabelledText] = []
    for label, own in sorted(by_label.items()):
        if len(own) < 2:
            raise ConfigError(f"label {label[:80]!r} has one row; add a second, one to train on and one to validate on")
        randomness.shuffle(own)
        num_held = min(len(own) - 1, max(1, round(len(own) * validation_share)))
        validation += own[:num_held]
        training += own[num_held:]
    return training, validation


def _bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    """The file's lines; one that is too long is refused before it is read whole."""
    number = 0
    while line := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise ConfigError(f"{path}, line {number} is longer than {MAX_LINE_CHARS} characters; shorten it")
        if "\0" in line:
            raise ConfigError(f"{path}, line {number} holds a NUL character; is it a CSV file?")
        yield line


def _columns(path: Path, header: list[str] | None, text_column: str, label_column: str) -> tuple[int, int]:
    if header is None:
        raise ConfigError(f"{path} is empty; give a CSV file with a header line")
    for name in (text_column, label_column):
        if header.count(name) != 1:
            shown = ", ".join(header)[:200]
            reason = "has no column" if name not in header else "has more than one column"
            advice = "choose by --text-column and --label-column"
            raise ConfigError(f"{path} {reason} {name!r}; its columns are {shown}: {advice}")
    return header.index(text_column), header.index(label_column)
