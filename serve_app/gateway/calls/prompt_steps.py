"""The steps before a model that generates: run over prompts, and over the messages of a conversation."""

import secrets
from itertools import islice

from serve_app.backend.protocol import ModelBackend
from serve_app.gateway.bodies.openai import ChatMessage
from serve_app.gateway.calls.chat_messages import change_texts, texts_of
from serve_app.types.chains import ChainOutcome, ChainRequest, ChainValue, Redaction
from serve_app.types.models import ModelDescription


class PromptSteps:
    """Changes prompts in place; those of models without steps stay as they are."""

    def __init__(self, backend: ModelBackend) -> None:
        self._backend = backend

    async def change_prompts(self, prompts: list[str | list[int]], model: ModelDescription) -> list[list[Redaction]]:
        """The texts among the prompts; token ids are taken as they are. What was taken out of each prompt."""
        redactions: list[list[Redaction]] = [[] for _ in prompts]
        values = [ChainValue(text=prompt) for prompt in prompts if isinstance(prompt, str)]
        if not model.has_preprocessing or not values:
            return redactions
        places = [index for index, prompt in enumerate(prompts) if isinstance(prompt, str)]
        for index, made in zip(places, await self._run(values, model), strict=True):
            assert made.value.text is not None, "check_chains refuses other ends"
            prompts[index], redactions[index] = made.value.text, made.redactions
        return redactions

    async def change_messages(self, messages: list[ChatMessage], model: ModelDescription) -> list[Redaction]:
        """The texts of all messages and of their calls, together: a placeholder means the same in each.

        What was taken out.
        """
        if not model.has_preprocessing or not messages:
            return []
        given = [texts_of(message) for message in messages]
        (made,) = await self._run([ChainValue(texts=[text for texts in given for text in texts])], model)
        assert made.value.texts is not None, "check_chains refuses other ends"
        changed = iter(made.value.texts)
        for message, texts in zip(messages, given, strict=True):
            change_texts(message, list(islice(changed, len(texts))))
        return made.redactions

    async def _run(self, values: list[ChainValue], model: ModelDescription) -> list[ChainOutcome]:
        request = ChainRequest(secrets.token_hex(8), model.name, values)
        return (await self._backend.run_chain(request)).values
