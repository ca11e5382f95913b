"""A model at an OpenAI-compatible URL: what it says of texts, its answers, and how fast they come.

Texts are scored with `prompt_logprobs` (https://docs.vllm.ai, "Extra parameters" of its OpenAI-compatible server),
which rayshard and vLLM answer: the log-probability of each token of a prompt, and the most probable one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import torch
from tqdm import tqdm

from serve_app.compress.evaluate import NUM_TOP, TextScore
from serve_app.compress.speed import BATCH_SIZES
from serve_app.compress.top_teacher import TopLogprobs
from serve_app.errors import ConfigError

_TIMEOUT_S = 600.0
_NUM_AT_ONCE = 8
_SHOWN_CHARS = 300
_GREEDY: dict[str, object] = {"temperature": 0, "repetition_penalty": 1}  # whatever its generation_config.json says
_SPEED_PROMPT = "0 1 2 3 4 5 6 7 8 9"


class RemoteModel:
    """One model of a server."""

    def __init__(self, url: str, name: str | None = None, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.name = name or self._only_name()

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """Each text as a prompt. Raises ConfigError when the server cannot score."""
        own = [self._own_of(choice) for choice in self._complete_all(self._prompts(texts, 1), "evaluate")]
        ranked = [self._ranked(choice, NUM_TOP) for choice in self._complete_all(self._prompts(texts, NUM_TOP), "rank")]
        return [
            TextScore(*tokens, [{token: logprob for _rank, token, logprob in row} for row in rows])
            for tokens, rows in zip(own, ranked, strict=True)
        ]

    def top_logprobs(self, sequences: Sequence[list[int]], vocab_size: int) -> list[TopLogprobs]:
        """The NUM_TOP most probable tokens before each token of the sequences but their first. Raises ConfigError."""
        count = min(NUM_TOP, vocab_size)
        found = []
        for choice in self._complete_all(self._prompts(sequences, count), "ask the teacher"):
            ranked = self._ranked(choice, count)
            ids = torch.tensor([[token for _rank, token, _logprob in row] for row in ranked])
            logprobs = torch.tensor([[logprob for _rank, _token, logprob in row] for row in ranked])
            if int(ids.max()) >= vocab_size:
                raise ConfigError(f"{self.name} has tokens that the teacher's files do not know; serve that very model")
            found.append(TopLogprobs(ids, logprobs))
        return found

    def answers(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """The most probable continuation of each prompt."""
        bodies = [{"prompt": prompt, "max_tokens": max_tokens, "model": self.name, **_GREEDY} for prompt in prompts]
        return [str(choice["text"]) for choice in self._complete_all(bodies, "answer")]

    def measure_speed(self, batch_sizes: Sequence[int] = BATCH_SIZES, num_tokens: int = 32) -> dict[int, float]:
        """Tokens a second over HTTP, by how many requests are under way at once; after a warm-up, wall-clock."""
        body = {"prompt": _SPEED_PROMPT, "ignore_eos": True, "model": self.name, **_GREEDY}
        found = {}
        for batch_size in batch_sizes:
            self._complete_all([{**body, "max_tokens": 2}] * batch_size, None, batch_size)
            begin_s = time.perf_counter()
            self._complete_all([{**body, "max_tokens": num_tokens}] * batch_size, None, batch_size)
            found[batch_size] = batch_size * num_tokens / (time.perf_counter() - begin_s)
        return found

    def _prompts(self, prompts: Sequence[str] | Sequence[list[int]], num_top: int) -> list[dict[str, Any]]:
        """Requests for the log-probabilities of the prompts' tokens."""
        settings = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": num_top, "model": self.name}
        return [{"prompt": prompt, **settings} for prompt in prompts]

    def _own_of(self, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
        """A prompt's own tokens and their log-probabilities.

        Of each position's entries the one that is not the most probable is the text's own; or there is one only.
        """
        token_ids, logprobs = [], []
        for entries in self._positions_of(choice):
            own = next((token for token, entry in entries.items() if entry["rank"] != 1), next(iter(entries)))
            token_ids.append(int(own))
            logprobs.append(float(entries[own]["logprob"]))
        return token_ids, logprobs

    def _ranked(self, choice: dict[str, Any], count: int) -> list[list[tuple[int, int, float]]]:
        """The `count` most probable at each position: rank, token, log-probability."""
        return [
            sorted((entry["rank"], int(token), float(entry["logprob"])) for token, entry in entries.items())[:count]
            for entries in self._positions_of(choice)
        ]

    def _positions_of(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        """A prompt's tokens from the second on."""
        positions = choice.get("prompt_logprobs")
        if not isinstance(positions, list) or not positions:
            raise ConfigError(
                f"{self.url} gave no prompt_logprobs; serve {self.name} with rayshard or vLLM, or give its files"
            )
        return positions[1:]

    def _only_name(self) -> str:
        names = [str(one["id"]) for one in self._get("/models")["data"]]
        if len(names) != 1:
            raise ConfigError(f"{self.url} serves {', '.join(names) or 'nothing'}; say which with --model-name")
        return names[0]

    def _get(self, path: str) -> Any:
        try:
            answer = httpx.get(f"{self.url}{path}", headers=self._headers, timeout=_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        return self._content_of(answer)

    def _complete_all(
        self, bodies: Sequence[dict[str, Any]], title: str | None, num_at_once: int = _NUM_AT_ONCE
    ) -> list[dict[str, Any]]:
        async def run() -> list[dict[str, Any]]:
            places = asyncio.Semaphore(num_at_once)
            limits = httpx.Limits(max_connections=num_at_once)
            async with httpx.AsyncClient(headers=self._headers, timeout=_TIMEOUT_S, limits=limits) as client:
                with tqdm(total=len(bodies), desc=title, unit="text", disable=True if title is None else None) as bar:

                    async def one(body: dict[str, Any]) -> dict[str, Any]:
                        async with places:
                            choice = await self._complete(client.post, body)
                        bar.update()
                        return choice

                    return list(await asyncio.gather(*(one(body) for body in bodies)))

        return asyncio.run(run())

    async def _complete(self, post: Callable[..., Awaitable[httpx.Response]], body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await post(f"{self.url}/completions", json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        choice: dict[str, Any] = self._content_of(answer)["choices"][0]
        return choice

    def _content_of(self, answer: httpx.Response) -> Any:
        if answer.status_code != httpx.codes.OK:
            raise ConfigError(f"{answer.url} answered {answer.status_code}: {answer.text[:_SHOWN_CHARS]}")
        try:
            return answer.json()
        except ValueError as error:
            raise ConfigError(f"{answer.url} answered no JSON; is {self.url} an OpenAI-compatible server?") from error

    def _unreachable(self, error: Exception) -> ConfigError:
        return ConfigError(f"{self.url} cannot be asked ({error or type(error).__name__}); is the server running?")
