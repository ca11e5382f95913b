"""The rules of imports and of process state that docs/architecture.md states, read from the source with plain `ast`."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "serve_app").rglob("*.py"))

LAYERS = (  # what stands in one line may not import each other
    {"errors"},
    {"types"},
    {"config"},
    {"pipeline_config"},
    {"planning", "scheduling", "preprocessing", "observability", "wire"},
    {"models", "gateway"},
    {"parallel"},
    {"engine"},
    {"deployments", "training"},
    {"compress"},
    {"serve_process"},
    {"serve_command", "train_command", "compress_command", "compress_options", "key_command", "client_calls"},
    {"client_http", "client_grpc"},
    {"app", "cli", "client"},
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
STRANGERS = {("scheduling", "engine"), ("gateway", "deployments")}
TORCH_PACKAGES = {"models", "parallel", "engine", "compress", "training", "train_command", "compress_command"}
TORCH_MODULES = {"torch", "transformers", "torchao", "accelerate", "llmcompressor"}
PICKLE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAY_IMPORT_RAY = (
    "serve_app/deployments/",
    "serve_app/gateway/serve_applications.py",
    "serve_app/gateway/serve_backend.py",
    "serve_app/observability.py",
    "serve_app/app.py",
    "serve_app/training/ray_training.py",
    "serve_app/compress/distill_workers.py",
)
MAY_IMPORT_IN_FUNCTIONS = (
    "serve_app/deployments/shard.py",
    "serve_app/cli.py",
    "serve_app/train_command.py",
    "serve_app/compress_command.py",
)
MAY_READ_ENVIRONMENT = ("serve_app/config.py", "serve_app/serve_command.py")
# Where a process meets the outside: a client, foreign code, another process.
MAY_CATCH_EVERYTHING = (
    "serve_app/deployments/call_server.py",
    "serve_app/deployments/model_copy.py",
    "serve_app/deployments/pipeline.py",
    "serve_app/deployments/router.py",
    "serve_app/deployments/shard.py",
    "serve_app/deployments/step_loop.py",
    "serve_app/engine/batch_runner.py",
    "serve_app/engine/plain_processes.py",
    "serve_app/gateway/grpc_methods.py",
    "serve_app/gateway/open_inference_grpc.py",
    "serve_app/gateway/http.py",
    "serve_app/gateway/serve_applications.py",
    "serve_app/gateway/serve_backend.py",
    "serve_app/gateway/sse.py",
    "serve_app/preprocessing/template_worker.py",
    "serve_app/preprocessing/tokenizer.py",
    "serve_app/preprocessing/user_steps.py",
)


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
    def package(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]


def imports_of(tree: ast.AST, is_in_function: bool = False, is_for_types: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in modules_of(node):
                yield Import(node.lineno, module, is_in_function, is_for_types)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from imports_of(node, is_in_function or is_function, is_for_types or is_guard)


def modules_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.module == "serve_app":  # from serve_app import errors
        return [f"serve_app.{alias.name}" for alias in node.names]
    return ["." * node.level + (node.module or "")]


def layer_of(path: str) -> str | None:
    name = path.removeprefix("serve_app/").partition("/")[0].removesuffix(".py")
    return None if name in ("__init__", "protos") else name


def check_direction(path: str, tree: ast.Module) -> Iterator[str]:
    own = layer_of(path)
    if own is None:
        return
    if own not in LAYER_OF:
        yield f"{path}: {own} stands in no layer; add it to LAYERS here and to docs/architecture.md"
        return
    for imported in imports_of(tree):
        at = f"{path}:{imported.line}"
        if imported.module.startswith("."):
            yield f"{at}: a relative import; write it from serve_app"
        if imported.layer in (None, own, "protos"):
            continue
        if {own, imported.layer} in map(set, STRANGERS):
            yield f"{at}: {own} and {imported.layer} meet in types, wire and Serve handles only; move it there"
        elif LAYER_OF.get(imported.layer, len(LAYERS)) >= LAYER_OF[own]:
            yield f"{at}: {own} imports {imported.layer}, which is not below it; move what both need to a layer below"


def check_torch(path: str, tree: ast.Module) -> Iterator[str]:
    if layer_of(path) in TORCH_PACKAGES:
        return
    for imported in imports_of(tree):
        loads_torch = imported.package in TORCH_MODULES or imported.layer in TORCH_PACKAGES
        is_late = imported.is_in_function and path in MAY_IMPORT_IN_FUNCTIONS
        if loads_torch and not is_late and not imported.is_for_types:
            yield (
                f"{path}:{imported.line}: {imported.module} loads torch, and this process shall not; "
                f"import it inside a function of {MAY_IMPORT_IN_FUNCTIONS[0]}"
            )


def check_ray(path: str, tree: ast.Module) -> Iterator[str]:
    for imported in imports_of(tree):
        if imported.package == "ray" and not path.startswith(MAY_IMPORT_RAY):
            yield f"{path}:{imported.line}: imports ray; only {', '.join(MAY_IMPORT_RAY)} may: pass in what it needs"


def check_late_imports(path: str, tree: ast.Module) -> Iterator[str]:
    for imported in imports_of(tree):
        if imported.is_in_function and path not in MAY_IMPORT_IN_FUNCTIONS:
            yield f"{path}:{imported.line}: imports {imported.module} inside a function; move it to the top of the file"


def check_pickle(path: str, tree: ast.Module) -> Iterator[str]:
    for imported in imports_of(tree):
        if imported.package in PICKLE_MODULES:
            yield f"{path}:{imported.line}: {imported.module} runs what it reads; use msgspec, json or safetensors"


def check_environment(path: str, tree: ast.Module) -> Iterator[str]:
    if path in MAY_READ_ENVIRONMENT:
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) and node.module == "os" else []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        for name in {"environ", "environb", "getenv", "putenv", "unsetenv"}.intersection(names):
            line = node.lineno if isinstance(node, ast.ImportFrom | ast.Attribute) else 0
            yield f"{path}:{line}: os.{name}; read it in serve_app/config.py (read_environment) and pass it in"


def check_state(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{path}:{node.lineno}: global {', '.join(node.names)}; keep the state in an object that is passed in"


def check_excepts(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "BaseException"
        is_broad = any(name in ("Exception", "BaseException") for name in caught.strip("()").split(", "))
        last = node.body[-1]
        is_passed_on = isinstance(last, ast.Raise) and last.exc is None  # it only cleans up
        if is_broad and not is_passed_on and path not in MAY_CATCH_EVERYTHING:
            yield (
                f"{path}:{node.lineno}: catches {caught}; name the errors it expects, or add the file to "
                "MAY_CATCH_EVERYTHING if a process meets the outside there"
            )


def check_annotations(path: str, tree: ast.Module) -> Iterator[str]:
    if path == "serve_app/app.py" and any(imported.module == "__future__" for imported in imports_of(tree)):
        yield f"{path}: postponed annotations; Serve then skips the validation of args: remove the import"


CHECKS = (
    check_direction,
    check_torch,
    check_ray,
    check_late_imports,
    check_pickle,
    check_environment,
    check_state,
    check_excepts,
    check_annotations,
)


@pytest.mark.parametrize("check", CHECKS)
def test_every_module_keeps_the_rule(check: Callable[[str, ast.Module], Iterator[str]]) -> None:
    found = [line for path in SOURCES for line in check(path, ast.parse((ROOT / path).read_text()))]
    assert not found, "\n" + "\n".join(found)


def test_packages_run_nothing_when_imported() -> None:
    assert [path for path in SOURCES if path.endswith("__init__.py") and (ROOT / path).read_text().strip()] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve_app/wire/links.py", "from serve_app.engine.sampler import Sampler"),
        ("serve_app/wire/links.py", "from serve_app.planning import planner"),
        ("serve_app/errors.py", "import serve_app.types"),
        ("serve_app/engine/loader.py", "from serve_app import scheduling"),
        ("serve_app/deployments/router.py", "from serve_app.gateway.http import app"),
        ("serve_app/deployments/router.py", "from . import shard"),
        ("serve_app/helpers.py", "import os"),
        ("serve_app/gateway/http.py", "import torch.nn"),
        ("serve_app/scheduling/scheduler.py", "def run():\n    from torch import Tensor"),
        ("serve_app/deployments/router.py", "from serve_app.engine.kv_cache import KVCache"),
        ("serve_app/deployments/shard.py", "from serve_app.engine.shard import EngineShard"),
        ("serve_app/engine/loader.py", "import ray"),
        ("serve_app/gateway/http.py", "from ray import serve"),
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
    assert [line for check in CHECKS for line in check(path, tree)]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve_app/deployments/shard.py", "def run():\n    from serve_app.engine.shard import EngineShard"),
        ("serve_app/deployments/router.py", "if TYPE_CHECKING:\n    from serve_app.engine.shard import EngineShard"),
        ("serve_app/gateway/serve_backend.py", "from ray import serve\nfrom serve_app.wire.links import TokenLink"),
        ("serve_app/engine/loader.py", "try:\n    pass\nexcept (OSError, ValueError):\n    pass"),
        ("serve_app/engine/loader.py", "try:\n    pass\nexcept BaseException:\n    close()\n    raise"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [line for check in CHECKS for line in check(path, tree)] == []
