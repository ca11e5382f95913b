"""The command `rayshard`: parsing and printing only. Neither Ray nor torch is loaded, but by `train` and `compress`."""

import argparse
import math
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli.clock import Clock
from serve_app.cli.compress_options import add_compress_command
from serve_app.cli.config_options import add_config_command
from serve_app.cli.find_cluster import FoundCluster, find_cluster
from serve_app.cli.key_command import add_key_command, make_key
from serve_app.cli.kuberay_options import add_kuberay_command
from serve_app.cli.plan_options import add_plan_command
from serve_app.cli.running_servers import servers_directory
from serve_app.cli.serve_command import process_variables, serve
from serve_app.cli.train_options import add_train_command
from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError, RayshardError

if TYPE_CHECKING:  # `serve` has its child begin before these are imported
    from serve_app.cli.check_file import CheckedFile
    from serve_app.planning.serve_file import ServeFile
    from serve_app.planning.setting_problems import Problem

_DEPLOY_S = 600.0
_DRAIN_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except ConfigError as error:  # in the environment: a command names its own
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "serve":
        return _serve(arguments.file, arguments.drain_s, arguments.host, is_plain=arguments.plain)
    if arguments.command == "deploy":
        return _deploy(arguments)
    if arguments.command == "status":
        return _status(arguments)
    if arguments.command == "train":
        return _train(arguments)
    if arguments.command == "compress":
        return _compress(arguments)
    if arguments.command == "plan":
        return _plan(arguments)
    if arguments.command == "kuberay":
        return _kuberay(arguments)
    if arguments.command == "key":
        return make_key(arguments)
    if arguments.command == "config":
        return _config(arguments)
    return _validate(arguments.file, can_download=arguments.download, is_elsewhere=arguments.elsewhere)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="rayshard", description="Serve PyTorch models split over GPU actors.")
    parser.add_argument("--version", action="version", version=f"rayshard {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="check a Serve file, then serve it on this machine until Ctrl-C")
    serving.add_argument("file", type=Path, metavar="FILE", help="relative paths in it are those of its folder")
    drain = "how long running requests may go on when it is told to stop; 0: not at all (default: %(default)g)"
    serving.add_argument("--drain-s", type=_seconds, default=_DRAIN_S, metavar="S", help=drain)
    host = "listen here, in place of the file's http_options.host; 0.0.0.0 in a container"
    serving.add_argument("--host", metavar="ADDRESS", help=host)
    plain = "without Serve's throughput mode, HAProxy in front of the Gateway"
    serving.add_argument("--plain", action="store_true", help=plain)
    validate = commands.add_parser("validate", help="name every mistake in a Serve file, without starting Ray")
    validate.add_argument("file", type=Path, metavar="FILE", help="a Serve file")
    validate.add_argument("--download", action="store_true", help="fetch models from the hub, to check them too")
    elsewhere = "it will run on another machine: do not compare with the CPUs and GPUs of this one"
    validate.add_argument("--elsewhere", action="store_true", help=elsewhere)
    deploying = commands.add_parser(
        "deploy", help="check a Serve file, have a running cluster serve it, go back when it does not run"
    )
    deploying.add_argument("file", type=Path, metavar="FILE", help="relative paths in it are those of its folder")
    _add_address(deploying)
    give_up = "how long its applications have to come up, before what ran before is put back (default: %(default)g)"
    deploying.add_argument("--timeout-s", type=_seconds, default=_DEPLOY_S, metavar="S", help=give_up)
    status = commands.add_parser("status", help="show the applications of a running cluster, their copies and queues")
    _add_address(status)
    status.add_argument("--port", type=int, help="that your `rayshard serve` listens on, where there are several")
    status.add_argument("--json", action="store_true", help="print JSON")
    add_plan_command(commands)
    add_kuberay_command(commands)
    add_train_command(commands)
    add_compress_command(commands)
    add_key_command(commands)
    add_config_command(commands)
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    where = "of Ray's dashboard (default: RAY_DASHBOARD_ADDRESS, or that of the `rayshard serve` that you run here)"
    parser.add_argument("-a", "--address", metavar="URL", help=where)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return seconds


def _compress(arguments: argparse.Namespace) -> int:
    from serve_app.cli.compress_command import run_compress

    try:
        return run_compress(arguments)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1


def _plan(arguments: argparse.Namespace) -> int:
    from serve_app.cli.plan_command import run_plan

    try:
        return run_plan(arguments)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1


def _config(arguments: argparse.Namespace) -> int:
    from serve_app.cli.config_command import run_config

    return run_config(arguments, build_parser())


def _kuberay(arguments: argparse.Namespace) -> int:
    from serve_app.cli.kuberay_command import run_kuberay

    try:
        return run_kuberay(arguments)
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


def _serve(path: Path, drain_s: float, host: str | None, *, is_plain: bool) -> int:
    def check() -> "CheckedFile":
        from serve_app.cli.check_file import check_file
        from serve_app.planning.machine import find_machine

        checked = check_file(path, can_download=True, machine=find_machine(read_environment()))
        return checked.listening_at(host)

    return serve(path, check, drain_s, is_plain=is_plain)


def _deploy(arguments: argparse.Namespace) -> int:
    from serve_app.cli.check_file import check_file
    from serve_app.cli.deploy_command import deploy

    checked = check_file(arguments.file, can_download=False)
    if checked.serve_file is None:
        return _refuse(checked.problems)
    try:
        cluster = _find_cluster(arguments.address, checked.serve_file.http_port)
        lacks = _lacks(checked.serve_file, cluster)
        if lacks:
            return _refuse(lacks)
        print(_headline(checked.serve_file), flush=True)
        return deploy(arguments.file, cluster.dashboard, arguments.timeout_s, Clock())
    except RayshardError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _status(arguments: argparse.Namespace) -> int:
    from serve_app.cli.status_command import show_status

    try:
        cluster = _find_cluster(arguments.address, arguments.port)
        return show_status(cluster.dashboard, as_json=arguments.json)
    except RayshardError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _find_cluster(address: str | None, http_port: int | None) -> FoundCluster:
    directory = servers_directory(read_environment())
    return find_cluster(address, http_port, process_variables(), directory, Clock())


def _lacks(serve_file: "ServeFile", cluster: FoundCluster) -> "list[Problem]":
    """What Ray would wait for without end, where it is known to have this machine alone."""
    from serve_app.planning.machine import find_machine
    from serve_app.planning.reservations import machine_problems

    machine = None if cluster.server is None else find_machine(read_environment(cluster.server.variables))
    if machine is None:
        return []
    return machine_problems(serve_file.models, serve_file.graphs, machine, serve_file.gateway_deployment)


def _validate(path: Path, *, can_download: bool, is_elsewhere: bool) -> int:
    from serve_app.cli.check_file import check_file
    from serve_app.cli.kernel_process import describe_kernels
    from serve_app.planning.machine import find_machine

    machine = None if is_elsewhere else find_machine(read_environment())
    checked = check_file(path, can_download=can_download, machine=machine)
    if checked.serve_file is None:
        return _refuse(checked.problems)
    try:
        kernels = [] if is_elsewhere else describe_kernels(checked.dtypes)
    except RayshardError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(_headline(checked.serve_file), checked.plan_text, *filter(None, ["\n".join(kernels)]), sep="\n\n")
    return 0


def _refuse(problems: "Sequence[Problem]") -> int:
    print(*problems, sep="\n", file=sys.stderr)
    return 1


def _headline(serve_file: "ServeFile") -> str:
    num_models = len(serve_file.models)
    models = "1 model" if num_models == 1 else f"{num_models} models"
    num_graphs = len(serve_file.graphs)
    if num_graphs:
        models += " and 1 graph" if num_graphs == 1 else f" and {num_graphs} graphs"
    return f"ok {serve_file.path}: {models} behind http://{serve_file.http_host}:{serve_file.http_port}"


if __name__ == "__main__":
    sys.exit(main())
