"""What the table says of a row, and which rows break a promise."""

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.event_stream import Answer
from tests.chaos.fault_table import main
from tests.chaos.faults import FAULTS
from tests.chaos.recovery import Steadiness, processes_left
from tests.chaos.table import Row, count_changed, format_table, kinds_of

WHOLE = Row(
    name="shard-kill",
    num_copies=1,
    must_not_fail=True,
    num_requests=200,
    num_open_at_fault=8,
    longest_pause_s=3.26,
    healthy_s=4.0,
    all_copies_s=4.5,
    num_processes_left=0,
    num_blocks_held=0,
    num_requests_held=0,
)


def answer(text: str, failure: str | None = None) -> Answer:
    return Answer({0: text}, None, failure, 0.0)


def test_a_row_shows_its_counts_and_times() -> None:
    row = replace(WHOLE, num_failed=3, failures="3 cut", num_blocks_held=5, num_requests_held=1, all_copies_s=None)
    header, rule, line = format_table([row]).splitlines()
    assert line == "| shard-kill | 1 | 8 | 3 of 200 | 3 cut | 0 | 3.3 s | 4.0 s | never | 0 | 5 by 1 | |"
    assert header.count("|") == rule.count("|") == line.count("|")


def test_a_row_that_was_not_run_says_why_in_as_many_cells() -> None:
    header, _, line = format_table([Row("router-stop", 2, True, note="no cluster")]).splitlines()
    assert line.startswith("| router-stop | 2 |")
    assert line.endswith(" no cluster |")
    assert header.count("|") == line.count("|")


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, False),
        ({"num_failed": 1}, True),
        ({"num_changed": 1}, True),
        ({"num_open_at_fault": 0}, True),  # nothing was shown
        ({"num_failed": 1, "must_not_fail": False}, False),
        ({"num_processes_left": 3}, True),
        ({"num_processes_left": 1, "must_not_fail": False}, True),
        ({"num_processes_left": None}, False),
    ],
)
def test_a_failure_a_changed_text_or_a_process_left_breaks_a_promise(change: dict[str, Any], broken: bool) -> None:
    assert replace(WHOLE, **change).is_broken is broken


@pytest.mark.parametrize(
    "change",
    [
        {"healthy_s": None},
        {"all_copies_s": None},
        {"num_processes_left": 1},
        {"num_blocks_held": 1},
        {"num_blocks_held": None, "num_requests_held": None},
        {"num_requests_held": 1},
    ],
)
def test_a_cluster_serves_for_the_next_row_only_when_whole(change: dict[str, Any]) -> None:
    assert WHOLE.is_clean
    assert not replace(WHOLE, **change).is_clean


def test_kinds_of_failures_are_counted_and_chats_that_went_round_are_compared() -> None:
    answers = [answer("a"), answer("", "cut"), answer("", "refused"), answer("", "cut"), answer("x")]
    assert kinds_of(answers) == "2 cut, 1 refused"
    assert count_changed(answers, [answer("a"), answer("b")]) == 1
    assert count_changed(answers, [answer("a"), answer("b")], [answer("x"), answer("c")]) == 0  # of new weights


def test_names_of_rows_are_their_own_and_shards_routers_and_the_controller_may_not_fail() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    promised = {fault.name for fault in FAULTS if fault.must_not_fail}
    assert {"shard-kill", "router-stop", "controller-kill", "shard-stop-of-two", "update-bad-source"} <= promised
    assert not promised & {"gateway-kill", "gateway-stop", "proxy-kill"}


def test_what_should_have_gone_is_victims_and_the_oldest_of_too_many() -> None:
    before = {"shard": {1, 2}, "router": {3}}
    assert processes_left(before, {"shard": {5, 6}, "router": {7}}, {}, [3]) == set()
    assert processes_left(before, {"shard": {1, 5, 6}, "router": {3, 7}}, {}, [3]) == {1, 3}
    assert processes_left(before, {"shard": {1, 2}, "router": {3}}, {}, [3]) == {3}  # nobody took its place
    assert processes_left(before, {"shard": {1, 2, 9}, "router": {3, 8}}, {"shard": 1, "router": 1}, []) == set()
    assert processes_left(before, {"shard": {1, 2}, "router": {3}}, {"shard": -1}, []) == {1}


def test_health_counts_from_the_last_sign_needed_and_anew_after_a_bad_one() -> None:
    steady = Steadiness(2)
    seen = []
    for time_s, sign in enumerate([True, True, True, False, True, True, True]):
        steady.note(sign, float(time_s))
        seen.append(steady.since_s)
    assert seen == [None, 1.0, 1.0, None, None, 5.0, 5.0]


def test_a_row_that_there_is_not_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--rows", "shard-kill,shard-mill"])
    assert "there is no row shard-mill; choose from none, shard-kill, " in capsys.readouterr().err
