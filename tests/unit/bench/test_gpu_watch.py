"""Whatever becomes of the process that uses the device, all parts are reported, in time."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.gpu_messages import Begun, Ended, Found, Message, Started
from bench.gpu_part import PART_LIMITS_S
from bench.gpu_report import Report
from bench.gpu_watch import WorkerGoneError, watch

NAMES = ("parity", "attention", "graphs")
BEGUN = Begun("a device", {"device": "a device"})
GONE = "exit status -11"
HANGS = None
MAX_S = 500.0


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class ScriptedWorker:
    """Tells what it is given, a second for each, and is gone then; None: it hangs."""

    clock: Clock
    messages: deque[Message | None]
    is_stopped: bool = False

    def receive(self, timeout_s: float) -> Message | None:
        if not self.messages:
            raise WorkerGoneError(GONE)
        message = self.messages.popleft()
        self.clock.seconds += timeout_s if message is None else 1.0
        return message

    def stop(self) -> None:
        self.is_stopped = True


@dataclass
class Workers:
    """Starts one after the other."""

    scripts: list[list[Message | None]]
    clock: Clock = field(default_factory=Clock)
    asked: list[list[str]] = field(default_factory=list)
    started: list[ScriptedWorker] = field(default_factory=list)

    def start(self, names: Sequence[str]) -> ScriptedWorker:
        self.asked.append(list(names))
        self.started.append(ScriptedWorker(self.clock, deque(self.scripts.pop(0))))
        return self.started[-1]

    def watch(self, names: Sequence[str] = NAMES, max_s: float = MAX_S) -> Report:
        report = Report(None)
        watch(names, self.start, report, max_s, self.clock)
        assert all(worker.is_stopped for worker in self.started)
        return report


def part_of(name: str, problem: str | None = None, error: str | None = None) -> list[Message | None]:
    return [Started(name, ""), Found("a line", {}, problem), Ended(2.0, error)]


def errors_of(report: Report) -> dict[str, str | None]:
    return {name: part.error for name, part in report.parts.items()}


def test_parts_that_hold_run_in_one_process() -> None:
    workers = Workers([[BEGUN, *part_of("parity"), *part_of("attention"), *part_of("graphs")]])
    report = workers.watch()
    assert report.is_ok
    assert errors_of(report) == dict.fromkeys(NAMES)
    assert workers.asked == [list(NAMES)]


@pytest.mark.parametrize("is_error", [True, False])
def test_a_part_that_fails_leaves_the_others(is_error: bool) -> None:
    failing = part_of("parity", error="ValueError: x") if is_error else part_of("parity", problem="x is wrong")
    report = Workers([[BEGUN, *failing, *part_of("attention"), *part_of("graphs")]]).watch()
    assert [part.is_ok for part in report.parts.values()] == [False, True, True]
    assert not report.is_ok


def test_what_is_left_of_a_process_that_dies_runs_in_another() -> None:
    workers = Workers([[BEGUN, *part_of("parity"), Started("attention", "")], [BEGUN, *part_of("graphs")]])
    report = workers.watch()
    assert workers.asked == [list(NAMES), ["graphs"]]
    assert errors_of(report) == {"parity": None, "attention": f"its process died: {GONE}", "graphs": None}


def test_a_process_that_ends_between_parts_fails_none() -> None:
    broken = part_of("parity", error="AcceleratorError: CUDA error")  # the device is lost
    workers = Workers([[BEGUN, *broken], [BEGUN, *part_of("attention"), *part_of("graphs")]])
    report = workers.watch()
    assert workers.asked == [list(NAMES), ["attention", "graphs"]]
    assert [part.is_ok for part in report.parts.values()] == [False, True, True]


def test_a_part_that_hangs_is_ended_at_its_limit() -> None:
    workers = Workers([[BEGUN, Started("parity", ""), HANGS], [BEGUN, *part_of("attention"), *part_of("graphs")]])
    report = workers.watch()
    assert errors_of(report)["parity"] == f"not done after {PART_LIMITS_S['parity']:.0f} s, and ended"
    assert errors_of(report)["graphs"] is None


def test_parts_that_there_is_no_time_for_have_failed() -> None:
    workers = Workers([[BEGUN, *part_of("parity"), Started("attention", ""), HANGS]])
    report = workers.watch(max_s=60)
    assert workers.clock.seconds == 60
    assert errors_of(report) == {
        "parity": None,
        "attention": "not done after 55 s, and ended",
        "graphs": "not run: no time was left",
    }


@pytest.mark.parametrize("script", [[], [HANGS]], ids=["it dies", "it hangs"])
def test_a_device_that_is_not_reached_fails_all_parts_and_is_not_tried_again(script: list[Message | None]) -> None:
    report = Workers([script]).watch()
    assert list(report.parts) == list(NAMES)
    assert not any(part.is_ok for part in report.parts.values())


def test_a_report_is_written_row_by_row(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json")
    report.begin(BEGUN)
    report.start(Started("parity", ""))
    report.find("parity", Found("a line", {"noise": 0.5}, None))
    assert '"noise": 0.5' in (tmp_path / "gpu.json").read_text()


def test_a_part_of_one_row_is_that_row_in_the_record() -> None:
    report = Report(None)
    for name in ("parity", "decode", "nccl"):
        report.start(Started(name, ""))
    for name in ("parity", "decode"):
        report.find(name, Found("a line", {"value": 1}, None))
    record = report.as_record()
    assert [record[name] for name in ("parity", "decode", "nccl")] == [{"value": 1}, [{"value": 1}], None]


def test_the_verdict_names_what_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    workers = Workers([[BEGUN, *part_of("parity"), *part_of("attention", problem="x is wrong"), *part_of("graphs")]])
    report = workers.watch()
    capsys.readouterr()
    report.say_verdict()
    assert capsys.readouterr().out == "\n2 of 3 parts hold\nattention: x is wrong\n"
