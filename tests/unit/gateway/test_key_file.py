"""The file of API keys, and the command that makes them."""

from pathlib import Path

import pytest

from serve_app.cli.main import main
from serve_app.errors import ConfigError
from serve_app.gateway.key_file import digest_of, new_key, read_key_file
from tests.api_keys import write_keys


def test_a_line_holds_a_salted_hash_and_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    (key,) = write_keys(path, "name=web models=a,team/b requests_per_minute=60 tokens_per_minute=9 concurrency=2 admin")
    (entry,) = read_key_file(path).values()
    assert digest_of(entry.salt, key) == entry.digest
    assert (entry.name, entry.models, entry.is_admin) == ("web", frozenset({"a", "team/b"}), True)
    assert (entry.requests_per_minute, entry.tokens_per_minute, entry.concurrency) == (60, 9, 2)
    assert key not in path.read_text()
    assert len({new_key("name=x")[0] for _ in range(100)}) == 100


GOOD = new_key("name=good")[1]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "12345678 sha256:00:11 name=x",
        GOOD.replace("name=good", ""),
        GOOD.replace("name=good", "name=a/b"),
        f"{GOOD} speed=9",
        f"{GOOD} concurrency=0",
        f"{GOOD} concurrency=x",
        f"{GOOD} concurrency=1 concurrency=2",
        f"{GOOD} admin=yes",
        f"{GOOD} best_priority=high",
        f"{GOOD} best_priority=1001",
        f"{GOOD} best_priority=",
        f"{GOOD} best_priority=1.5",
        f"{GOOD} models=",
        f"{GOOD}\n{GOOD}",
        f"{GOOD}\n{new_key('name=good')[1]}",
    ],
)
def test_a_wrong_line_is_told_by_its_number_and_not_quoted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# one\n{line}\n")
    with pytest.raises(ConfigError, match=r"line [23]") as caught:
        read_key_file(path)
    assert GOOD.split()[1] not in caught.value.message


def test_the_command_shows_a_key_once_and_keeps_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["key", "new", str(path), "--name", "web", "--models", "a,b", "--requests-per-minute", "5"]) == 0
    key = capsys.readouterr().out.strip()
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    assert main(["key", "new", str(path), "--name", "ops", "--admin"]) == 0
    first, second = read_key_file(path).values()
    assert digest_of(first.salt, key) == first.digest
    assert (first.requests_per_minute, second.is_admin) == (5, True)
    assert main(["key", "new", str(path), "--name", "web"]) == 1
    assert "has a key of name=web" in capsys.readouterr().err
    assert main(["key", "new", str(path), "--name", "x", "--concurrency", "0"]) == 1
    assert len(read_key_file(path)) == 2


def test_a_key_may_have_a_best_priority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["key", "new", str(path), "--name", "batch", "--best-priority", "5"]) == 0
    assert main(["key", "new", str(path), "--name", "urgent", "--best-priority", "-10"]) == 0
    assert main(["key", "new", str(path), "--name", "plain"]) == 0
    assert [entry.best_priority for entry in read_key_file(path).values()] == [5, -10, 0]
    assert main(["key", "new", str(path), "--name", "x", "--best-priority", "5000"]) == 1
    assert "best_priority is not an integer from -1000 to 1000" in capsys.readouterr().err


def test_a_file_of_keys_that_is_not_there_is_found_by_validate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "applications:\n- {name: g, route_prefix: /, import_path: 'serve_app.app:build_gateway', "
        "args: {api_keys_file: keys}}\n"
    )
    assert main(["validate", str(file)]) == 1
    assert "keys cannot be read (FileNotFoundError); make it with `rayshard key new`" in capsys.readouterr().err
