"""Requests that a step was lost with: each is tried apart from others, so that a second loss tells whose doing it is.

A sequence is on trial in the steps of its prompt and in the one that draws its next token.
"""

from collections.abc import Sequence

from serve_app.scheduling.sequence import Sequence as TokenSequence


def is_kept_apart(sequence: TokenSequence, running: Sequence[TokenSequence]) -> bool:
    """Whether a newcomer, or a suspect before its draw, must wait: a lost step shall be of one on trial."""
    return any(one.is_on_trial and one.request_id != sequence.request_id for one in running)


def end_trials(running: Sequence[TokenSequence]) -> bool:
    """Let those go on that wait for one on trial, which waits for their blocks; False: there is none."""
    on_trial = [one for one in running if one.is_on_trial]
    for one in on_trial:
        one.is_on_trial = False
    return bool(on_trial)
