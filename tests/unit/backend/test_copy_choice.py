"""Which copy a request goes to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from serve_app.backend import copy_choice
from serve_app.backend.copy_choice import REASONS, Choice, CopyChooser
from serve_app.backend.prompt_marks import RoutedPrompt
from tests.routing_simulation import ByPrefix, Chats, PowerOfTwo, Simulation, Turn


@dataclass
class Copy:
    """A copy as a backend sees it."""

    replica_id: str
    load: float = 0.0
    num_blocks: int = 1000


def prompt(start: int, num_tokens: int = 400, *, salt: str = "", session: str = "") -> RoutedPrompt:
    return RoutedPrompt(range(start, start + num_tokens), 16, salt, session)


def sent(chooser: CopyChooser, copies: Sequence[Copy], one: RoutedPrompt) -> tuple[Copy, Choice]:
    copy, choice = chooser.choose(copies, one)
    chooser.note_sent(copy, one, choice)
    return copy, choice


@pytest.fixture
def copies() -> list[Copy]:
    return [Copy("a"), Copy("b"), Copy("c")]


def test_a_prompt_goes_where_its_beginning_went(copies: list[Copy]) -> None:
    chooser = CopyChooser()
    first, choice = sent(chooser, copies, prompt(7))
    assert choice.reason == "hash"
    first.load = 1.0
    again, choice = sent(chooser, copies, prompt(7, 600))
    assert again is first
    assert choice == Choice(first.replica_id, "prefix", 384)
    assert chooser.counts() == {"prefix": 1, "session": 0, "hash": 1, "load": 0}
    assert tuple(chooser.counts()) == REASONS


def test_balance_wins_where_it_is_worth_more_than_what_is_held(copies: list[Copy]) -> None:
    chooser = CopyChooser(request_tokens=100.0)
    holder, _ = sent(chooser, copies, prompt(7))  # 384 tokens are held
    holder.load = 3.0
    assert chooser.choose(copies, prompt(7))[0] is holder
    holder.load = 4.0
    other, choice = sent(chooser, copies, prompt(7))
    assert other is not holder
    assert choice.reason == "load"
    assert choice.num_held_tokens == 0
    assert sent(chooser, copies, prompt(7))[1].reason == "prefix"  # two have it now


def test_what_a_request_takes_is_learnt() -> None:
    chooser = CopyChooser()
    for _ in range(200):
        chooser.note_ended(30, 70)
    assert chooser.request_tokens == pytest.approx(100.0, rel=0.01)


def test_a_copy_that_is_gone_holds_nothing(copies: list[Copy]) -> None:
    chooser = CopyChooser()
    holder, _ = sent(chooser, copies, prompt(7))
    others = [copy for copy in copies if copy is not holder]
    assert chooser.choose(others, prompt(7))[1].num_held_tokens == 0  # it is silent: not among them
    assert chooser.choose(copies, prompt(7))[1].reason == "prefix"
    chooser.forget(holder.replica_id)
    assert chooser.choose(copies, prompt(7))[1] == Choice(holder.replica_id, "hash", 0)


def test_another_key_finds_nothing_of_what_one_has_sent(copies: list[Copy]) -> None:
    chooser = CopyChooser()
    sent(chooser, copies, prompt(7, salt="mine", session="s"))
    stranger = chooser.choose(copies, prompt(7, salt="yours"))[1]
    assert stranger.num_held_tokens == 0
    assert stranger.reason == "hash"


def test_gateways_that_share_nothing_agree_and_the_loss_of_a_copy_moves_only_its_own(copies: list[Copy]) -> None:
    before = [CopyChooser().choose(copies, prompt(start))[0] for start in range(300)]
    assert before == [CopyChooser().choose(copies[::-1], prompt(start))[0] for start in range(300)]
    assert all(count > 60 for count in Counter(copy.replica_id for copy in before).values())
    after = [CopyChooser().choose(copies[:2], prompt(start))[0] for start in range(300)]
    assert all(new is old for old, new in zip(before, after, strict=True) if old is not copies[2])


def test_the_hash_never_chooses_a_copy_much_above_the_mean(copies: list[Copy]) -> None:
    chooser = CopyChooser()
    for start in range(300):
        chooser.choose(copies, prompt(start))[0].load += 1
    assert max(copy.load for copy in copies) <= 126


def test_a_prompt_without_a_block_goes_to_the_least_busy(copies: list[Copy]) -> None:
    copies[0].load = copies[2].load = 1.0
    copy, choice = CopyChooser().choose(copies, prompt(0, 10))
    assert copy is copies[1]
    assert choice.reason == "load"


def test_a_session_stays_on_its_copy_whatever_its_prompts_are(copies: list[Copy]) -> None:
    chooser = CopyChooser(request_tokens=100.0)
    home, choice = sent(chooser, copies, prompt(0, session="s"))
    assert choice.reason == "session"
    assert CopyChooser().choose(copies, prompt(5000, session="s"))[0] is home  # another Gateway
    home.load = 3.0
    assert sent(chooser, copies, prompt(9000, session="s"))[0] is home
    home.load = 5.0
    moved, choice = sent(chooser, copies, prompt(9000, session="s"))
    assert moved is not home
    assert choice.reason == "load"
    home.load = 0.0
    assert chooser.choose(copies, prompt(20_000, session="s"))[0] is moved  # it has moved for good
    left = [copy for copy in copies if copy is not moved]
    assert chooser.choose(left, prompt(20_000, session="s"))[1].reason == "session"


def test_what_is_kept_is_bounded(copies: list[Copy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_choice, "_MAX_MARKS", 300)
    monkeypatch.setattr(copy_choice, "_MAX_SESSIONS", 10)
    chooser = CopyChooser()
    for start in range(100):
        sent(chooser, copies, prompt(1000 * start, session=str(start)))
    assert sum(map(len, chooser._held.values())) <= 300
    assert len(chooser._sessions) == 10
    copies = [Copy("small", num_blocks=30)]
    for start in range(9):
        sent(chooser, copies, prompt(1000 * start))
    assert chooser._held["small"].num_blocks <= 30


@pytest.mark.parametrize("chats", [Chats(), Chats(num_system_tokens=0, has_sessions=True)])
def test_chats_on_three_copies_find_what_was_computed_before(chats: Chats) -> None:
    by_prefix, by_load = Simulation(ByPrefix()), Simulation(PowerOfTwo())
    for simulation in (by_prefix, by_load):
        chats.start(simulation)
        simulation.run()
        assert len(simulation.turns) == 90
    assert by_prefix.hit_share >= 0.9
    assert by_load.hit_share < 0.8
    assert by_prefix.first_s < 0.6 * by_load.first_s
    assert max(copy.most_load for copy in by_prefix.copies) <= 5


def test_two_gateways_that_share_nothing_keep_a_chat_with_a_session_together() -> None:
    simulation = Simulation([ByPrefix(), ByPrefix()])
    Chats(has_sessions=True).start(simulation)
    simulation.run()
    assert simulation.hit_share >= 0.8


def test_one_popular_beginning_does_not_fill_one_copy() -> None:
    simulation = Simulation(ByPrefix())
    popular = list(range(1600))

    def ask(now_s: float) -> None:
        question = [simulation.draw.randrange(2000, 3000) for _ in range(20)]
        simulation.send(Turn(popular + question, 60, now_s))

    for number in range(120):
        simulation.at(0.05 * number, ask)
    simulation.run()
    num_sent = [copy.scheduler.num_prompt_tokens // 1620 for copy in simulation.copies]
    assert min(num_sent) >= 30
    assert simulation.hit_share >= 0.95
    assert max(copy.most_load for copy in simulation.copies) <= 16  # of which 8 run
