"""What `rayshard validate` and `rayshard serve` check before anything is started."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.checkpoints.encoder_spec import EncoderSpec
from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.checkpoints.source import find_snapshot, is_hub_id
from serve_app.checkpoints.weights_download import find_weights
from serve_app.cli.module_check_process import find_module_problems
from serve_app.config.batches import check_batches_directory
from serve_app.config.environment import Environment, read_environment
from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.gateway.key_file import read_key_file
from serve_app.graphs.check import ModelKinds, check_graph, port_of_config, result_kind
from serve_app.planning.auto_parallel import with_parallel
from serve_app.planning.float8_problem import float8_problem
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.machine import Machine, capability_of
from serve_app.planning.planner import served_dtype
from serve_app.planning.reservations import cpu_engines, machine_problems
from serve_app.planning.serve_file import (
    GraphApplication,
    ModelApplication,
    ServeFile,
    ServeFileReport,
    inspect_serve_file,
)
from serve_app.planning.served_model import plan_batch_model
from serve_app.planning.setting_problems import Problem
from serve_app.planning.text_facts import TextFacts
from serve_app.preprocessing.chain import ChainModel, check_chains
from serve_app.preprocessing.tokenizer_files import read_tokenizer_files
from serve_app.tracing.start import check_exporter
from serve_app.types.shards import BatchModelSettings, EngineKind


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A Serve file after its checks."""

    serve_file: ServeFile | None  # None when there are problems
    plan_text: str
    problems: list[Problem]
    dtypes: list[tuple[ModelConfig, str]]  # of transformers models whose files could be read
    cpu_engines: list[EngineKind]  # that its shards on CPU run

    def listening_at(self, host: str | None) -> "CheckedFile":
        """The file with another address to listen at; None: its own."""
        if host is None or self.serve_file is None:
            return self
        return replace(self, serve_file=replace(self.serve_file, http_host=host))


@dataclass(frozen=True, slots=True)
class _CheckedModel:
    text: str  # its part of the plan
    problems: list[Problem]
    labels: list[str] | None = None  # by output index; None: not known
    config: ModelConfig | None = None  # with what its files say; None: they could not be read
    stages: list[BatchModelSettings] | None = None  # of a plain module, whose class is to be asked
    dtype: str | None = None  # that its weights are served in; None: not known, or a plain module's


def check_file(path: Path, *, can_download: bool, machine: Machine | None = None) -> CheckedFile:
    """Every mistake in a Serve file, in its models and graphs and in the files that it names; Ray is not started.

    machine: where it is to run; None: it is not known what there is.
    """
    environment = read_environment()
    check_exporter(environment.tracing)
    report = _with_splits(inspect_serve_file(path), path, environment, can_download=can_download)
    named = [*_check_keys(report.gateway, path), *_check_batches(report.gateway, path)]
    models = [_check_model(model, path, environment, machine, can_download=can_download) for model in report.models]
    modules = _check_modules(report.models, models)
    lacks = []
    if machine is not None:
        lacks = machine_problems(report.models, report.graphs, machine, report.gateway_deployment)
    ports: dict[str, ModelKinds] = {}
    for model, known in zip(report.models, models, strict=True):
        ports[model.config.name] = port_of_config(known.config or model.config, known.labels)
    if not report.has_unread_models:  # else it is not known which models there are
        models += [_check_graph(graph, ports) for graph in report.graphs]
    found = [problem for model in models for problem in model.problems]
    problems = [*report.problems, *named, *lacks, *found, *modules]
    plan_text = "\n\n".join(model.text for model in models)
    pairs = zip(report.models, models, strict=False)  # graphs come after the models
    dtypes = [(model.config, one.dtype) for model, one in pairs if one.dtype is not None]
    engines = cpu_engines(report.models)
    return CheckedFile(None if problems else report.serve_file, plan_text, problems, dtypes, engines)


def _with_splits(
    report: ServeFileReport, path: Path, environment: Environment, *, can_download: bool
) -> ServeFileReport:
    """The report with a split in place of `parallel: auto`, of models that are on this machine."""
    models: list[ModelApplication] = []
    problems: list[Problem] = []
    base_dir = path.resolve().parent
    for model in report.models:
        split = model.config
        try:
            if can_download or _not_here(split, base_dir, environment) is None:
                split = with_parallel(split, base_dir, environment)
        except ConfigError as error:
            if error.field == "parallel":  # others are found again where the model is checked
                problems.append(Problem(f"{model.where}.parallel", error.message))
        models.append(replace(model, config=split))
    served = None if report.serve_file is None or problems else replace(report.serve_file, models=models)
    return replace(report, serve_file=served, models=models, problems=[*report.problems, *problems])


def _check_keys(gateway: GatewayConfig | None, path: Path) -> list[Problem]:
    if gateway is None or gateway.api_keys_file is None:
        return []
    try:
        read_key_file(path.resolve().parent / Path(gateway.api_keys_file).expanduser())
    except ConfigError as error:
        return [Problem("api_keys_file", error.message)]
    return []


def _check_batches(gateway: GatewayConfig | None, path: Path) -> list[Problem]:
    if gateway is None or gateway.batches is None:
        return []
    try:
        check_batches_directory(gateway.batches, path.resolve().parent)
    except ConfigError as error:
        return [Problem("batches.directory", error.message)]
    return []


def _check_model(
    model: ModelApplication, path: Path, environment: Environment, machine: Machine | None, *, can_download: bool
) -> _CheckedModel:
    config, base_dir = model.config, path.resolve().parent
    try:
        missing = None if can_download else _not_here(config, base_dir, environment)
        if missing is not None:
            return _CheckedModel(
                f"{config.name}: {missing} is not on this machine yet; --download fetches and checks it", []
            )
        if config.is_generative:
            return _check_generator(model, base_dir, environment, machine)
        plan = plan_batch_model(config, base_dir, environment)
    except ConfigError as error:
        return _CheckedModel("", [Problem(model.where, message) for message in error.message.split("\n")])
    stored = plan.spec.spec.quantization if isinstance(plan.spec, EncoderSpec) else None
    unfit = [*plan.problems, *check_chains(config, ChainModel(plan.text_directory, plan.spec.labels))]
    unfit += _gpu_problems(config, stored, machine)
    text = _with_warnings(plan.text, plan.facts)
    problems = [Problem(model.where, message) for message in unfit]
    is_module = plan.config.architecture is not None
    stages = [plan.settings(shard) for shard in plan.shards] if is_module else None
    dtype = served_dtype(plan.spec.spec, plan.config) if isinstance(plan.spec, EncoderSpec) else None
    return _CheckedModel(text, problems, plan.labels or None, plan.config, stages, dtype)


def _check_modules(models: list[ModelApplication], checked: list[_CheckedModel]) -> list[Problem]:
    """What loading says of plain modules: their classes, arguments, parts and tensors."""
    asked = [(model.where, one.stages) for model, one in zip(models, checked, strict=True) if one.stages is not None]
    answers = find_module_problems([stages for _where, stages in asked])
    found = zip(asked, answers, strict=True)
    return [Problem(where, answer) for (where, _stages), answer in found if answer is not None]


def _check_generator(
    model: ModelApplication, base_dir: Path, environment: Environment, machine: Machine | None
) -> _CheckedModel:
    plan = plan_generator(model.config, base_dir, environment)
    read_tokenizer_files(plan.source.directory)
    unfit = [*plan.problems, *check_chains(model.config, ChainModel(Path(plan.source.directory)))]
    unfit += _gpu_problems(model.config, plan.spec.quantization, machine)
    if unfit:
        return _CheckedModel("", [Problem(model.where, message) for message in unfit])
    dtype = served_dtype(plan.spec, plan.config)
    return _CheckedModel(_with_warnings(plan.text, plan.facts), [], dtype=dtype)


def _gpu_problems(config: ModelConfig, stored: CheckpointQuantization | None, machine: Machine | None) -> list[str]:
    """Why the model is not for the GPU that it asks for, or for that of this machine."""
    if config.device.type != "cuda":
        return []
    found = config.device.accelerator_type or (None if machine is None else machine.accelerator_type)
    wanted = None if config.quantization is None else config.quantization.for_loading
    named = config.parallel.accelerator_types
    kinds: Sequence[str | None] = [found] if named is None else named
    problems = (float8_problem(stored, wanted, capability_of(kind)) for kind in kinds)
    return list(dict.fromkeys(problem for problem in problems if problem is not None))


def _with_warnings(text: str, facts: TextFacts) -> str:
    return "\n".join([text, *(f"warning: {warning}" for warning in facts.warnings)])


def _not_here(config: ModelConfig, base_dir: Path, environment: Environment) -> str | None:
    """What would have to be downloaded first; None: nothing."""
    is_on_hub = is_hub_id(config.source, base_dir)
    if is_on_hub and find_snapshot(config.source, config.revision, environment) is None:
        return config.source
    missing = (one.url for one in config.remote_weights if find_weights(one, environment.weights_cache_dir) is None)
    return next(missing, None)


def _check_graph(graph: GraphApplication, ports: dict[str, ModelKinds]) -> _CheckedModel:
    config = graph.config
    problems = [Problem(graph.where, message) for message in check_graph(config, ports)]
    if problems:
        return _CheckedModel("", problems)
    steps = ", ".join(step.name for step in config.ordered_steps)
    joined = ", ".join(config.models) or "no models"
    return _CheckedModel(f"{config.name}: graph {steps} over {joined}; gives {result_kind(config, ports)}", [])
