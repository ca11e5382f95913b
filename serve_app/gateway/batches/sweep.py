"""Deletes what is older than it is kept. Blocks. May run in several processes at once."""

import logging
import os

from serve_app.config.batches import BatchesConfig
from serve_app.errors import NotFoundError
from serve_app.gateway.batches.batch_store import BatchStore
from serve_app.gateway.batches.file_store import DAY_S, FileStore
from serve_app.gateway.batches.places import BATCH_PREFIX, FILE_PREFIX, made_s, names_in

logger = logging.getLogger(__name__)

_HIDDEN_S = 2 * DAY_S  # a file that is not shown by then never arrived


def sweep(files: FileStore, batches: BatchStore, config: BatchesConfig) -> None:
    """Files past their time and batches that ended long ago; what a batch that has not ended needs stays."""
    places, now_s = files.places, batches.clock()
    queued = batches.queued()
    waiting = {one.batch_id for one in queued}
    needed: set[str] = set()
    for one in queued:
        try:
            state = batches.load(one.owner, one.batch_id)
        except (NotFoundError, OSError):  # it is only just being made, or somebody has broken it
            continue
        needed |= {state.batch.input_file_id, state.output_id, state.error_id}
    num_deleted = 0
    for owner in _folders_in(places.owners):
        for file_id in names_in(places.files(owner), FILE_PREFIX):
            if file_id not in needed and files.is_over(owner, file_id, _HIDDEN_S):
                files.remove(owner, file_id)
                num_deleted += 1
        for batch_id in names_in(places.batches(owner), BATCH_PREFIX):
            if batch_id not in waiting and made_s(batch_id) < now_s - (config.keep_days + 1) * DAY_S:
                batches.remove(owner, batch_id)
                num_deleted += 1
    if num_deleted:
        logger.info("files and batches past their time deleted num=%d", num_deleted)


def _folders_in(path: os.PathLike[str]) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
