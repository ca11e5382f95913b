"""Appends results as they come: those that wait while others are written go together."""

import asyncio

from serve_app.gateway.batches.results import Progress, Result, ResultFiles
from serve_app.preprocessing.text_pool import TextPool


class ResultWriter:
    """Of one batch. threads: of one thread, so that no two write at once."""

    def __init__(self, files: ResultFiles, progress: Progress, threads: TextPool) -> None:
        self._files = files
        self._progress = progress
        self._threads = threads
        self._waiting: list[Result] = []
        self._turn = asyncio.Lock()
        self._failure: OSError | None = None

    async def add(self, result: Result) -> None:
        """Returns once the result is on disk. Raises OSError when it, or one before it, could not be written."""
        self._waiting.append(result)
        async with self._turn:
            if self._failure is not None:
                raise self._failure
            results, self._waiting = self._waiting, []
            if not results:
                return  # it went with another's
            try:
                await self._threads.run(self._files.append, results)
            except OSError as error:
                self._failure = error
                raise
        for one in results:
            self._progress.add(one.line, is_error=one.is_error)
