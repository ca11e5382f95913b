"""The command `rayshard`: parsing and printing only. Neither Ray nor torch is loaded, but by `train` and `compress`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.checkpoints.quality_gate import check_quality
from serve_app.checkpoints.source import find_snapshot, is_hub_id, resolve_source
from serve_app.checkpoints.weights_download import find_weights
from serve_app.cli.compress_options import add_compress_command
from serve_app.cli.key_command import add_key_command, make_key
from serve_app.cli.serve_command import serve
from serve_app.config.environment import Environment, read_environment
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import ConfigError
from serve_app.gateway.key_file import read_key_file
from serve_app.graphs.check import ModelPort, check_graph, port_of_config, result_kind
from serve_app.planning.planner import (
    check_split,
    describe_plan,
    format_plan,
    plan_shards,
    served_dtype,
    served_max_model_len,
)
from serve_app.planning.serve_file import GraphApplication, ModelApplication, ServeFile, inspect_serve_file
from serve_app.planning.served_model import plan_batch_model
from serve_app.planning.setting_problems import Problem
from serve_app.preprocessing.chain import ChainModel, check_chains
from serve_app.preprocessing.tokenizer_files import read_tokenizer_files


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "serve":
        return _serve(arguments.file)
    if arguments.command == "train":
        return _train(arguments)
    if arguments.command == "compress":
        return _compress(arguments)
    if arguments.command == "key":
        return make_key(arguments)
    return _validate(arguments.file, can_download=arguments.download)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rayshard", description="Serve PyTorch models split over GPU actors.")
    parser.add_argument("--version", action="version", version=f"rayshard {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="check a Serve file, then serve it on this machine until Ctrl-C")
    serving.add_argument("file", type=Path, metavar="FILE")
    validate = commands.add_parser("validate", help="name every mistake in a Serve file, without starting Ray")
    validate.add_argument("file", type=Path, metavar="FILE")
    validate.add_argument("--download", action="store_true", help="fetch models from the hub, to check them too")
    _add_training(commands)
    add_compress_command(commands)
    add_key_command(commands)
    return parser


def _add_training(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    training = commands.add_parser("train", help="train a text classifier on a CSV file")
    training.add_argument("file", type=Path, metavar="CSV")
    training.add_argument("directory", type=Path, metavar="DIRECTORY", help="where the model is written")
    training.add_argument("--text-column", default="text", metavar="NAME")
    training.add_argument("--label-column", default="label", metavar="NAME")
    training.add_argument("--held-out", type=Path, metavar="CSV", help="score the model on these rows in the end")
    training.add_argument("--overwrite", action="store_true", help="write into a directory that is not empty")
    training.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of torch; with one, the same bytes again"
    )
    training.add_argument(
        "--num-workers", type=int, default=1, metavar="N", help="train data-parallel on a Ray cluster (RAY_ADDRESS)"
    )
    training.add_argument(
        "--storage", metavar="PATH", help="a folder or URI that all nodes of a cluster reach, for snapshots"
    )
    numbers: dict[str, type[float]] = {
        "seed": int,
        "max_epochs": int,
        "patience": int,
        "batch_size": int,
        "embedding_dim": int,
    }
    numbers |= {"hidden_size": int, "min_frequency": int, "validation_share": float, "learning_rate": float}
    numbers |= {"dropout": float, "word_dropout": float}
    for name, kind in numbers.items():
        option = f"--{name.replace('_', '-')}"
        training.add_argument(option, type=kind, default=argparse.SUPPRESS, metavar="N")


def _compress(arguments: argparse.Namespace) -> int:
    from serve_app.cli.compress_command import run_compress

    try:
        return run_compress(arguments)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1


def _train(arguments: argparse.Namespace) -> int:
    from serve_app.cli.train_command import run_training

    try:
        return run_training(arguments)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1


def _version() -> str:
    try:
        return version("rayshard")
    except PackageNotFoundError:
        return "(not installed)"


@dataclass(frozen=True, slots=True)
class _CheckedFile:
    serve_file: ServeFile | None  # None when there are problems
    plan_text: str
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class _CheckedModel:
    text: str  # its part of the plan
    problems: list[Problem]
    labels: list[str] | None = None  # by output index; None: not known


def _serve(path: Path) -> int:
    checked = _check_file(path, can_download=True)
    if checked.serve_file is None:
        return _refuse(checked.problems)
    return serve(checked.serve_file, checked.plan_text)


def _validate(path: Path, *, can_download: bool) -> int:
    checked = _check_file(path, can_download=can_download)
    if checked.serve_file is None:
        return _refuse(checked.problems)
    print(_headline(checked.serve_file), checked.plan_text, sep="\n\n")
    return 0


def _refuse(problems: Sequence[Problem]) -> int:
    print(*problems, sep="\n", file=sys.stderr)
    return 1


def _check_file(path: Path, *, can_download: bool) -> _CheckedFile:
    report = inspect_serve_file(path)
    environment = read_environment()
    keys = _check_keys(report.gateway, path)
    models = [_check_model(model, path, environment, can_download=can_download) for model in report.models]
    ports: dict[str, ModelPort] = {}
    for model, known in zip(report.models, models, strict=True):
        ports[model.config.name] = port_of_config(model.config, known.labels)
    if not report.has_unread_models:  # else it is not known which models there are
        models += [_check_graph(graph, ports) for graph in report.graphs]
    problems = [*report.problems, *keys, *(problem for model in models for problem in model.problems)]
    plan_text = "\n\n".join(model.text for model in models)
    return _CheckedFile(None if problems else report.serve_file, plan_text, problems)


def _headline(serve_file: ServeFile) -> str:
    num_models = len(serve_file.models)
    models = "1 model" if num_models == 1 else f"{num_models} models"
    num_graphs = len(serve_file.graphs)
    if num_graphs:
        models += " and 1 graph" if num_graphs == 1 else f" and {num_graphs} graphs"
    return f"ok {serve_file.path}: {models} behind http://{serve_file.http_host}:{serve_file.http_port}"


def _check_keys(gateway: GatewayConfig | None, path: Path) -> list[Problem]:
    if gateway is None or gateway.api_keys_file is None:
        return []
    try:
        read_key_file(path.resolve().parent / Path(gateway.api_keys_file).expanduser())
    except ConfigError as error:
        return [Problem("api_keys_file", error.message)]
    return []


def _check_model(model: ModelApplication, path: Path, environment: Environment, *, can_download: bool) -> _CheckedModel:
    config, where, base_dir = model.config, model.where, path.resolve().parent
    is_on_hub = is_hub_id(config.source, base_dir)
    try:
        if is_on_hub and not can_download and find_snapshot(config.source, config.revision, environment) is None:
            text = f"{config.name}: {config.source} is not on this machine yet; --download fetches and checks it"
            return _CheckedModel(text, [])
        weights = config.remote_weights
        if weights is not None and not can_download and find_weights(weights, environment.weights_cache_dir) is None:
            text = f"{config.name}: {weights.url} is not on this machine yet; --download fetches and checks it"
            return _CheckedModel(text, [])
        if not config.is_generative:
            batch_plan = plan_batch_model(config, base_dir, environment)
            source_dir = Path(batch_plan.source.directory)
            unfit = check_chains(config, ChainModel(source_dir, batch_plan.spec.labels))
            if config.quality is not None:
                unfit += check_quality(source_dir, config.quality)
            problems = [Problem(where, message) for message in unfit]
            return _CheckedModel(batch_plan.text, problems, batch_plan.labels or None)
        source_dir = resolve_source(config.source, config.revision, base_dir, environment, config.remote_weights)
        spec = read_model_spec(source_dir)
        read_tokenizer_files(source_dir)
        unfit = [*check_split(spec, config), *check_chains(config, ChainModel(Path(source_dir)))]
        if config.quality is not None:
            unfit += check_quality(source_dir, config.quality)
        problems = [Problem(where, message) for message in unfit]
        if problems:
            return _CheckedModel("", problems)
        plan = plan_shards(spec, config.parallel.pipeline, config.parallel.tensor)
        rows = describe_plan(spec, plan, config)
    except ConfigError as error:
        return _CheckedModel("", [Problem(where, error.message)])
    text = (
        f"{config.name}: {spec.model_type}, {spec.num_layers} layers, {served_dtype(spec, config)}, "
        f"up to {served_max_model_len(spec, config)} tokens, from {source_dir}\n{format_plan(rows)}"
    )
    return _CheckedModel(text, [])


def _check_graph(graph: GraphApplication, ports: dict[str, ModelPort]) -> _CheckedModel:
    config = graph.config
    problems = [Problem(graph.where, message) for message in check_graph(config, ports)]
    if problems:
        return _CheckedModel("", problems)
    steps = ", ".join(step.name for step in config.ordered_steps)
    joined = ", ".join(config.models) or "no models"
    return _CheckedModel(f"{config.name}: graph {steps} over {joined}; gives {result_kind(config, ports)}", [])


if __name__ == "__main__":
    sys.exit(main())
