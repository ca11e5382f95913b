"""The chains of an application's models, run in threads."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.config import StepConfig
from serve_app.errors import InternalError
from serve_app.preprocessing.chain import Chain, build_chain
from serve_app.preprocessing.text_pool import TextPool
from serve_app.types import PreprocessRequest, PreprocessResult

_NUM_THREADS = 2
_MAX_WAITING = 4096
_INLINE_CHARS = 256  # a chain over so little takes less than handing it to a thread


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """One model's chain, and where its tokenizer is."""

    model: str
    steps: list[StepConfig]
    directory: Path


class ChainHost:
    """Runs the chain of the model that a request names."""

    def __init__(self, specs: list[ChainSpec]) -> None:
        self._chains = {spec.model: build_chain(spec.steps, spec.directory) for spec in specs}
        self._has_user_step = {spec.model: any(":" in step.name for step in spec.steps) for spec in specs}
        self._pool = TextPool(_NUM_THREADS, max_waiting=_MAX_WAITING, name="preprocessing")

    async def preprocess(self, request: PreprocessRequest) -> PreprocessResult:
        """What the chain makes of each value. Raises a RayshardError."""
        chain = self._chains.get(request.model)
        if chain is None:
            raise InternalError(f"model={request.model} has no preprocessing here")
        num_chars = sum(len(value.text or "") for value in request.values)
        if num_chars <= _INLINE_CHARS and not self._has_user_step[request.model]:
            return _run(chain, request)
        return await self._pool.run(_run, chain, request)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()


def _run(chain: Chain, request: PreprocessRequest) -> PreprocessResult:
    return PreprocessResult([chain.run(value, has_trace=request.has_trace) for value in request.values])
