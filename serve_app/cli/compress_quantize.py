"""`rayshard compress quantize`."""

import argparse

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.checkpoints.model_spec import read_checkpoint
from serve_app.cli.compress_measure import measure
from serve_app.compress.modules import is_module, quantize_module
from serve_app.compress.quantize import QuantizeSettings, is_encoder, quantize
from serve_app.compress.texts import read_tasks, read_texts
from serve_app.errors import ConfigError
from serve_app.training.csv_rows import read_csv


def run_quantize(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status. Raises ConfigError."""
    settings = QuantizeSettings(
        arguments.scheme,
        arguments.group_size,
        has_embedding=arguments.embedding,
        has_head=arguments.head,
        ignored=tuple(arguments.ignore),
    )
    _check_files(arguments)
    if arguments.max_memory_gib is not None and (arguments.calibration is None or arguments.max_memory_gib < 0):
        raise ConfigError("--max-memory-gib is a number of GiB, 0 or more, for --calibration; leave it out, or mend it")
    if is_module(arguments.source):
        if arguments.calibration is not None:
            raise ConfigError("--calibration has no effect on a plain module; leave it out")
        if arguments.head:
            raise ConfigError("--head has no effect on a plain module, whose matrices are all quantized; leave it out")
        quantize_module(arguments.source, arguments.target, settings, can_replace=arguments.overwrite)
    elif is_encoder(read_checkpoint(arguments.source, ARCHITECTURES)):
        return _quantize_encoder(arguments, settings)
    elif arguments.calibration is None:
        quantize(arguments.source, arguments.target, settings, can_replace=arguments.overwrite)
    else:
        _quantize_gptq(arguments, settings)
    print(f"{arguments.scheme} copy of {arguments.source} in {arguments.target}")
    if arguments.texts is not None:
        return measure(arguments, arguments.target, arguments.source)
    print(f"measure it: rayshard compress eval {arguments.target} --original {arguments.source} --texts FILE")
    return 0


def _quantize_encoder(arguments: argparse.Namespace, settings: QuantizeSettings) -> int:
    for name in ("calibration", "texts", "tasks"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name} needs a model that generates, which {arguments.source} does not; leave it out (weights are "
                "rounded to the nearest numbers then)"
            )
    quantize(arguments.source, arguments.target, settings, can_replace=arguments.overwrite)
    print(f"{arguments.scheme} copy of {arguments.source} in {arguments.target}")
    return 0


def _check_files(arguments: argparse.Namespace) -> None:
    """What is read in the end is looked at before an hour of work."""
    if arguments.texts is not None:
        if is_module(arguments.source):
            read_csv(arguments.texts, arguments.text_column, arguments.label_column)
        else:
            read_texts(arguments.texts)
    if arguments.tasks is not None:
        read_tasks(arguments.tasks)


def _quantize_gptq(arguments: argparse.Namespace, settings: QuantizeSettings) -> None:
    try:
        from serve_app.compress.gptq import quantize_gptq  # only with the extra `compress`
    except ImportError as error:
        raise ConfigError(f"--calibration needs llm-compressor ({error}); run: pip install '.[compress]'") from error
    quantize_gptq(
        arguments.source,
        arguments.target,
        settings,
        arguments.calibration,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        max_memory_bytes=None if arguments.max_memory_gib is None else int(arguments.max_memory_gib * 2**30),
        can_replace=arguments.overwrite,
    )
