"""The chats of a row: greedy or seeded, so that each has one right text."""

from typing import Any

NUM_TOKENS = 40

_WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "stop": ["thousand thousand"]},  # its first half comes often, and is held back
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 0.8, "top_p": 0.9, "seed": 11, "min_tokens": 20},
    {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2},
    {"temperature": 0, "logit_bias": {"20": 1.5, "21": -1.5}},
    {"temperature": 0.7, "top_k": 20, "seed": 5, "n": 2},
)


def make_chats(num_chats: int) -> list[dict[str, Any]]:
    """Requests for streams of NUM_TOKENS tokens for each choice; the ways of drawing them take turns."""
    return [_chat(index) for index in range(num_chats)]


def probe_chat() -> dict[str, Any]:
    """A short request that streams nothing."""
    return {"model": "demo", "messages": _messages(0), "temperature": 0, "max_tokens": 4, "ignore_eos": True}


def _chat(index: int) -> dict[str, Any]:
    return {
        "model": "demo",
        "messages": _messages(index),
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_WAYS[index % len(_WAYS)],
    }


def _messages(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"spell {10_007 + 89 * index}"}]
