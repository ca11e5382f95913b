"""Any nn.Module as a stage of a batch model: found by its import path, cut into its ordered parts.

How a module declares its parts; the first that applies counts:

- it has a method `parts()`: modules that each map a dict of named tensors to another. A part sees the model's inputs
  and what the part before it has returned. A stage holds the parameters of its own parts only.
- it is an nn.Sequential: one tensor goes in, one comes out. A stage holds the parameters of its own children only.
- it holds an nn.ModuleList (the heaviest counts) whose members each give one tensor, the next one's first argument. All
  parameters outside the list are held by every stage, because what is computed from them cannot be known.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from serve_app.errors import ConfigError
from serve_app.planning.stage_ends import stage_ends
from serve_app.types.shards import BatchModelSettings
from serve_app.types.tensors import TensorSpec

_HIDDEN = "hidden"
_TEXT_INPUTS = {"input_ids", "lengths", "token_type_ids"}  # what a text comes to


class ModuleStage:
    """BatchStage of a module. Its parameters are on the meta device until a loader fills them."""

    def __init__(self, settings: BatchModelSettings) -> None:
        assert settings.architecture is not None
        self.module = build_module(settings.architecture, settings.arguments)
        self.inputs = _specs(self.module, "inputs", settings.inputs, settings.architecture)
        self.outputs = _specs(self.module, "outputs", settings.outputs, settings.architecture)
        _check_task(settings.task, self.inputs, settings.architecture)
        self.parameter_bytes = 0
        self.linear_kernel = ""
        self._shard = settings.shard
        self._kind, parts = _find_parts(self.module, settings.architecture, settings.shard.num_stages)
        self.first_part, self.end_part = _own_range(parts, settings.shard.stage, settings.shard.num_stages)
        self._parts = parts[self.first_part : self.end_part]
        self._incoming: Tensor | None = None
        if self._kind == "list":
            self._cut_list(parts)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that this stage holds, by name; a shared one under each of its names."""
        held = {id(parameter) for holder in self._holders() for parameter in holder.parameters()}
        named = self.module.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if id(parameter) in held}

    def own_buffers(self) -> dict[str, Tensor]:
        """The buffers that this stage holds."""
        held = {id(buffer) for holder in self._holders() for buffer in holder.buffers()}
        named = self.module.named_buffers(remove_duplicate=False)
        return {name: buffer for name, buffer in named if id(buffer) in held}

    def replace(self, name: str, new: nn.Module) -> None:
        """Put a module in another's place, which may be a part or the whole."""
        old = self.module.get_submodule(name)
        self._parts = [new if part is old else part for part in self._parts]
        if old is self.module:
            self.module = new
            return
        parent, _, leaf = name.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, new)

    @property
    def root(self) -> nn.Module:
        """See BatchStage."""
        return self.module

    @property
    def token_embedding(self) -> nn.Module | None:
        """See BatchStage: of a module the only nn.Embedding that it has."""
        found = [module for module in self.module.modules() if isinstance(module, nn.Embedding)]
        return found[0] if len(found) == 1 and self._shard.is_first else None

    @property
    def column_layers(self) -> list[nn.Module] | None:
        """See BatchStage: a module has one rank."""
        return []

    def drop_others(self) -> None:
        """Drop everything that this stage does not run."""
        if self._kind in ("declared", "sequential"):
            self.module = nn.ModuleList(self._parts)

    def forward(self, inputs: dict[str, Tensor], hidden: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Run this stage's parts; see BatchStage."""
        if self._kind == "declared":
            state = hidden or {}
            for part in self._parts:
                state = part({**inputs, **state})
            return state
        if self._kind == "sequential":
            tensor = inputs[next(iter(self.inputs))] if hidden is None else hidden[_HIDDEN]
            for part in self._parts:
                tensor = part(tensor)
            return {next(iter(self.outputs)) if self._shard.is_last else _HIDDEN: tensor}
        return self._forward_whole(inputs, hidden)

    def _forward_whole(self, inputs: dict[str, Tensor], hidden: dict[str, Tensor] | None) -> dict[str, Tensor]:
        self._incoming = None if hidden is None else hidden[_HIDDEN]
        try:
            output = self.module(**inputs)
        except _StageEnd as end:
            return {_HIDDEN: end.hidden}
        finally:
            self._incoming = None
        if isinstance(output, Tensor):
            return {next(iter(self.outputs)): output}
        return dict(output)

    def _cut_list(self, parts: list[nn.Module]) -> None:
        """Pass-throughs in the place of other stages' parts; hidden states come in and go out at the own ones."""
        if self._shard.num_stages == 1:
            return
        members = _heaviest_list(self.module)
        assert members is not None
        for index in range(len(parts)):
            if not self.first_part <= index < self.end_part:
                members[index] = _PassThrough()
        if not self._shard.is_first:
            self._parts[0].register_forward_pre_hook(self._inject)
        if not self._shard.is_last:
            self._parts[-1].register_forward_hook(_stop)

    def _inject(self, _part: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        return (self._incoming, *args[1:])

    def _holders(self) -> Sequence[nn.Module]:
        return [self.module] if self._kind in ("list", "whole") else self._parts


class _StageEnd(Exception):
    """The last own part is done: the rest of the module's forward is another stage's."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _PassThrough(nn.Module):
    def forward(self, hidden: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        return hidden


def _stop(_part: nn.Module, _args: tuple[object, ...], output: object) -> None:
    if not isinstance(output, Tensor):
        raise TypeError("a part of an nn.ModuleList gives one tensor; declare parts() for others")
    raise _StageEnd(output)


def import_class(path: str) -> type[nn.Module]:
    """The nn.Module subclass at `package.module:Class`. Raises ConfigError."""
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"architecture={path}: {module_name} cannot be imported ({error}); install it where the shards run, or "
            "correct the path",
            field="architecture",
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ConfigError(
            f"architecture={path}: {module_name} has no nn.Module of the name {class_name}; correct the path",
            field="architecture",
        )
    return found


def build_module(path: str, arguments: Mapping[str, object]) -> nn.Module:
    """The module in evaluation mode, its parameters on the meta device, its buffers real. Raises ConfigError."""
    module_class = import_class(path)
    hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # it may return one
    try:
        module = module_class(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"architecture={path} cannot be built with arguments={dict(arguments)}: {error}", field="arguments"
        ) from error
    finally:
        hook.remove()
    return module.eval().requires_grad_(False)


def _to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:  # one that is shared stays shared
        return parameter
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def _specs(module: nn.Module, which: str, given: dict[str, TensorSpec] | None, path: str) -> dict[str, TensorSpec]:
    specs = given or getattr(module, which, None)
    if not isinstance(specs, dict) or not specs or not all(isinstance(one, TensorSpec) for one in specs.values()):
        raise ConfigError(
            f"architecture={path} does not declare its {which}; write for example `{which}: {{x: {{dtype: float32, "
            f"shape: [batch, 16]}}}}` beside architecture, or give the class an attribute `{which}` of TensorSpecs",
            field=which,
        )
    return dict(specs)


def _check_task(task: str, inputs: dict[str, TensorSpec], path: str) -> None:
    """Every task but predict gives a module what texts come to. Raises ConfigError when it takes more."""
    spare = sorted(inputs.keys() - _TEXT_INPUTS)
    if task != "predict" and spare:
        raise ConfigError(
            f"task={task} gives a module the input_ids and lengths of texts, and architecture={path} takes {spare[0]}; "
            "set task to predict",
            field="task",
        )


def _find_parts(module: nn.Module, path: str, num_stages: int) -> tuple[str, list[nn.Module]]:
    """The kind of parts and the parts."""
    declared: Callable[[], Sequence[nn.Module]] | None = getattr(module, "parts", None)
    members = _heaviest_list(module)
    if callable(declared) and not isinstance(declared, nn.Module):  # a child may have that name
        kind, parts = "declared", list(declared())
    elif isinstance(module, nn.Sequential):
        kind, parts = "sequential", list(module)
    elif members is not None:
        kind, parts = "list", list(members)
    elif num_stages == 1:
        return "whole", [module]
    else:
        raise ConfigError(
            f"parallel.pipeline={num_stages} cannot cut architecture={path}: it has no parts(), is not an "
            "nn.Sequential and holds no nn.ModuleList; give it a method parts() -> list of modules that map a dict of "
            "named tensors to a dict, or set pipeline to 1",
            field="parallel",
        )
    if num_stages > len(parts):
        raise ConfigError(
            f"parallel.pipeline={num_stages} is longer than the {len(parts)} parts of architecture={path}; use at "
            f"most {len(parts)}",
            field="parallel",
        )
    return kind, parts


def _heaviest_list(module: nn.Module) -> nn.ModuleList | None:
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList) and len(child)]
    return max(lists, key=_num_bytes, default=None)


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _own_range(parts: list[nn.Module], stage: int, num_stages: int) -> tuple[int, int]:
    ends = stage_ends([_num_bytes(part) + 1 for part in parts], num_stages)
    return (0 if stage == 0 else ends[stage - 1]), ends[stage]
