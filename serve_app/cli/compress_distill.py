"""`rayshard compress distill`, in this process or on workers."""

import argparse
from collections.abc import Callable

from serve_app.compress.distill import DistillSettings
from serve_app.compress.distill_module import ModuleTexts, train_small_module
from serve_app.compress.modules import is_module
from serve_app.compress.remote_model import RemoteModel
from serve_app.compress.student import Learnt, Lesson, TrainingTexts, train_student
from serve_app.config.environment import prepare_ray_client, read_environment
from serve_app.errors import ConfigError
from serve_app.training.worker_options import wants_workers


def run_distill(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status. Raises ConfigError."""
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
    print(f"student of {arguments.teacher} in {arguments.target}; {losses_text(losses)}")
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
    print(f"student of {arguments.teacher} in {arguments.target}; {losses_text(losses)}")
    print(f"measure it: rayshard compress eval {arguments.target} --original {arguments.teacher} --texts FILE")
    return 0


def losses_text(losses: list[float]) -> str:
    """How far training has come, for a person."""
    return f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps" if losses else "no step was left to take"


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
