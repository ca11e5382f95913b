"""`rayshard compress`: quantize, prune, distill, eval, inspect."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.checkpoints.model_spec import read_checkpoint
from serve_app.checkpoints.module_files import read_module_quantization
from serve_app.compress.compare_served import (
    MAX_ANSWER_TOKENS,
    as_json,
    compare_served,
    describe,
    is_url,
    open_model,
)
from serve_app.compress.distill import DistillSettings
from serve_app.compress.distill_module import ModuleTexts, train_small_module
from serve_app.compress.evaluate import Scored, compare, score_tasks, take
from serve_app.compress.local_model import LocalModel
from serve_app.compress.modules import (
    count_module_weights,
    is_module,
    label_texts,
    measure_module_size,
    prune_module,
    quantize_module,
)
from serve_app.compress.prune import PruneSettings, prune
from serve_app.compress.quantize import QuantizeSettings, is_encoder, quantize
from serve_app.compress.recipe import read_recipe
from serve_app.compress.remote_model import RemoteModel
from serve_app.compress.report import (
    Measured,
    Size,
    count_weights,
    measure_size,
    read_report,
    write_label_report,
    write_report,
)
from serve_app.compress.speed import measure_speed
from serve_app.compress.student import Learnt, Lesson, TrainingTexts, train_student
from serve_app.compress.texts import read_tasks, read_texts, sequences_of
from serve_app.config.environment import prepare_ray_client, read_environment
from serve_app.errors import ConfigError
from serve_app.training.csv_rows import read_csv
from serve_app.training.worker_options import wants_workers

_MAX_SEQUENCE_TOKENS = 512


def run_compress(arguments: argparse.Namespace) -> int:
    """Run a subcommand; gives the exit status. Raises ConfigError."""
    torch.set_num_threads(arguments.threads)
    commands = {"quantize": _quantize, "prune": _prune, "distill": _distill, "eval": _evaluate, "inspect": _inspect}
    return commands[arguments.step](arguments)


def _quantize(arguments: argparse.Namespace) -> int:
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
        return _measure(arguments, arguments.target, arguments.source)
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


def _prune(arguments: argparse.Namespace) -> int:
    if is_module(arguments.source):
        return _prune_module(arguments)
    if arguments.sparsity is not None:
        raise ConfigError(
            "--sparsity is for plain modules: zeros save nothing where this model is served; give --layers, --kv-heads "
            "or --intermediate-size"
        )
    if arguments.calibration is None:
        raise ConfigError("--calibration FILE is missing: texts to measure importance on, one on each line")
    settings = PruneSettings(
        arguments.layers, arguments.kv_heads, arguments.intermediate_size, num_samples=arguments.num_samples
    )
    if arguments.healing_steps < 0:
        raise ConfigError(f"--healing-steps {arguments.healing_steps} is not a number of steps; give 0 or more")
    if not arguments.healing_steps:
        kept = prune(
            arguments.source, arguments.target, settings, arguments.calibration, can_replace=arguments.overwrite
        )
        print(f"pruned copy of {arguments.source} in {arguments.target}; layers kept: {kept}")
        return 0
    with tempfile.TemporaryDirectory(dir=_folder_of(arguments.target)) as scratch:
        unhealed = Path(scratch) / "pruned"
        kept = prune(arguments.source, unhealed, settings, arguments.calibration)
        healing = DistillSettings(
            num_steps=arguments.healing_steps,
            learning_rate=arguments.learning_rate,
            task_weight=0.0,  # it is to be its source again, whatever the texts say
            seed=arguments.seed,
        )
        losses = train_student(
            arguments.source,
            unhealed,
            arguments.target,
            TrainingTexts(arguments.calibration),
            healing,
            can_replace=arguments.overwrite,
        )
    print(f"pruned copy of {arguments.source} in {arguments.target}; layers kept: {kept}; {_shown(losses)}")
    return 0


def _prune_module(arguments: argparse.Namespace) -> int:
    given = [name for name in ("layers", "kv_heads", "intermediate_size", "calibration") if getattr(arguments, name)]
    if given or arguments.healing_steps:
        option = (given or ["healing_steps"])[0].replace("_", "-")
        raise ConfigError(f"--{option} has no effect on a plain module; leave it out")
    if arguments.sparsity is None:
        raise ConfigError("--sparsity is missing: the share of each matrix that becomes zero")
    share = prune_module(arguments.source, arguments.target, arguments.sparsity, can_replace=arguments.overwrite)
    print(f"copy of {arguments.source} in {arguments.target}; {share:.1%} of all its numbers were made zero")
    return 0


def _distill(arguments: argparse.Namespace) -> int:
    settings = DistillSettings(
        num_steps=arguments.steps,
        batch_tokens=arguments.batch_tokens,
        learning_rate=arguments.learning_rate,
        kl_weight=arguments.kl_weight,
        temperature=arguments.temperature,
        direction=arguments.direction,
        seed=arguments.seed,
    )
    settings.check()
    if is_module(arguments.teacher):
        return _distill_module(arguments, settings)
    losses = train_student(
        arguments.teacher,
        arguments.student,
        arguments.target,
        TrainingTexts(arguments.texts, arguments.unlabelled),
        settings,
        checkpoint=arguments.checkpoint,
        can_replace=arguments.overwrite,
        run=_runner(arguments),
        served=_teacher(arguments),
    )
    print(f"student of {arguments.teacher} in {arguments.target}; {_shown(losses)}")
    return 0


def _distill_module(arguments: argparse.Namespace, settings: DistillSettings) -> int:
    given = [name for name in ("teacher_url", "teacher_name", "storage") if getattr(arguments, name) is not None]
    if given or arguments.num_workers != 1:
        option = (given or ["num_workers"])[0].replace("_", "-")
        raise ConfigError(f"--{option} has no effect on a plain module; leave it out")
    losses = train_small_module(
        arguments.teacher,
        arguments.student,
        arguments.target,
        ModuleTexts(arguments.texts, arguments.unlabelled, arguments.text_column, arguments.label_column),
        settings,
        checkpoint=arguments.checkpoint,
        can_replace=arguments.overwrite,
    )
    print(f"student of {arguments.teacher} in {arguments.target}; {_shown(losses)}")
    print(f"measure it: rayshard compress eval {arguments.target} --original {arguments.teacher} --texts FILE")
    return 0


def _teacher(arguments: argparse.Namespace) -> RemoteModel | None:
    if arguments.teacher_url is None:
        if arguments.teacher_name is not None:
            raise ConfigError("--teacher-name has no effect without --teacher-url; leave it out")
        return None
    return RemoteModel(arguments.teacher_url, arguments.teacher_name, read_environment().openai_api_key)


def _runner(arguments: argparse.Namespace) -> Callable[[Lesson], Learnt] | None:
    """What trains on several workers; None: this process does. Raises ConfigError."""
    if not wants_workers(arguments.num_workers, arguments.storage):
        return None
    try:
        from serve_app.compress.distill_workers import learn_on_workers  # only with the extra `train`
    except ImportError as error:
        raise ConfigError(f"--num-workers needs Ray Train ({error}); run: pip install '.[train]'") from error
    is_local = prepare_ray_client()
    return lambda lesson: learn_on_workers(
        lesson, arguments.num_workers, arguments.storage, arguments.threads, is_local=is_local
    )


def _folder_of(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def _shown(losses: list[float]) -> str:
    return f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps" if losses else "no step was left to take"


def _evaluate(arguments: argparse.Namespace) -> int:
    names = ("model_name", "original_name", "json")
    if is_url(arguments.model) or is_url(arguments.original):
        return _compare_served(arguments)
    given = [name for name in names if getattr(arguments, name) is not None]
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} has no effect without a URL; leave it out")
    return _measure(arguments, Path(arguments.model), Path(arguments.original))


def _compare_served(arguments: argparse.Namespace) -> int:
    texts = read_texts(arguments.texts)[: arguments.max_sequences]
    examples = [] if arguments.tasks is None else read_tasks(arguments.tasks)
    if arguments.max_tokens is not None:
        raise ConfigError("--max-tokens has no effect on a URL, whose texts stay whole; give shorter ones")
    original = open_model(arguments.original, arguments.original_name)
    model = open_model(arguments.model, arguments.model_name)
    comparison = compare_served(original, model, texts, examples, has_speed=arguments.speed)
    print(describe(comparison))
    if arguments.json is not None:
        arguments.json.write_text(as_json(comparison))
    return 0


def _measure_module(arguments: argparse.Namespace, directory: Path, original_directory: Path) -> int:
    if arguments.tasks is not None or arguments.speed:
        raise ConfigError("--tasks and --speed have no effect on a plain module; leave them out")
    rows = read_csv(arguments.texts, arguments.text_column, arguments.label_column).rows
    num_weights = count_module_weights(original_directory)
    sizes = [measure_module_size(one, num_weights) for one in (original_directory, directory)]
    labelling = label_texts(original_directory, directory, rows)
    write_label_report(directory, original_directory, arguments.texts, (sizes[0], sizes[1]), labelling)
    print((directory / "report.md").read_text())
    return 0


def _measure(arguments: argparse.Namespace, directory: Path, original_directory: Path) -> int:
    if is_module(original_directory):
        return _measure_module(arguments, directory, original_directory)
    if is_encoder(read_checkpoint(original_directory, ARCHITECTURES)):
        raise ConfigError(f"{original_directory} is an encoder; eval measures models that generate, and plain modules")
    texts = read_texts(arguments.texts)
    examples = None if arguments.tasks is None else read_tasks(arguments.tasks)
    original, model = LocalModel(original_directory), LocalModel(directory)
    _check_comparable(original, model)
    max_tokens = arguments.max_tokens or _MAX_SEQUENCE_TOKENS
    longest = min(max_tokens, original.spec.default_max_tokens or max_tokens)
    sequences = take(sequences_of(texts, original.tokenizer, longest), arguments.max_sequences)
    if not sequences:
        raise ConfigError(f"{arguments.texts} holds no text of two tokens; give longer ones")
    num_weights = count_weights(original.spec)
    measured = Measured(
        size=measure_size(directory, num_weights),
        original_size=measure_size(original_directory, num_weights),
        quality=compare(original, model, sequences),
        tasks=[] if examples is None else score_tasks(model, examples, MAX_ANSWER_TOKENS),
        original_tasks=[] if examples is None else score_tasks(original, examples, MAX_ANSWER_TOKENS),
        speed=measure_speed(model) if arguments.speed else [],
        original_speed=measure_speed(original) if arguments.speed else [],
    )
    write_report(directory, original_directory, arguments.texts, measured)
    print((directory / "report.md").read_text())
    return 0


def _check_comparable(original: LocalModel, model: Scored) -> None:
    text = "Ünïcode, 12 words and a 😀."
    if original.tokenizer.encode(text) != model.tokenizer.encode(text):
        raise ConfigError("the two models have different tokenizers, so their tokens cannot be compared")


def _inspect(arguments: argparse.Namespace) -> int:
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
