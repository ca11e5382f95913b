"""Fakes that tests share: a backend that answers by script, a tiny model directory, a server on a real socket."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from serve_app.backend.protocol import HealthReport, Newcomer, TakeChunk
from serve_app.backend.token_stream import TokenStream
from serve_app.errors import RayshardError
from serve_app.preprocessing.chain import Chain
from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import (
    FinishReason,
    GenerateRequest,
    OutputChunk,
    SamplingParams,
    TokenLogprobs,
)
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.models import CopyCounts, CopyState, ModelDescription, StageCounts
from serve_app.types.plans import CopyAccount
from serve_app.types.tensors import InferRequest, InferResult, Item

BOS, EOS, END_OF_TURN = "<s>", "</s>", "<|end|>"
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{ raise_exception('role ' + message.role + ' is unknown') }}
{% elif message.content == 'loop' %}
{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{% endif %}
[{{ message.role }}]{{ message.content }}<|end|>
{%- endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""


def byte_level_tokenizer(num_merges: int = 40) -> Tokenizer:
    """256 byte tokens, some merges, three special tokens; encodes with BOS in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for first in "thareinoslc":
        for second in "ehaino":
            if len(merges) < num_merges and first + second not in vocab:
                merges.append((first, second))
                vocab[first + second] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (BOS, EOS, END_OF_TURN)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """In the manner of llama 2: words with a leading mark, and bytes for the rest."""
    pieces = ["<unk>", BOS, EOS, *(f"<0x{value:02X}>" for value in range(256))]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581the", "\u2581a", "ing", "é"]
    merges = [("\u2581", "a")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", BOS, EOS)])
    return tokenizer


def save_model_dir(
    directory: Path, tokenizer: Tokenizer | None = None, *, chat_template: str | None = CHAT_TEMPLATE
) -> Path:
    """The tokenizer's part of a Hugging Face model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_tokenizer()).save(str(directory / "tokenizer.json"))
    config = {"bos_token": BOS, "eos_token": {"content": EOS}, "chat_template": chat_template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


Script = Callable[[GenerateRequest, int], Sequence[int]]  # tokens of one choice, EOS included if it is to come


def echo_prompt(request: GenerateRequest, choice: int) -> list[int]:
    """The prompt's own tokens, over and over, from the choice's number on."""
    prompt = request.prompt_token_ids
    return [prompt[(choice + index) % len(prompt)] for index in range(request.params.max_tokens)]


def say(*token_ids: int) -> Script:
    """The same tokens for everybody."""
    return lambda _request, _choice: token_ids


def copy_item(item: Item) -> Item:
    """A model that gives back what it gets."""
    return item


@dataclass
class ScriptedBackend:
    """A ModelBackend without a model: yields what `script` says, one token for each step."""

    source_dir: Path
    script: Script = echo_prompt
    name: str = "tiny"
    max_model_len: int = 512
    step_s: float = 0.0
    first_step_s: float = 0.0
    max_steps_in_chunk: int = 1  # tokens that arrive together
    fail_at_step: int | None = None
    lost_step: int | None = None  # its tokens never arrive
    is_merged: bool = False  # tokens that arrive together come in one chunk for each choice
    prompt_logprobs_delay_steps: int = 0  # the second half of them comes that much later
    error: RayshardError | None = None
    is_healthy: bool = True
    coming: list[ModelDescription] = field(default_factory=list)  # not known yet
    may_come: asyncio.Event = field(default_factory=asyncio.Event)  # they are known once somebody waits after this
    num_waits: int = 0
    newcomers: dict[str, Newcomer] = field(default_factory=dict)
    is_asleep: bool = False  # no copy, until somebody asks
    extra_models: list[ModelDescription] = field(default_factory=list)
    requests: list[GenerateRequest] = field(default_factory=list)
    infer_script: Callable[[Item], Item] = copy_item
    infer_requests: list[InferRequest] = field(default_factory=list)
    chain: Chain | None = None  # before every model that has steps
    after: Chain | None = None  # after every model that has steps
    changes: dict[str, Any] = field(default_factory=dict)  # of the scripted model's description
    graph: Callable[[GraphRequest], Awaitable[GraphResult]] | None = None
    num_cached_tokens: int = 0  # of each prompt
    copy_accounts: list[CopyAccount] = field(default_factory=list)
    num_open: int = 0
    num_aborted: int = 0

    def __post_init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(self.source_dir / "tokenizer.json"))
        self.eos_token_id: int = self._tokenizer.get_vocab()[EOS]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def text(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(token_ids))
        return text

    def models(self) -> list[ModelDescription]:
        """The scripted model and whatever was added."""
        own = ModelDescription(
            name=self.name,
            task="generate",
            source_dir=str(self.source_dir),
            max_model_len=self.max_model_len,
            max_request_tokens=self.max_model_len,
            vocab_size=self._tokenizer.get_vocab_size(),
            eos_token_ids=[self.eos_token_id],
            created_s=1_700_000_000,
        )
        return [replace(own, **self.changes), *self.extra_models]

    def model(self, name: str) -> ModelDescription | None:
        """One of `models`."""
        return next((model for model in self.models() if model.name == name), None)

    async def wait_for_model(self, name: str, limit_s: float) -> None:
        """Whichever comes, after it may."""
        self.num_waits += 1
        if self.coming and self.model(name) is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self.may_come.wait()
                    self.extra_models += self.coming
                    self.coming = []

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """Steps of the script, until all choices have ended or no more is wanted."""
        assert model == self.name
        self.requests.append(request)
        self.num_open += 1
        steps, stream = ScriptedSteps(self, request), TokenStream(request.num_choices, take)
        try:
            while not steps.is_ended:
                for chunk in await steps.next():
                    if not stream.feed(chunk):
                        return
        finally:
            self.num_open -= 1
            self.num_aborted += not steps.is_ended

    async def infer(self, request: InferRequest) -> InferResult:
        """What `infer_script` says."""
        self.infer_requests.append(request)
        if self.error is not None:
            raise self.error
        return InferResult([self.infer_script(item) for item in request.items])

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """Run the values through a real chain."""
        chain = self.after if request.is_after else self.chain
        assert chain is not None
        return ChainResult([chain.run(value, has_trace=request.has_trace) for value in request.values])

    async def run_graph(self, request: GraphRequest) -> GraphResult:
        """Hand the texts to `graph`."""
        assert self.graph is not None
        return await self.graph(request)

    async def accounts(self) -> list[CopyAccount]:
        """What the test says."""
        return self.copy_accounts

    def health(self) -> HealthReport:
        """One copy."""
        counts = CopyCounts(stages=[StageCounts(4, 0.2)])
        state = CopyState("replica-1", "ready" if self.is_healthy else "failed", "", 0, 0, 64, 64, counts=counts)
        if self.is_asleep:
            return HealthReport(True, {self.name: []}, f"{self.name}: asleep", asleep=[self.name])
        detail = "" if self.is_healthy else "shard 1 is gone"
        return HealthReport(
            self.is_healthy,
            {self.name: [state]},
            detail,
            is_discovering=bool(self.coming),
            newcomers=self.newcomers,
            num_choices={self.name: {"prefix": 0}},
        )


class ScriptedSteps:
    """Tokens of all choices of one request, step by step."""

    def __init__(self, backend: ScriptedBackend, request: GenerateRequest) -> None:
        self._backend = backend
        self._request = request
        self._scripts = [list(backend.script(request, choice)) for choice in range(request.num_choices)]
        self._step = 0
        self.is_ended = False

    async def next(self) -> list[OutputChunk]:
        """What arrives together. Raises the backend's error when it is due."""
        backend = self._backend
        await asyncio.sleep(backend.first_step_s if self._step == 0 else backend.step_s)
        chunks = []
        for _ in range(backend.max_steps_in_chunk):
            chunks += self._prompt_chunks()
            if backend.error is not None and self._step == (backend.fail_at_step or 0):
                raise backend.error
            chunks += self._next_step()
        return _merged(chunks) if backend.is_merged else chunks

    def _next_step(self) -> list[OutputChunk]:
        step, params = self._step, self._request.params
        chunks = []
        for choice, script in enumerate(self._scripts):
            limit = min(len(script), params.max_tokens)
            if step >= limit or step == self._backend.lost_step:
                continue
            token_id = script[step]
            finish_reason = _finish_reason(token_id, step, limit, params, self._backend.eos_token_id)
            if finish_reason is not None:
                self._scripts[choice] = script[: step + 1]
            chunks.append(
                OutputChunk(
                    choice=choice,
                    first_index=step,
                    token_ids=[token_id],
                    logprobs=None if params.num_logprobs is None else [_output_logprobs(token_id, params)],
                    finish_reason=finish_reason,
                    stop_token_id=token_id if finish_reason == "stop" else None,
                    num_cached_tokens=self._backend.num_cached_tokens if step == 0 else 0,
                )
            )
        self._step += 1
        self.is_ended = all(self._step >= min(len(script), params.max_tokens) for script in self._scripts)
        return chunks

    def _prompt_chunks(self) -> list[OutputChunk]:
        """Prompt logprobs in two pieces, each at its step."""
        num_top = self._request.params.num_prompt_logprobs
        if num_top is None:
            return []
        entries = [logprobs_of(token_id, num_top) for token_id in self._request.prompt_token_ids[1:]]
        pieces = ((0, entries[:1]), (self._backend.prompt_logprobs_delay_steps, entries[1:]))
        return [
            OutputChunk(choice=0, first_index=self._step, token_ids=[], prompt_logprobs=piece)
            for step, piece in pieces
            if piece and step == self._step
        ]


def _merged(chunks: list[OutputChunk]) -> list[OutputChunk]:
    """One chunk for each choice."""
    by_choice: dict[int, OutputChunk] = {}
    for chunk in chunks:
        before = by_choice.get(chunk.choice)
        if before is not None:
            chunk = replace(
                chunk,
                first_index=before.first_index,
                token_ids=before.token_ids + chunk.token_ids,
                num_cached_tokens=before.num_cached_tokens,
                logprobs=None if chunk.logprobs is None else (before.logprobs or []) + chunk.logprobs,
            )
        by_choice[chunk.choice] = chunk
    return list(by_choice.values())


class PromptServer(uvicorn.Server):
    """uvicorn that ends when it is told to and nobody is connected, not at its next tick or two."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_over = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.is_over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for _ in range(10):
            if not self.server_state.connections and not self.server_state.tasks:
                break
            await asyncio.sleep(0.001)
        else:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        await self.lifespan.shutdown()


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """The application on a free port of 127.0.0.1; gives its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # a client that does not read is noticed soon
    server = PromptServer(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, ws="none"))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.001)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.is_over.set()
        await running
        listener.close()


NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx reads all certificates of the machine for a client without one


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    """The token is the likeliest, its successors follow."""
    top = [token_id + offset for offset in range(num_top)]
    return TokenLogprobs(token_id, -0.5, 1, top, [-0.5 - offset for offset in range(num_top)])


def _output_logprobs(token_id: int, params: SamplingParams) -> TokenLogprobs:
    named = list(params.logprob_token_ids)
    if named:
        return TokenLogprobs(token_id, -0.5, 1, named, [-0.5 if one == token_id else -1.0 - one for one in named])
    return logprobs_of(token_id, params.num_logprobs or 0)


def _finish_reason(
    token_id: int, step: int, limit: int, params: SamplingParams, eos_token_id: int
) -> FinishReason | None:
    is_end = (token_id == eos_token_id and not params.ignore_eos) or token_id in params.stop_token_ids
    if is_end and step + 1 > params.min_tokens:
        return "stop"
    return "length" if step + 1 == limit else None
