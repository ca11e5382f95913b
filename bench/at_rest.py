"""What a served model costs while nobody asks anything: memory, cores and wake-ups, by process.

`python -m bench.at_rest --record` serves the demo, waits until all is healthy and ten seconds more, and measures for
thirty; `--pid PID` measures a `rayshard serve` that runs. Memory and CPU time hold beside other work.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from bench.process_costs import OURS, Cost, costs_between, take_samples, total
from bench.results import describe_machine, record
from bench.serving import BUILD_DIR, ROOT, ServeFailedError, free_port, is_healthy
from serve_app.cli.absolute_paths import with_absolute_paths
from serve_app.cli.serve_process import session_members

DEMO = ROOT / "serve_config.yaml"

_START_S = 300.0
_STOP_S = 90.0
_POLL_S = 0.5
_SETTLE_S = 10.0
_MIB = 1 << 20


@contextmanager
def serving_file(path: Path, arguments: Sequence[str]) -> Iterator[int]:
    """`rayshard serve` of a file, healthy, on a port of its own; gives its pid. Raises ServeFailedError."""
    port = free_port()
    content = with_absolute_paths(path)
    content["http_options"] = {**content.get("http_options", {}), "port": port}
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    copy, output = BUILD_DIR / f"rest-{port}.yaml", BUILD_DIR / f"rest-{port}.log"
    copy.write_text(yaml.safe_dump(content))
    command = [str(Path(sys.executable).with_name("rayshard")), "serve", "--drain-s", "0", *arguments, str(copy)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with output.open("wb") as log:
        server = subprocess.Popen(command, cwd=BUILD_DIR, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}", output)
        yield server.pid
    finally:
        _end(server)


def processes_of(server: int) -> list[int]:
    """A `rayshard serve` and all that it has started: its children's sessions."""
    return [server, *(pid for child in psutil.Process(server).children() for pid in session_members(child.pid))]


def measure(server: int, duration_s: float) -> list[Cost]:
    """What each kind of process costs, over so many seconds."""
    before, began_s = take_samples(processes_of(server)), time.monotonic()
    time.sleep(duration_s)
    return costs_between(before, take_samples(processes_of(server)), time.monotonic() - began_s)


def format_costs(costs: Sequence[Cost], duration_s: float) -> str:
    """A table: a line for each kind of process, ours first, and the sums."""
    lines = [
        f"`rayshard serve` at rest, over {duration_s:g} s:",
        "",
        "| process | number | memory (PSS), MiB | ms CPU per s | wake-ups per s |",
        "| --- | --- | --- | --- | --- |",
    ]
    ours = [cost for cost in costs if cost.role in OURS]
    others = [cost for cost in costs if cost.role not in OURS]
    for cost in [*ours, total("**ours**", ours), *others, total("**Ray's**", others), total("**all**", costs)]:
        lines.append(
            f"| {cost.role} | {cost.num_processes} | {cost.pss_bytes / _MIB:.0f} | {1000 * cost.cpu_share:.1f} "
            f"| {cost.wakes_per_s:.1f} |"
        )
    return "\n".join(lines)


def _wait_until_healthy(server: "subprocess.Popen[bytes]", url: str, output: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while not is_healthy(url):
        if server.poll() is not None or time.monotonic() >= deadline_s:
            raise ServeFailedError(f"rayshard serve did not come up:\n{output.read_text(errors='replace')}")
        time.sleep(_POLL_S)


def _end(server: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C does; twice where once is not enough."""
    for _ in range(2):
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        try:
            server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
        return
    raise ServeFailedError(f"rayshard serve (pid {server.pid}) does not end")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="append the table to bench/results.md")
    parser.add_argument("--file", type=Path, default=DEMO, help="the Serve file; the demo unless said")
    parser.add_argument("--plain", action="store_true", help="without Serve's throughput profile")
    parser.add_argument("--pid", type=int, help="of a `rayshard serve` that runs, instead of one more")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to measure")
    options = parser.parse_args()
    machine = describe_machine()
    if options.pid is not None:
        costs = measure(options.pid, options.seconds)
    else:
        with serving_file(options.file, ["--plain"] if options.plain else []) as server:
            time.sleep(_SETTLE_S)
            costs = measure(server, options.seconds)
    table = format_costs(costs, options.seconds)
    print(table)
    if options.record:
        record("A served model at rest", machine, table)


if __name__ == "__main__":
    main()
