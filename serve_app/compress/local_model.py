"""A model on this machine, whole, run by the engine as it is served: logits, greedy answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.checkpoints.model_spec import ModelSpec, read_model_spec
from serve_app.compress.evaluate import NUM_TOP, TextScore
from serve_app.engine.attention.choice import DecodeSizes, attention_of
from serve_app.engine.attention.reference import attend_one
from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.text_facts import read_answer_facts
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits, LoadQuantization, ShardSpec

_BLOCK_SIZE = 16
_MAX_BATCHED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class CausalAttention:
    """Attention of whole sequences, packed one after the other, without a cache."""

    lengths: Sequence[int]

    def attend(
        self,
        _layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """query [H, T, Dh], key [K, T, Dh], value [K, T, Dv], sinks [H] -> [T, H, Dv]."""
        keys, values = key.transpose(0, 1), value.transpose(0, 1)  # [T, K, Dh]
        parts, start = [], 0
        for length in self.lengths:
            own = slice(start, start + length)
            parts.append(attend_one(query[:, own], keys[own], values[own], scaling, sliding_window, softcap, sinks))
            start += length
        return torch.cat(parts)

    def compiled_rows(self) -> None:
        """None: no token has a cache."""


class LocalModel:
    """One model copy in this process."""

    def __init__(
        self,
        directory: Path,
        dtype: str = "auto",
        quantization: LoadQuantization | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.directory = directory
        self.spec: ModelSpec = read_model_spec(directory)
        self._device = device or torch.device("cpu")
        whole = ShardSpec(0, 1, 0, 1, 0, self.spec.num_layers)
        loaded = load_stage(directory, dtype, whole, LoneCommunicator(), self._device, quantization)
        self._stage = loaded.stage
        self.num_weight_bytes = loaded.parameter_bytes
        self.tokenizer = Tokenizer.load(directory)
        facts = read_answer_facts(directory, self.spec.vocab_size, has_defaults=False)
        self.eos_token_ids = sorted(facts.end_token_ids)

    def cache_bytes(self, num_sequences: int, num_tokens: int) -> int:
        """What the keys and values of sequences of `num_tokens` tokens each take."""
        return num_sequences * -(-num_tokens // _BLOCK_SIZE) * kv_block_bytes(self._stage, _BLOCK_SIZE)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits [T, V] of all tokens of the sequences, one sequence after the other."""
        flat = torch.tensor([token for sequence in sequences for token in sequence], device=self._device)
        positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences]).to(self._device)
        attention = CausalAttention([len(sequence) for sequence in sequences])
        return self._stage.forward(flat, positions, attention, torch.arange(len(flat), device=self._device))

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """What the model says of each text."""
        scores = []
        for text in tqdm(texts, desc="evaluate", unit="text", disable=None):
            token_ids = self.tokenizer.encode(text, add_special_tokens=True)
            logprobs = self.logits([token_ids])[:-1].to(torch.float64).log_softmax(dim=-1)  # [T - 1, V]
            own = logprobs.gather(1, torch.tensor(token_ids[1:])[:, None].to(logprobs.device))[:, 0]
            best = logprobs.topk(min(NUM_TOP, logprobs.shape[1]), dim=1)
            tops = [
                dict(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            scores.append(TextScore(token_ids[1:], own.tolist(), tops))
        return scores

    def answers(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """The most probable continuation of each prompt."""
        given = [self.tokenizer.encode(prompt) for prompt in prompts]
        answers = self.generate(given, max_tokens)
        return [self.tokenizer.decode_after(*pair) for pair in zip(given, answers, strict=True)]

    def generate(self, prompts: Sequence[list[int]], max_tokens: int, *, ignore_eos: bool = False) -> list[list[int]]:
        """The most probable continuation of each prompt, its end token left out."""
        longest = max(map(len, prompts)) + max_tokens
        max_num_seqs = min(64, len(prompts))
        blocks_per_seq = -(-longest // _BLOCK_SIZE)
        limits = EngineLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=_MAX_BATCHED_TOKENS,
            max_model_len=longest,
            block_size=_BLOCK_SIZE,
            num_blocks=blocks_per_seq * max_num_seqs,
        )
        attention = attention_of("auto", self._stage, DecodeSizes.within(limits), self._device)
        runner = ModelRunner(self._stage, limits, LoneCommunicator(), self._device, attention.backend)
        scheduler = Scheduler(limits, num_stages=1, max_queued=len(prompts))
        stops = () if ignore_eos else tuple(self.eos_token_ids)
        for index, prompt in enumerate(prompts):
            params = SamplingParams(max_tokens, seed=0, temperature=0.0, stop_token_ids=stops, ignore_eos=ignore_eos)
            scheduler.add(GenerateRequest(str(index), prompt, params))
        answers: list[list[int]] = [[] for _ in prompts]
        while scheduler.has_work:
            step = scheduler.schedule()
            assert step is not None
            output = runner.run(step)
            assert output is not None
            for news in scheduler.update(output):
                answers[int(news.sequence.request_id)] += news.chunk.token_ids
        return [_without_end(answer, stops) for answer in answers]


def _without_end(token_ids: list[int], stops: tuple[int, ...]) -> list[int]:
    return token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
