"""The check of a GPU in ten minutes: what must hold does, and what it takes. Torch and transformers only: no Ray.

`python -m bench.gpu` on a CUDA machine; `python -m bench.gpu --device cpu --tiny` shows in a minute that it runs.
Prints each part as soon as it is known, writes gpu.json to the directory $OUT when that is set, and exits 1 when a part
fails or finds something that must hold and does not.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from bench.gpu_part import PART_LIMITS_S
from bench.gpu_report import Report
from bench.gpu_watch import ProcessWorker, watch


def main() -> int:
    """Run the command; gives its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    parser.add_argument("--tiny", action="store_true", help="a model of 200,000 parameters and a few tokens")
    parser.add_argument("--only", nargs="+", choices=PART_LIMITS_S, metavar="PART", help="; ".join(PART_LIMITS_S))
    parser.add_argument("--max-s", type=float, default=585, help="parts that it leaves no time for have failed")
    options = parser.parse_args()
    out_dir = os.environ.get("OUT")
    report = Report(Path(out_dir) / "gpu.json" if out_dir else None)
    names = [name for name in PART_LIMITS_S if options.only is None or name in options.only]
    start = partial(ProcessWorker, device_name=options.device, is_tiny=options.tiny)
    watch(names, start, report, options.max_s)
    report.say_verdict()
    return 0 if report.is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
