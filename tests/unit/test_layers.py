"""The rules of imports and of process state that docs/architecture.md states, read from the source with plain `ast`."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "serve_app").rglob("*.py"))

LAYERS = (  # what stands in one line may not import each other
    {"errors", "freed_memory"},
    {"types"},
    {"config", "architectures"},
    {"autoscaling", "checkpoints", "scheduling", "preprocessing", "observability", "wire", "metrics", "tracing"},
    {"planning", "backend"},
    {"models", "gateway", "kuberay"},
    {"parallel"},
    {"engine"},
    {"deployments", "training"},
    {"graphs", "compress"},
    {"client"},
    {"cli", "app"},
)
GATEWAY_LAYERS = (  # a carrier turns bytes into a checked body, calls turn it into an answer, the carrier encodes that
    {"request_span"},
    {"bodies", "caller", "failures", "intake", "key_file", "open_streams", "request_notes"},
    {"api_keys", "time_limits"},
    {"calls"},
    {"batches"},
    {"http", "grpc"},
    {"deployment"},
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
GATEWAY_LAYER_OF = {name: number for number, layer in enumerate(GATEWAY_LAYERS) for name in layer}
STRANGERS = {("scheduling", "engine"), ("gateway", "deployments"), ("gateway", "graphs")}
TORCH_PACKAGES = {"models", "parallel", "engine", "compress", "training"}
TORCH_COMMANDS = (
    "serve_app/cli/compress_command.py",
    "serve_app/cli/compress_distill.py",
    "serve_app/cli/compress_inspect.py",
    "serve_app/cli/compress_measure.py",
    "serve_app/cli/compress_prune.py",
    "serve_app/cli/compress_quantize.py",
    "serve_app/cli/train_command.py",
)
TORCH_MODULES = {"torch", "transformers", "torchao", "accelerate", "llmcompressor"}
PICKLE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAX_ROOT_FILES = 7  # of serve_app; what is more than that belongs in a room
PERMITS: dict[str, tuple[str, ...]] = {  # by rule: files, or folders, that may do what the rule forbids
    "ray": (
        "serve_app/app.py",
        "serve_app/backend/ray_rooms.py",
        "serve_app/backend/serve_control.py",
        "serve_app/cli/serve_child.py",
        "serve_app/cli/serve_deployment.py",
        "serve_app/compress/distill_workers.py",
        "serve_app/deployments/loopback_grpc.py",
        "serve_app/deployments/serve_replica.py",
        "serve_app/deployments/shard.py",
        "serve_app/deployments/shard_actors.py",
        "serve_app/metrics/ray_export.py",
        "serve_app/training/ray_training.py",
    ),
    "late import": (  # torch of an actor, the engine of a shard's kind, commands that load torch or an extra, the hub
        "serve_app/checkpoints/source.py",
        "serve_app/cli/compress_distill.py",
        "serve_app/cli/compress_quantize.py",
        "serve_app/cli/main.py",
        "serve_app/cli/train_command.py",
        "serve_app/deployments/shard.py",
        "serve_app/engine/attention/choice.py",
        "serve_app/engine/batch_loader.py",
        "serve_app/engine/shard.py",
        "serve_app/tracing/start.py",
    ),
    "late torch": ("serve_app/cli/main.py", "serve_app/deployments/shard.py"),
    "environment": (
        "serve_app/cli/serve_command.py",
        "serve_app/config/environment.py",
        "serve_app/deployments/fork_server.py",
        "serve_app/deployments/shard_process.py",  # hands its own on
        "serve_app/deployments/worker_process.py",
    ),
    "broad except": (  # where a process meets the outside: a client, foreign code, another process
        "serve_app/backend/applications.py",
        "serve_app/backend/open_calls.py",
        "serve_app/backend/serve_backend.py",
        "serve_app/deployments/model_copy.py",
        "serve_app/deployments/replica_links.py",
        "serve_app/engine/batch_runner.py",
        "serve_app/engine/module_check.py",
        "serve_app/engine/output_reader.py",
        "serve_app/engine/plain_processes.py",
        "serve_app/gateway/batches/worker.py",
        "serve_app/gateway/grpc/calls.py",
        "serve_app/gateway/grpc/health.py",
        "serve_app/gateway/grpc/methods.py",
        "serve_app/gateway/grpc/open_inference.py",
        "serve_app/gateway/http/inner_call.py",
        "serve_app/gateway/http/middleware.py",
        "serve_app/gateway/http/sse.py",
        "serve_app/preprocessing/grammar_worker.py",
        "serve_app/preprocessing/template_worker.py",
        "serve_app/preprocessing/tokenizer.py",
        "serve_app/preprocessing/user_steps.py",
        "serve_app/wire/loop_socket.py",  # told by the task that waits
    ),
    "code in __init__": ("serve_app/client/__init__.py",),  # what users of the client import
}


@dataclass(frozen=True)
class Finding:
    """A rule that a line breaks, unless its file has a permit."""

    path: str
    line: int
    message: str
    permit: str | None = None  # which would allow it

    @property
    def permitted_by(self) -> str | None:
        """The entry of PERMITS that allows it."""
        return next((one for one in PERMITS.get(self.permit or "", ()) if self.path.startswith(one)), None)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Import:
    """One imported module as it stands in a file."""

    line: int
    module: str
    is_in_function: bool
    is_for_types: bool  # under `if TYPE_CHECKING`: it does not happen

    @property
    def layer(self) -> str | None:
        """The part of serve_app that it belongs to; None outside."""
        first, _, rest = self.module.partition(".")
        return (rest.partition(".")[0] or None) if first == "serve_app" else None

    @property
    def loads_torch(self) -> bool:
        """Whether torch comes with it."""
        path = self.module.replace(".", "/") + ".py"
        return self.package in TORCH_MODULES or self.layer in TORCH_PACKAGES or path in TORCH_COMMANDS

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]


@cache
def imports_of(tree: ast.Module) -> tuple[Import, ...]:
    return tuple(imports_under(tree))


@cache
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree))


def imports_under(tree: ast.AST, is_in_function: bool = False, is_for_types: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in modules_of(node):
                yield Import(node.lineno, module, is_in_function, is_for_types)
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports_under(node, is_in_function or is_function, is_for_types or is_guard)


def modules_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.module == "serve_app":  # from serve_app import errors
        return [f"serve_app.{alias.name}" for alias in node.names]
    return ["." * node.level + (node.module or "")]


def layer_of(path: str) -> str | None:
    name = path.removeprefix("serve_app/").partition("/")[0].removesuffix(".py")
    return None if name in ("__init__", "protos") else name


def check_direction(path: str, tree: ast.Module) -> Iterator[Finding]:
    own = layer_of(path)
    if own is None:
        return
    if own not in LAYER_OF:
        yield Finding(path, 1, f"{own} is in no layer; add it to LAYERS here and to docs/architecture.md")
        return
    for imported in imports_of(tree):
        if imported.module.startswith("."):
            yield Finding(path, imported.line, "a relative import; write it from serve_app")
        if imported.layer in (None, own, "protos"):
            continue
        if {own, imported.layer} in map(set, STRANGERS):
            message = f"{own} and {imported.layer} meet in types, wire and backend only; move it there"
            yield Finding(path, imported.line, message)
        elif LAYER_OF.get(imported.layer, len(LAYERS)) >= LAYER_OF[own]:
            message = f"{own} imports {imported.layer}, which is not below it; move what both need to a layer below"
            yield Finding(path, imported.line, message)


def gateway_room(module: str) -> str | None:
    """`bodies` of `serve_app.gateway.bodies.openai`."""
    name = module.removeprefix("serve_app.gateway.")
    return None if name == module else name.partition(".")[0]


def check_gateway_direction(path: str, tree: ast.Module) -> Iterator[Finding]:
    own = gateway_room(path.removesuffix(".py").replace("/", "."))
    if own is None or own == "__init__":
        return
    if own not in GATEWAY_LAYER_OF:
        yield Finding(path, 1, f"gateway.{own} is in no layer; add it to GATEWAY_LAYERS")
        return
    for imported in imports_of(tree):
        room = gateway_room(imported.module)
        if room is not None and room != own and GATEWAY_LAYER_OF.get(room, 99) >= GATEWAY_LAYER_OF[own]:
            yield Finding(path, imported.line, f"gateway.{own} imports gateway.{room}, which is not below it")


def check_torch(path: str, tree: ast.Module) -> Iterator[Finding]:
    if layer_of(path) in TORCH_PACKAGES or path in TORCH_COMMANDS:
        return
    for imported in imports_of(tree):
        if imported.loads_torch and not imported.is_for_types:
            message = f"{imported.module} loads torch, and this process shall not"
            yield Finding(path, imported.line, message, "late torch" if imported.is_in_function else None)


def check_ray(path: str, tree: ast.Module) -> Iterator[Finding]:
    for imported in imports_of(tree):
        if imported.package == "ray":
            yield Finding(path, imported.line, "imports ray; pass in what it needs", "ray")


def check_late_imports(path: str, tree: ast.Module) -> Iterator[Finding]:
    for imported in imports_of(tree):
        if imported.is_in_function:
            message = f"imports {imported.module} inside a function; move it to the top of the file"
            yield Finding(path, imported.line, message, "late import")


def check_pickle(path: str, tree: ast.Module) -> Iterator[Finding]:
    for imported in imports_of(tree):
        if imported.package in PICKLE_MODULES:
            yield Finding(
                path, imported.line, f"{imported.module} runs what it reads; use msgspec, json or safetensors"
            )


def check_environment(path: str, tree: ast.Module) -> Iterator[Finding]:
    for node in nodes_of(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) and node.module == "os" else []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        for name in {"environ", "environb", "getenv", "putenv", "unsetenv"}.intersection(names):
            line = node.lineno if isinstance(node, ast.ImportFrom | ast.Attribute) else 0
            message = f"os.{name}; read it in serve_app/config/environment.py and pass it in"
            yield Finding(path, line, message, "environment")


def check_state(path: str, tree: ast.Module) -> Iterator[Finding]:
    for node in nodes_of(tree):
        if isinstance(node, ast.Global):
            message = f"global {', '.join(node.names)}; keep the state in an object that is passed in"
            yield Finding(path, node.lineno, message)


def check_excepts(path: str, tree: ast.Module) -> Iterator[Finding]:
    for node in nodes_of(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "BaseException"
        is_broad = any(name in ("Exception", "BaseException") for name in caught.strip("()").split(", "))
        last = node.body[-1]
        is_passed_on = isinstance(last, ast.Raise) and last.exc is None  # it only cleans up
        if is_broad and not is_passed_on:
            yield Finding(path, node.lineno, f"catches {caught}; name the errors it expects", "broad except")


def check_annotations(path: str, tree: ast.Module) -> Iterator[Finding]:
    if path == "serve_app/app.py" and any(imported.module == "__future__" for imported in imports_of(tree)):
        message = "postponed annotations; Serve then skips the validation of args: remove the import"
        yield Finding(path, 1, message)


def check_packages(path: str, tree: ast.Module) -> Iterator[Finding]:
    if path.endswith("__init__.py") and tree.body:
        yield Finding(path, 1, "a package runs nothing when it is imported", "code in __init__")


CHECKS = (
    check_direction,
    check_gateway_direction,
    check_torch,
    check_ray,
    check_late_imports,
    check_pickle,
    check_environment,
    check_state,
    check_excepts,
    check_annotations,
    check_packages,
)


@cache
def findings() -> tuple[Finding, ...]:
    trees = {path: ast.parse((ROOT / path).read_text()) for path in SOURCES}
    return tuple(finding for path, tree in trees.items() for check in CHECKS for finding in check(path, tree))


def test_every_module_keeps_the_rules() -> None:
    broken = [str(finding) for finding in findings() if finding.permitted_by is None]
    assert not broken, "\n" + "\n".join(broken)


def test_no_permit_is_left_that_nobody_uses() -> None:
    used = {(finding.permit, finding.permitted_by) for finding in findings()}
    assert [(rule, one) for rule, allowed in PERMITS.items() for one in allowed if (rule, one) not in used] == []


def test_few_files_lie_outside_the_rooms() -> None:
    assert len(list((ROOT / "serve_app").glob("*.py"))) <= MAX_ROOT_FILES


def test_unit_tests_mirror_the_tree() -> None:
    rooms = {path.name for path in (ROOT / "serve_app").iterdir() if path.is_dir()} | {"bench", "cluster", "examples"}
    here = ROOT / "tests" / "unit"
    assert {path.name for path in here.iterdir() if path.is_dir()} - rooms - {"__pycache__"} == set()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve_app/wire/links.py", "from serve_app.engine.sampler import Sampler"),
        ("serve_app/wire/links.py", "from serve_app.planning import planner"),
        ("serve_app/errors.py", "import serve_app.types"),
        ("serve_app/engine/loader.py", "from serve_app import scheduling"),
        ("serve_app/deployments/router.py", "from serve_app.gateway.http.app import build_http_app"),
        ("serve_app/deployments/router.py", "from . import shard"),
        ("serve_app/helpers.py", "import os"),
        ("serve_app/gateway/http/app.py", "import torch.nn"),
        ("serve_app/scheduling/scheduler.py", "def run():\n    from torch import Tensor"),
        ("serve_app/deployments/router.py", "from serve_app.engine.kv_cache import KVCache"),
        ("serve_app/deployments/shard.py", "from serve_app.engine.shard import EngineShard"),
        ("serve_app/gateway/bodies/openai.py", "from serve_app.gateway.http.app import app"),
        ("serve_app/gateway/calls/reader.py", "from serve_app.gateway.grpc.methods import GrpcMethods"),
        ("serve_app/gateway/caller.py", "from serve_app.gateway.deployment import Gateway"),
        ("serve_app/cli/main.py", "from serve_app.cli.train_command import run_training"),
        ("serve_app/wire/__init__.py", "LINKS = 3"),
        ("serve_app/engine/loader.py", "import ray"),
        ("serve_app/gateway/http/app.py", "from ray import serve"),
        ("serve_app/engine/loader.py", "def run():\n    import json"),
        ("serve_app/wire/links.py", "import pickle"),
        ("serve_app/engine/loader.py", "import os\nhome = os.environ['HOME']"),
        ("serve_app/engine/loader.py", "from os import getenv"),
        ("serve_app/engine/loader.py", "def run():\n    global rank"),
        ("serve_app/engine/loader.py", "try:\n    pass\nexcept (ValueError, Exception):\n    pass"),
        ("serve_app/engine/loader.py", "try:\n    pass\nexcept:\n    pass"),
        ("serve_app/app.py", "from __future__ import annotations"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [one for check in CHECKS for one in check(path, tree) if one.permitted_by is None]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve_app/deployments/shard.py", "def run():\n    from serve_app.engine.shard import EngineShard"),
        ("serve_app/deployments/router.py", "if TYPE_CHECKING:\n    from serve_app.engine.shard import EngineShard"),
        ("serve_app/backend/serve_control.py", "from ray import serve\nfrom serve_app.wire.links import Senders"),
        ("serve_app/engine/loader.py", "try:\n    pass\nexcept (OSError, ValueError):\n    pass"),
        ("serve_app/engine/loader.py", "try:\n    pass\nexcept BaseException:\n    close()\n    raise"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [one for check in CHECKS for one in check(path, tree) if one.permitted_by is None] == []
