"""Packed tokens that come from outside: whether they can be joined with those of other requests."""

import numpy as np

from serve_app.errors import RequestError
from serve_app.preprocessing.arrays import to_array
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item

MAX_PACKED_TOKENS = 32_768  # of one request: its tensors are one step, which is not cut
TOKENS = "tokens"  # the dimension of packed tokens, which `lengths` cuts into entries


def check_packing(item: Item, model: ModelDescription) -> None:
    """Refuse packed tokens whose lengths lie: they are joined with other requests', which would be cut wrongly.

    Neither may an entry be empty: pooling by its first or last token would find a neighbour's. And what makes the
    module raise ends the whole group of shards where it is split by tensor. For every carrier that takes tensors, once
    their dtypes and shapes are checked. Raises RequestError.
    """
    specs = model.inputs
    packed = [name for name, spec in specs.items() if spec.shape[:1] == (TOKENS,)]
    if not packed or specs.get("lengths") is None:
        return
    lengths = to_array(item["lengths"]).astype(np.int64).reshape(-1)
    num_tokens = item[packed[0]].shape[0]
    if (lengths < 1).any() or (lengths > num_tokens).any() or int(lengths.sum()) != num_tokens:
        raise RequestError(
            f"inputs.lengths must be positive and add up to the {num_tokens} of inputs.{packed[0]}",
            field="inputs.lengths",
        )
    _check_sizes(int(lengths.max()), num_tokens, model)
    if "prompt_lengths" in specs and model.task == "embed":
        prompts = to_array(item["prompt_lengths"]).astype(np.int64).reshape(-1)
        if (prompts < 0).any() or (prompts >= lengths).any():
            raise RequestError(
                "inputs.prompt_lengths must be from 0 to below the text's own length", field="inputs.prompt_lengths"
            )
    if "input_ids" in packed:
        _check_ids(item, "input_ids", model.vocab_size)
    if "token_type_ids" in packed and model.task != "predict":  # a module of one's own may know more than two
        _check_ids(item, "token_type_ids", 2)


def _check_sizes(longest: int, num_tokens: int, model: ModelDescription) -> None:
    if longest > model.max_model_len:
        raise RequestError(
            f"inputs.lengths has an entry of {longest} tokens, the model takes {model.max_model_len}; shorten it",
            field="inputs.lengths",
        )
    most = max(MAX_PACKED_TOKENS, model.max_model_len)
    if num_tokens > most:
        raise RequestError(
            f"inputs.lengths adds up to {num_tokens} tokens; send at most {most} in one request", field="inputs.lengths"
        )


def _check_ids(item: Item, name: str, num_known: int) -> None:
    ids = to_array(item[name])
    if int(ids.min()) < 0 or int(ids.max()) >= num_known:
        message = f"inputs.{name} holds a number outside of 0 to {num_known - 1}, which the model knows"
        raise RequestError(message, field=f"inputs.{name}")
