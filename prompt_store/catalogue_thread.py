"""One thread with one connection to the catalogue, for an event loop to call.

Owns: when the connection is opened, and that it is the file which is there now. Must not know: what is asked.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from prompt_store.blobs import BlobFolder
from prompt_store.catalogue import Catalogue
from prompt_store.errors import PromptStoreError
from prompt_store.unavailable import as_unavailable, primary_code

T = TypeVar("T")


class CatalogueThread:
    """Opens the catalogue on first use, and anew after it failed or was replaced on the disk."""

    def __init__(self, path: Path, blobs: BlobFolder, name: str) -> None:
        self._path = path
        self._blobs = blobs
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._catalogue: Catalogue | None = None
        self._opened: tuple[int, int] | None = None

    async def run(self, job: Callable[[Catalogue], T]) -> T:
        """Run `job` on the thread; what disk and database raise comes back as StoreUnavailable."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, job)

    async def aclose(self) -> None:
        """Close the connection, after the jobs that wait for it."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        self._executor.shutdown()

    def _run(self, job: Callable[[Catalogue], T]) -> T:
        with as_unavailable():
            try:
                return job(self._open())
            except PromptStoreError:
                raise
            except BaseException as error:
                # After anything but a busy lock the connection's state is in doubt: the next job opens anew.
                if not isinstance(error, sqlite3.Error) or primary_code(error) != sqlite3.SQLITE_BUSY:
                    self._close()
                raise

    def _open(self) -> Catalogue:
        # A restored or wiped store is another file under the same name; the open one would go on unseen.
        if self._catalogue is not None and self._opened != self._identity():
            self._close()
        if self._catalogue is None:
            self._blobs.create()
            self._catalogue = Catalogue(self._path)
            self._opened = self._identity()
        return self._catalogue

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _close(self) -> None:
        catalogue, self._catalogue = self._catalogue, None
        if catalogue is not None:
            catalogue.close()
