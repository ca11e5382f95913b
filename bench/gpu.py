"""Parity and decode speed of the engine on one device, with torch and transformers only: no Ray, no links.

`python -m bench.gpu` on a CUDA machine; `python -m bench.gpu --device cpu --tiny` shows in a minute that it runs.
Prints tables, writes gpu.json to the directory $OUT when that is set, and exits 1 when parity does not hold.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from bench.gpu_decode import DecodeRow, Workpiece, measure_copy_bytes_per_s, measure_decode
from bench.gpu_parity import Parity, check_parity


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run measures."""

    parity_size: str
    decode_sizes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    num_prompt_tokens: int
    num_outputs: int
    copy_bytes: int


FULL = Plan("120M", ("1B", "8B"), (1, 8, 64), num_prompt_tokens=128, num_outputs=128, copy_bytes=1 << 30)
TINY = Plan("tiny", ("tiny",), (1, 8, 64), num_prompt_tokens=16, num_outputs=12, copy_bytes=1 << 26)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    device: str
    torch_version: str
    transformers_version: str
    parity: Parity
    copy_bytes_per_s: float
    decode: list[DecodeRow]


def run(plan: Plan, device: torch.device) -> Report:
    """Measure everything; prints each part as soon as it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, bfloat16", flush=True)
    parity = check_parity(plan.parity_size, device, plan.num_prompt_tokens, plan.num_outputs)
    print(format_parity(parity), flush=True)
    copy_bytes_per_s = measure_copy_bytes_per_s(device, plan.copy_bytes)
    print(f"copy bandwidth {copy_bytes_per_s / 1e9:.1f} GB/s, read and write counted", flush=True)
    rows: list[DecodeRow] = []
    print(f"{'model':>6} {'batch':>5} {'tokens/s':>10} {'bound':>10} {'of bound':>8} {'transformers':>12} {'ratio':>6}")
    for size in plan.decode_sizes:
        piece = Workpiece(size, plan.batch_sizes, plan.num_prompt_tokens, plan.num_outputs)
        for row in measure_decode(piece, device, copy_bytes_per_s):
            print(format_row(row), flush=True)
            rows.append(row)
    return Report(name, torch.__version__, transformers.__version__, parity, copy_bytes_per_s, rows)


def format_parity(parity: Parity) -> str:
    """The comparison with transformers, in two lines."""
    verdict = "holds" if parity.is_ok else "DOES NOT HOLD"
    gap = (
        f", first where the reference's logits are {parity.max_gap:.4f} apart or less"
        if parity.first_differences
        else ""
    )
    return (
        f"parity {verdict}: {len(parity.first_differences)} of {parity.num_sequences} greedy sequences differ{gap};\n"
        f"log-probabilities of {parity.num_prompt_tokens} prompt tokens differ by {parity.max_difference:.4f} at most, "
        f"{parity.mean_difference:.4f} root mean square; bfloat16 itself differs from float32 by {parity.noise:.4f}"
    )


def format_row(row: DecodeRow) -> str:
    """One line of the table."""
    if row.tokens_per_s is None:
        return f"{row.model:>6} {row.batch_size:>5} {row.note}"
    share = row.tokens_per_s / row.bound_tokens_per_s
    line = f"{row.model:>6} {row.batch_size:>5} {row.tokens_per_s:10.1f} {row.bound_tokens_per_s:10.1f} {share:8.1%}"
    if row.transformers_tokens_per_s is None:
        return f"{line} {'-':>12} {'-':>6} {row.note}"
    ratio = row.tokens_per_s / row.transformers_tokens_per_s
    return f"{line} {row.transformers_tokens_per_s:12.1f} {ratio:6.2f}"


def main() -> int:
    """Run the command; gives its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of 200,000 parameters and a few tokens")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here; add --device cpu --tiny to see that it runs", file=sys.stderr)
        return 1
    if options.tiny:
        torch.set_num_threads(1)  # more only wait for one another over matrices so small
    report = run(TINY if options.tiny else FULL, device)
    if os.environ.get("OUT"):
        record = asdict(report) | {"python": platform.python_version()}
        (Path(os.environ["OUT"]) / "gpu.json").write_text(json.dumps(record, indent=1))
    return 0 if report.parity.is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
