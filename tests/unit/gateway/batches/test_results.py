"""What is on disk is what counts, and it is whole after whatever happened."""

import os
from pathlib import Path

import pytest

from serve_app.gateway.batches.input_lines import digest_of
from serve_app.gateway.batches.line_calls import LineRequest, answered, refused, wait_before
from serve_app.gateway.batches.results import ResultFiles
from tests.batch_calls import read_jsonl, said


def request(custom_id: str) -> LineRequest:
    return LineRequest(custom_id, b"{}")


def files_in(folder: Path) -> ResultFiles:
    return ResultFiles(folder / "output", folder / "errors")


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    assert not files.has_output
    files.append([answered(request("a"), said("x")), answered(request("b"), said("y", 500))])
    files.append([answered(request("c"), said("z")), refused(request("d"), "batch_expired", "late", "r")])
    progress = files.read()
    assert (progress.num_completed, progress.num_failed) == (2, 2)
    assert progress.done == {digest_of(name) for name in "abcd"}
    assert (progress.usage.input_tokens, progress.usage.output_tokens, progress.usage.total_tokens) == (4, 6, 10)
    assert (files.has_output, files.has_errors) == (True, True)
    assert set(read_jsonl((tmp_path / "output").read_bytes())) == {"a", "c"}


@pytest.mark.parametrize(
    "torn", [b"{", b'{"id":"x","custom_id":"b"', b"\0" * 300, b"\0\0\0\n", b'{"custom_id":1}\n{}\n']
)
def test_what_was_not_written_whole_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    files = files_in(tmp_path)
    files.append([answered(request("a"), said("x"))])
    whole = (tmp_path / "output").read_bytes()
    with (tmp_path / "output").open("ab") as file:
        file.write(torn)
    progress = files.read()
    assert (progress.num_completed, progress.done) == (1, {digest_of("a")})
    assert (tmp_path / "output").read_bytes() == whole


def test_every_torn_length_of_the_last_line_is_found(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    files.append([answered(request("a"), said("x"))])
    first = os.path.getsize(tmp_path / "output")
    files.append([answered(request("b"), said("y"))])
    whole = (tmp_path / "output").read_bytes()
    for size in range(first, len(whole)):
        (tmp_path / "output").write_bytes(whole[:size])
        assert files.read().done == {digest_of("a")}
        assert os.path.getsize(tmp_path / "output") == first


def test_an_answer_is_one_line_whatever_it_holds() -> None:
    result = answered(request("a\n\u2028"), said("two\nlines\u2028"))
    assert result.line.count(b"\n") == 1
    assert read_jsonl(result.line)["a\n\u2028"]["response"]["body"]["text"] == "two\nlines\u2028"


def test_waits_grow_to_a_minute_and_are_never_shorter_than_asked() -> None:
    waits = [wait_before(attempt, 3.0) for attempt in range(12)]
    assert all(wait_s >= 3.0 for wait_s in waits)
    assert waits[0] < 4.0
    assert 60.0 <= waits[-1] <= 75.0
