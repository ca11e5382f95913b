"""What faults do to clients of a real cluster: `python -m tests.chaos.fault_table`.

Eight clients stream chats while a process is killed or stopped, or the configuration changes. Each row says what they
saw, how long it took to come back, and what was left. Exit status 1: a request has failed or changed although a copy
of the model was there or could be built again, or a process that was replaced has not gone.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.chaos.chats import make_chats
from tests.chaos.fault_run import Undisturbed, not_run, run_fault, run_undisturbed
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.faulty_cluster import FaultyCluster, Layout
from tests.chaos.stream_clients import NUM_CLIENTS
from tests.chaos.table import Row, format_table, kinds_of

_CHATS_PER_CLIENT = 25
_CHATS_PER_CLIENT_FULL = 100
_ROW_S = 300.0
_ROW_FULL_S = 600.0


class Scene:
    """The cluster that the next fault is brought into: the last one's as long as it is whole."""

    def __init__(self, chats: Sequence[dict[str, Any]], row_s: float) -> None:
        self._chats = chats
        self._row_s = row_s
        self._cluster: FaultyCluster | None = None
        self._undisturbed: Undisturbed | None = None

    def play(self, fault: Fault) -> Row:
        """One row, from the start of a cluster if need be to the end of one that is no longer whole."""
        try:
            cluster, undisturbed = self._set(fault.layout)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self.clear()
            return not_run(fault, f"no cluster: {' '.join(str(error).split())[:160]}")
        if failures := kinds_of(undisturbed.answers):
            self.clear()
            return not_run(fault, f"without a fault: {failures}")
        row = asyncio.run(run_fault(cluster, fault, self._chats, undisturbed, self._row_s))
        if fault.min_load_s or not row.is_clean:
            problem = self.clear()
            row = replace(row, note="; ".join(filter(None, [row.note, problem])))
        return row

    def clear(self) -> str:
        """End the cluster, if there is one; what went wrong with that."""
        cluster, self._cluster, self._undisturbed = self._cluster, None, None
        return "" if cluster is None else cluster.end()

    def _set(self, layout: Layout) -> tuple[FaultyCluster, Undisturbed]:
        if self._cluster is not None and self._cluster.layout != layout:
            self.clear()
        if self._cluster is None:
            self._cluster = FaultyCluster(layout)
        if self._undisturbed is None:
            self._undisturbed = asyncio.run(run_undisturbed(self._cluster, self._chats, self._row_s))
        return self._cluster, self._undisturbed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print and write the table; the exit status."""
    options = _options(arguments)
    num_chats = NUM_CLIENTS * (_CHATS_PER_CLIENT_FULL if options.full else _CHATS_PER_CLIENT)
    scene = Scene(make_chats(num_chats), _ROW_FULL_S if options.full else _ROW_S)
    rows: list[Row] = []
    try:
        for fault in options.rows:
            rows.append(scene.play(fault))
            print(format_table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    finally:
        scene.clear()
    print(format_table(rows))
    return int(any(row.is_broken for row in rows))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = ",".join(fault.name for fault in FAULTS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_faults, default=FAULTS, metavar="NAME,...", help=f"of {names}; all by default")
    parser.add_argument("--full", action="store_true", help="four times as many requests a row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too, after each")
    return parser.parse_args(arguments)


def _faults(names: str) -> tuple[Fault, ...]:
    by_name = {fault.name: fault for fault in FAULTS}
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in by_name]:
        raise argparse.ArgumentTypeError(f"there is no row {', '.join(unknown)}; choose from {', '.join(by_name)}")
    return tuple(by_name[name] for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
