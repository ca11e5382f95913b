"""What is older than it is kept goes; what a batch still needs stays."""

import os
from pathlib import Path

from serve_app.config.batches import BatchesConfig
from serve_app.gateway.batches.batch_store import BatchStore
from serve_app.gateway.batches.file_store import DAY_S, FileStore
from serve_app.gateway.batches.places import OPEN_OWNER, Places
from serve_app.gateway.batches.sweep import sweep
from serve_app.gateway.bodies.batches import BatchBody

START_S = 1_000_000_000.0


def stores(root: Path, now_s: float, keep_days: float = 1.0) -> tuple[FileStore, BatchStore, BatchesConfig]:
    config, places = BatchesConfig(directory=str(root), keep_days=keep_days), Places(root)
    return FileStore(places, config, lambda: now_s), BatchStore(places, lambda: now_s), config


def uploaded(files: FileStore) -> str:
    upload = files.begin(OPEN_OWNER)
    upload.write(b"{}\n")
    return upload.finish("lines.jsonl", "batch", None).id


def names(places: Places) -> tuple[set[str], set[str]]:
    return set(os.listdir(places.files(OPEN_OWNER))), set(os.listdir(places.batches(OPEN_OWNER)))


def test_old_files_and_ended_batches_go_and_what_is_needed_stays(tmp_path: Path) -> None:
    files, batches, _config = stores(tmp_path, START_S)
    unused, needed, of_ended = (uploaded(files) for _ in range(3))
    open_batch, ended = (
        batches.create(
            OPEN_OWNER, BatchBody(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h")
        )
        for file_id in (needed, of_ended)
    )
    (batches.places.queue / ended.id).unlink()
    sweep(*stores(tmp_path, START_S + 0.9 * DAY_S))
    assert names(files.places) == ({unused, needed, of_ended}, {open_batch.id, ended.id})
    sweep(*stores(tmp_path, START_S + 1.1 * DAY_S))
    assert names(files.places) == ({needed}, {open_batch.id, ended.id})
    sweep(*stores(tmp_path, START_S + 2.1 * DAY_S))
    assert names(files.places) == ({needed}, {open_batch.id})


def test_a_file_that_never_arrived_goes_when_it_is_two_days_old(tmp_path: Path) -> None:
    files, batches, config = stores(tmp_path, START_S, keep_days=30.0)
    upload = files.begin(OPEN_OWNER)
    upload.write(b"half a li")  # and the process dies
    [file_id] = os.listdir(files.places.files(OPEN_OWNER))
    os.utime(files.place_of(OPEN_OWNER, file_id), (START_S, START_S))
    make_batches = files.places.batches(OPEN_OWNER)
    make_batches.mkdir()
    for days, is_there in ((1.9, True), (2.1, False)):
        sweep(*stores(tmp_path, START_S + days * DAY_S, keep_days=30.0))
        assert (file_id in names(files.places)[0]) == is_there
    assert files.stored_bytes(OPEN_OWNER) == 0
    upload.drop()
    sweep(files, batches, config)


def test_an_empty_directory_has_nothing_to_delete(tmp_path: Path) -> None:
    sweep(*stores(tmp_path, START_S))
    assert os.listdir(tmp_path) == []
