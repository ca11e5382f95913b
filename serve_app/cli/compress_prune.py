"""`rayshard compress prune`, and the healing of what was pruned."""

import argparse
import tempfile
from pathlib import Path

from serve_app.cli.compress_distill import losses_text
from serve_app.compress.distill import DistillSettings
from serve_app.compress.modules import is_module, prune_module
from serve_app.compress.prune import PruneSettings, prune
from serve_app.compress.student import TrainingTexts, train_student
from serve_app.errors import ConfigError


def run_prune(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status. Raises ConfigError."""
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
    print(f"pruned copy of {arguments.source} in {arguments.target}; layers kept: {kept}; {losses_text(losses)}")
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


def _folder_of(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent
