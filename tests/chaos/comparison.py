"""Whether a fault has changed what a client was given."""

from tests.chaos.event_stream import Answer


def is_changed(answer: Answer, undisturbed: Answer) -> bool:
    """Whether texts or the count of tokens differ; a stream that failed may be shorter, never another."""
    if answer.failure is None:
        return answer.texts != undisturbed.texts or answer.num_tokens != undisturbed.num_tokens
    return any(not undisturbed.texts.get(choice, "").startswith(text) for choice, text in answer.texts.items())
