"""The chains of an application's models, run in threads."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from serve_app.config.model import ModelConfig
from serve_app.errors import InternalError
from serve_app.preprocessing.chain import Chain, ChainModel, build_chains
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool
from serve_app.types.chains import ChainRequest, ChainResult, ChainValue

_NUM_THREADS = 2
_MAX_WAITING = 4096
_INLINE_CHARS = 256  # a chain over so little takes less than handing it to a thread
_INLINE_NUMBERS = 256
_INLINE_VALUES = 16


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """One model with steps, where its tokenizer is, and its labels."""

    config: ModelConfig
    directory: Path
    labels: list[str] = field(default_factory=list)  # by output index; empty: its files name none


class ChainHost:
    """Runs the chain of the model that a request names."""

    def __init__(self, specs: list[ChainSpec]) -> None:
        has_templates = any(spec.config.is_prompt_templated for spec in specs)
        self._renderer = ChatTemplateRenderer(num_workers=_NUM_THREADS) if has_templates else None
        self._chains: dict[tuple[str, bool], Chain] = {}
        self._slow: set[tuple[str, bool]] = set()  # never run on the event loop
        self._pool = TextPool(_NUM_THREADS, max_waiting=_MAX_WAITING, name="preprocessing")
        try:
            for spec in specs:
                self._add(spec)
        except BaseException:
            self.close()
            raise

    def _add(self, spec: ChainSpec) -> None:
        name = spec.config.name
        chains = build_chains(spec.config, ChainModel(spec.directory, spec.labels, self._renderer))
        self._chains |= {(name, False): chains.before, (name, True): chains.after}
        steps = {False: spec.config.preprocessing, True: spec.config.postprocessing}
        for is_after, given in steps.items():
            if any(":" in step.name or step.name == "chat_template" for step in given):
                self._slow.add((name, is_after))

    async def run(self, request: ChainRequest) -> ChainResult:
        """What the chain makes of each value. Raises a RayshardError."""
        key = (request.model, request.is_after)
        chain = self._chains.get(key)
        if chain is None:
            raise InternalError(f"model={request.model} has no steps here")
        if key not in self._slow and _is_small(request.values):
            return ChainResult([chain.run(value, has_trace=request.has_trace) for value in request.values])
        return ChainResult(await self._pool.run_each(partial(chain.run, has_trace=request.has_trace), request.values))

    def close(self) -> None:
        """End threads and processes."""
        self._pool.close()
        if self._renderer is not None:
            self._renderer.close()


def _is_small(values: list[ChainValue]) -> bool:
    num_chars = sum(len(value.text or "") + sum(map(len, value.texts or ())) for value in values)
    num_numbers = sum(len(value.numbers or ()) for value in values)
    return len(values) <= _INLINE_VALUES and num_chars <= _INLINE_CHARS and num_numbers <= _INLINE_NUMBERS
