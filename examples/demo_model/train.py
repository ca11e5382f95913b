"""Train the demo model from a seed and export it as a Hugging Face directory."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import torch
from text import BOS, END, MAX_CONTEXT_TOKENS, PAD, TokenRow, build_tokenizer, sample_segments, save_tokenizer, tokenize
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

logger = logging.getLogger("train")
STEPS_PER_ROUND = 50
IGNORED_LABEL = -100
TASK_WEIGHTS = {"date": 0.12, "spell": 0.14, "sort": 0.28, "reverse": 0.18, "add": 0.28}
POLISH_TASK_WEIGHTS = {"date": 0.06, "spell": 0.18, "sort": 0.32, "reverse": 0.06, "add": 0.38}


@dataclass(frozen=True)
class Settings:
    """What the result depends on, besides the code."""

    seed: int = 20380108
    num_steps: int = 2650
    warmup_steps: int = 100
    decay_share: float = 0.094  # of the steps, at the end
    num_polish_steps: int = 250  # a second, lower cycle with more of the tasks that lag
    polish_scale: float = 0.5  # of the peak learning rates
    batch_tokens: int = 3072
    muon_lr: float = 4e-3  # matrices of the layers
    adam_lr: float = 2e-3  # embedding, head and norms


@dataclass(frozen=True)
class Batch:
    """Rows of similar length: ids [B, T] int64 and labels [B, T] int64, the next token or IGNORED_LABEL."""

    ids: Tensor
    labels: Tensor


def main() -> None:
    """Train, write a checkpoint every so often, export at the end."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    run = Run(Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)}), arguments.workdir)
    if arguments.resume:
        run.load()
    if not arguments.export_only:
        run.train(arguments.checkpoint_rounds)
    export(run.model, run.tokenizer, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line: every setting, and where files go."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-rounds", type=int, default=4, help=f"rounds of {STEPS_PER_ROUND} steps")
    parser.add_argument("--workdir", type=Path, default=here / "build", help="holds the checkpoint")
    parser.add_argument("--out", type=Path, default=here / "model")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --workdir")
    parser.add_argument("--export-only", action="store_true", help="no training; with --resume: export the checkpoint")
    return parser.parse_args()


class Run:
    """Model, optimizers and position of one training run."""

    def __init__(self, settings: Settings, workdir: Path) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.checkpoint_path = workdir / "checkpoint.pt"
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer, torch.float32)
        self.optimizers = build_optimizers(self.model, settings)
        self.peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.num_rounds = 0
        self.train_s = 0.0

    def train(self, checkpoint_rounds: int) -> None:
        """Run the rounds that are left."""
        self.model.train()
        while self.num_rounds * STEPS_PER_ROUND < self.settings.num_steps + self.settings.num_polish_steps:
            self.run_round()
            if self.num_rounds % checkpoint_rounds == 0:
                self.save()
        self.save()

    def run_round(self) -> None:
        """Take STEPS_PER_ROUND steps and log them."""
        started_s = time.monotonic()
        batches = sample_batches(self.tokenizer, self.settings, self.num_rounds)
        first_step = self.num_rounds * STEPS_PER_ROUND
        mean_loss = sum(self.take_step(batch, first_step + i) for i, batch in enumerate(batches)) / len(batches)
        num_tokens = sum(batch.ids.numel() for batch in batches)
        round_s = time.monotonic() - started_s
        self.num_rounds += 1
        self.train_s += round_s
        logger.info(
            "step=%d loss=%.4f tokens_per_s=%.0f train_s=%.0f",
            self.num_rounds * STEPS_PER_ROUND,
            mean_loss,
            num_tokens / round_s,
            self.train_s,
        )

    def take_step(self, batch: Batch, step: int) -> float:
        """Update the weights once; gives the loss before that."""
        scale = rate_scale(self.settings, step)
        for optimizer, rates in zip(self.optimizers, self.peak_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        hidden = self.model.model(input_ids=batch.ids, use_cache=False).last_hidden_state  # [B, T, D]
        is_target = batch.labels != IGNORED_LABEL
        loss = cross_entropy(self.model.lm_head(hidden[is_target]), batch.labels[is_target])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def save(self) -> None:
        """Replace the checkpoint."""
        self.checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "num_rounds": self.num_rounds,
            "train_s": self.train_s,
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint_path)

    def load(self) -> None:
        """Go back to the checkpoint."""
        state = torch.load(self.checkpoint_path)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.num_rounds, self.train_s = state["num_rounds"], state["train_s"]


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """Eight layers of eight heads over four kv heads: splits 2 x 2 and 4 x 1."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def build_model(tokenizer: Tokenizer, dtype: torch.dtype) -> Any:
    """A model with random weights."""
    auto_model: Any = AutoModelForCausalLM  # its from_config has no types
    return auto_model.from_config(model_config(tokenizer), dtype=dtype)


def build_optimizers(model: Any, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for all else."""
    matrices = [weight for name, weight in model.named_parameters() if is_layer_matrix(name, weight)]
    others = [weight for name, weight in model.named_parameters() if not is_layer_matrix(name, weight)]
    return [
        torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]


def is_layer_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is a projection of a layer."""
    return weight.ndim == 2 and "layers." in name


def rate_scale(settings: Settings, step: int) -> float:
    """Linear warm-up, a plateau, a linear fall to zero; to polish, a second fall from a lower rate."""
    if step >= settings.num_steps:
        polish_step = step - settings.num_steps
        return settings.polish_scale * min((polish_step + 1) / 10, 1 - polish_step / settings.num_polish_steps)
    decay_steps = settings.decay_share * settings.num_steps
    return min(1.0, (step + 1) / settings.warmup_steps, (settings.num_steps - step) / decay_steps)


def sample_batches(tokenizer: Tokenizer, settings: Settings, round_index: int) -> list[Batch]:
    """Draw the batches of one round, each of rows of similar length, in random order."""
    rng = Random(f"{settings.seed}-{round_index}")
    budget_tokens = settings.batch_tokens * STEPS_PER_ROUND
    is_polish = round_index * STEPS_PER_ROUND >= settings.num_steps
    weights = POLISH_TASK_WEIGHTS if is_polish else TASK_WEIGHTS
    rows: list[TokenRow] = []
    while budget_tokens > 0:
        rows.append(tokenize(tokenizer, sample_segments(rng, weights)))
        budget_tokens -= len(rows[-1].ids)
    groups = group_by_length(rows, settings.batch_tokens)
    rng.shuffle(groups)
    return [pad_batch(group, tokenizer.token_to_id(PAD) or 0) for group in groups[:STEPS_PER_ROUND]]


def group_by_length(rows: Sequence[TokenRow], max_tokens: int) -> list[list[TokenRow]]:
    """Rows from short to long, cut so that each group padded is at most `max_tokens`."""
    groups: list[list[TokenRow]] = [[]]
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if groups[-1] and (len(groups[-1]) + 1) * len(row.ids) > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def pad_batch(rows: Sequence[TokenRow], pad_id: int) -> Batch:
    """Rows padded on the right, where causal attention needs no mask."""
    num_tokens = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), num_tokens), pad_id)
    labels = torch.full((len(rows), num_tokens), IGNORED_LABEL)
    for index, row in enumerate(rows):
        targets = [
            token if is_target else IGNORED_LABEL for token, is_target in zip(row.ids, row.is_target, strict=True)
        ]
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids) - 1] = torch.tensor(targets[1:])
    return Batch(ids, labels)


def export(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the model in bf16 with its tokenizer and generation settings."""
    directory.mkdir(parents=True, exist_ok=True)
    half = build_model(tokenizer, torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    generation = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(END)],
        "pad_token_id": tokenizer.token_to_id(PAD),
        "do_sample": False,
    }
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, directory)


if __name__ == "__main__":
    main()
