"""Several conversations in one request, as vLLM takes them: one answer to each, numbered in their order."""

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChatBatchBody, ChatBody


def conversations(body: ChatBatchBody) -> list[ChatBody]:
    """A body for each conversation. Raises RequestError for what an answer to several has no place for."""
    n = body.n or 1
    for field, is_set, reason in (
        ("stream", body.stream, "several conversations are answered whole"),
        ("n", n > 1, "each conversation has one answer"),
        ("thinking_token_budget", body.thinking_token_budget is not None, "reasoning is cut in one answer alone"),
        ("prompt_logprobs", body.prompt_logprobs is not None, "the answer has a place for those of one prompt"),
    ):
        if is_set:
            message = f"{field} does not go with several conversations: {reason}; leave it out, or send them one by one"
            raise RequestError(message, field=field)
    settings = {name: getattr(body, name) for name in body.__struct_fields__ if name != "messages"}
    return [ChatBody(messages=one, **settings) for one in body.messages]
