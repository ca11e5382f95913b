"""`rayshard compress inspect`: what a model takes on disk, and what it was made by."""

import argparse
import json
from pathlib import Path

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.checkpoints.model_spec import read_checkpoint
from serve_app.checkpoints.module_files import read_module_quantization
from serve_app.compress.modules import count_module_weights, is_module, measure_module_size
from serve_app.compress.recipe import read_recipe
from serve_app.compress.report import Size, count_weights, measure_size, read_report


def run_inspect(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status. Raises ConfigError."""
    if is_module(arguments.model):
        size = measure_module_size(arguments.model, max(1, count_module_weights(arguments.model)))
        num_quantized = len(read_module_quantization(arguments.model))
        print(f"{arguments.model}: {size.num_bytes:,} bytes, {num_quantized} parameters quantized")
        _print_origin(arguments.model, size)
        return 0
    spec = read_checkpoint(arguments.model, ARCHITECTURES)
    size = measure_size(arguments.model, max(1, count_weights(spec)))
    method = "none" if spec.quantization is None else spec.quantization.method
    print(f"{arguments.model}: {spec.model_type}, {spec.num_layers} layers, {spec.dtype}, {size.num_bytes:,} bytes")
    print(f"quantization: {method}")
    _print_origin(arguments.model, size)
    return 0


def _print_origin(model: Path, size: Size) -> None:
    for part, num_bytes in size.by_part.items():
        print(f"  {part:<10} {num_bytes:>16,} bytes")
    for index, step in enumerate(read_recipe(model), 1):
        shown = {key: value for key, value in step.items() if key not in ("source_sha256", "versions")}
        print(f"step {index}: {json.dumps(shown)}")
    report = read_report(model)
    print("report: none" if report is None else f"report: {json.dumps(report.get('quality'))}")
