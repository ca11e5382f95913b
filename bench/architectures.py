"""Every type that transformers builds, tiny and random: unsplit, in two stages, on two ranks, against transformers."""

import argparse
import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from bench.sweep_table import Result, keep_what_works
from bench.thread_shards import ThreadShards, embed_texts
from bench.tiny_models import VOCAB_SIZE, make_tiny, small_config
from serve_app.architectures.encoders import ENCODERS
from serve_app.architectures.lookup import EMBEDDERS, GENERATORS
from serve_app.scheduling.output import SequenceOutput
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits

SPLITS = ((1, 1), (2, 1), (1, 2))
PROMPT_LENGTHS = (5, 19, 37)  # one is prefilled in two chunks, and sees more than a window
NUM_OUTPUTS = 12
LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=32, max_model_len=64, block_size=4, num_blocks=64)
NEAR_TIE = 1e-3
LOGPROB_TOLERANCE = 2e-3
SECONDS_EACH = 60
EMBEDDING_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Reference:
    """One prompt, how transformers goes on, and what it makes of the prompt."""

    prompt: list[int]
    token_ids: list[int]
    gaps: list[float]  # by output token: the best logit less the second best
    prompt_logprobs: list[float]  # of prompt tokens 1..


def sweep_type(model_type: str, directory: Path) -> Result:
    """Try one causal type in all splits."""
    result = Result(model_type)
    make_tiny(small_config(model_type), directory)
    references = make_references(directory)
    for split in SPLITS:
        try:
            result.by_split[split] = compare(directory, split, references)
        except Exception as error:  # whatever a class does with what it is given
            first = (str(error).splitlines() or [""])[0]
            result.by_split[split] = f"{type(error).__name__}: {first[:200]}"
    return result


@torch.inference_mode()
def make_references(directory: Path) -> list[Reference]:
    """What transformers' own `generate` gives for each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32, attn_implementation="eager")
    model.eval()
    generator = torch.Generator().manual_seed(1)
    references = []
    for length in PROMPT_LENGTHS:
        prompt = torch.randint(3, VOCAB_SIZE, (1, length), generator=generator)
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_OUTPUTS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        logits = model(tokens, use_cache=False).logits[0, :-1].float()  # [T - 1, V]
        best, second = logits[length - 1 :].topk(2).values.unbind(-1)
        chosen = logits[: length - 1].log_softmax(-1).gather(1, prompt[0, 1:, None])[:, 0]
        output = tokens[0, length:].tolist()
        references.append(Reference(prompt[0].tolist(), output, (best - second).tolist(), chosen.tolist()))
    return references


def compare(directory: Path, split: tuple[int, int], references: list[Reference]) -> str:
    """An empty text where a split model gives what transformers gives."""
    shards = ThreadShards(directory, *split, LIMITS)
    tokens: dict[str, list[int]] = {}
    logprobs: dict[str, list[float]] = {}

    def take(outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            name = output.sequence.request_id
            tokens.setdefault(name, []).extend(output.chunk.token_ids)
            entries = output.chunk.prompt_logprobs or []
            logprobs.setdefault(name, []).extend(entry.logprob for entry in entries)

    params = SamplingParams(NUM_OUTPUTS, seed=0, temperature=0.0, ignore_eos=True, num_prompt_logprobs=0)
    try:
        shards.generate((GenerateRequest(str(index), one.prompt, params) for index, one in enumerate(references)), take)
    finally:
        shards.close()
    worst = max(
        abs(ours - theirs)
        for index, one in enumerate(references)
        for ours, theirs in zip(logprobs[str(index)], one.prompt_logprobs, strict=True)
    )
    if not worst < LOGPROB_TOLERANCE:
        return f"prompt log-probabilities differ by {worst:.2g}"
    for index, one in enumerate(references):
        for place, (ours, theirs) in enumerate(zip(tokens[str(index)], one.token_ids, strict=True)):
            if ours != theirs and one.gaps[place] >= NEAR_TIE:
                return f"token {place} after {len(one.prompt)} differs"
            if ours != theirs:
                break
    return ""


def sweep_encoder(model_type: str, directory: Path) -> Result:
    """Try one encoder in all splits."""
    result = Result(model_type)
    small = small_config(model_type)
    model = make_tiny(small, directory, make=AutoModel).eval()
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in PROMPT_LENGTHS]
    with torch.inference_mode():
        expected = torch.stack([model(text[None]).last_hidden_state[0].mean(0) for text in texts])
    has_types = bool(EMBEDDERS[model_type].sizes.num_token_types) and getattr(small, "type_vocab_size", 0) > 1
    for split in SPLITS:
        try:
            got = embed_texts(directory, split, texts, has_types=has_types)
            worst = float((got - expected).abs().max())
            result.by_split[split] = "" if worst < EMBEDDING_TOLERANCE else f"embeddings differ by {worst:.2g}"
        except Exception as error:  # whatever a class does with what it is given
            result.by_split[split] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return result


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so long."""

    def stop(*_args: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main() -> None:
    """Sweep the named types, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; none: all that have a record")
    parser.add_argument("--write", action="store_true", help="keep what works: the records, and docs/models.md")
    arguments = parser.parse_args()
    names = arguments.types or sorted(GENERATORS) + sorted(ENCODERS)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in names:
        directory = Path(tempfile.mkdtemp())
        try:
            with time_limit(SECONDS_EACH):
                result = (sweep_encoder if name in ENCODERS else sweep_type)(name, directory)
        except Exception as error:
            result = Result(name, refusal=f"{type(error).__name__}: {str(error)[:200]!r}")
        finally:
            shutil.rmtree(directory)
        results.append(result)
        print(
            json.dumps([name, result.refusal, {f"{p}x{t}": text for (p, t), text in result.by_split.items()}]),
            flush=True,
        )
    if arguments.write:
        keep_what_works(results)


if __name__ == "__main__":
    main()
