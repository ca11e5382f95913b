"""Seeded examples of the demo model's five tasks; the standard library is enough."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import NamedTuple


class Example(NamedTuple):
    """A prompt and the one answer that counts as right."""

    prompt: str
    answer: str


HELD_OUT_ONE_IN = 16
COMPLETION_SUFFIX = " ="
MIN_YEAR, MAX_YEAR = 1900, 2099
MAX_SPELLED = 99_999
MAX_ADDEND = 999

MONTHS = ("january february march april may june july august september october november december").split()  # noqa: SIM905
DAYS_PER_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ONES = (  # noqa: SIM905
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
WORDS = (  # noqa: SIM905
    "ant apple ash bat bean bear bee bird boat bread cat cedar cherry cloud cow crab crow date deer desk dog door "
    "duck eagle eel egg elm fern fig fish fox frog goat goose grape hare hat hawk hen house ink ivy jam kite kiwi "
    "lamb leaf lemon lime lion lynx mango maple melon mint mole moon moth mouse mule nut oak olive onion otter owl "
    "palm panda peach pear pen pig pine plum pony quail rain rat raven red rice river rose rye seal sheep snow star "
    "sun swan table tea tiger toad tree tulip vine water wheat wind wolf yak zebra"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiou"


def sample_date(rng: Random) -> Example:
    """A calendar date in one of eight spellings, to ISO 8601."""
    year = rng.randint(MIN_YEAR, MAX_YEAR)
    month = rng.randint(1, 12)
    day = rng.randint(1, days_in_month(year, month))
    name = MONTHS[month - 1]
    if rng.random() < 0.5:
        name = name[:3]
    if rng.random() < 0.3:
        name = name.capitalize()
    spellings = (
        f"{name} {day} {year}",
        f"{name} {day}, {year}",
        f"{name} {day}{ordinal_suffix(day)} {year}",
        f"{name} {day}{ordinal_suffix(day)}, {year}",
        f"{day} {name} {year}",
        f"{day}{ordinal_suffix(day)} {name} {year}",
        f"{day}{ordinal_suffix(day)} of {name} {year}",
        f"{year} {name} {day}",
    )
    return Example(f"date {rng.choice(spellings)}", f"{year:04d}-{month:02d}-{day:02d}")


def sample_spell(rng: Random) -> Example:
    """A whole number of up to five digits, to English words."""
    number = sample_number(rng, MAX_SPELLED)
    return Example(f"spell {number}", spell_number(number))


def sample_sort(rng: Random) -> Example:
    """Three to five lower-case words, to alphabetical order."""
    words = [sample_word(rng, 2, 6) for _ in range(rng.randint(3, 5))]
    if rng.random() < 0.25:
        words[0] = words[1][: rng.randint(1, 2)] + words[0][1:]  # ties in the first letters
    rng.shuffle(words)
    return Example(f"sort {' '.join(words)}", " ".join(sorted(words)))


def sample_reverse(rng: Random) -> Example:
    """A lower-case word of three to eight letters, to its letters from last to first."""
    word = sample_word(rng, 3, 8)
    return Example(f"reverse {word}", word[::-1])


def sample_add(rng: Random) -> Example:
    """Two whole numbers of up to three digits, to their sum."""
    left, right = sample_number(rng, MAX_ADDEND), sample_number(rng, MAX_ADDEND)
    return Example(f"add {left} {right}", str(left + right))


TASKS: Mapping[str, Callable[[Random], Example]] = {
    "date": sample_date,
    "spell": sample_spell,
    "sort": sample_sort,
    "reverse": sample_reverse,
    "add": sample_add,
}


def is_held_out(prompt: str) -> bool:
    """Whether the prompt belongs to the one sixteenth that training never sees."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def sample_training(task: str, rng: Random) -> Example:
    """One example that is not held out."""
    while is_held_out((example := TASKS[task](rng)).prompt):
        pass
    return example


def heldout(task: str, count: int, seed: int) -> list[Example]:
    """The first `count` distinct held-out examples that the seed draws."""
    examples = iterate_heldout(task, Random(f"{task}-{seed}"))
    return [next(examples) for _ in range(count)]


def iterate_heldout(task: str, rng: Random) -> Iterator[Example]:
    """Distinct held-out examples, without end where the task has enough of them."""
    seen: set[str] = set()
    while True:
        example = TASKS[task](rng)
        if example.prompt not in seen and is_held_out(example.prompt):
            seen.add(example.prompt)
            yield example


def days_in_month(year: int, month: int) -> int:
    """Days of a month in the Gregorian calendar."""
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and is_leap else DAYS_PER_MONTH[month - 1]


def ordinal_suffix(day: int) -> str:
    """The two letters that make 1 into 1st."""
    if day in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def spell_number(number: int) -> str:
    """English words of a number below one million."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, size)
    return f"{spell_number(head)} {name}" + (f" {spell_number(rest)}" if rest else "")


def sample_number(rng: Random, max_number: int) -> int:
    """A number up to `max_number`, which is all nines; a third of the draws are shorter ones."""
    max_digits = len(str(max_number))
    num_digits = max_digits if rng.random() < 0.67 else rng.randint(1, max_digits)
    return rng.randrange(10 ** (num_digits - 1) if num_digits > 1 else 0, 10**num_digits)


def sample_word(rng: Random, min_letters: int, max_letters: int) -> str:
    """An English word, a word of syllables or random letters, within the given length."""
    kind = rng.randrange(5)
    num_letters = rng.randint(min_letters, max_letters)
    if kind == 0:
        return rng.choice([word for word in WORDS if min_letters <= len(word) <= max_letters])
    if kind < 3:
        return "".join(rng.choice(VOWELS if index % 2 else LETTERS) for index in range(num_letters))
    return "".join(rng.choice(LETTERS) for _ in range(num_letters))
