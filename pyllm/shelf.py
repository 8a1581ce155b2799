"""Sequences that are kept on a disk, so that what was computed survives the memory that it was in, and a
restart.

A folder has a file a sequence, in the format of saved sessions: checksummed, and of one model. Its name is
made of digests, of whose it is and of its tokens; none comes from a request. Who may read the files may read
the texts: the folder is this user's alone.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from typing import Any

import numpy as np

from pyllm import saved
from pyllm.binding import LLMError, Model, Saved, shared_prefix

END = ".session"
WAITING = 4  # sequences that wait to be written at most: others are let go of


class Shelf:
    """The sequences of one model in a folder, which is made if it is not there.

    kv       how keys and values are kept, of enum llm_kv
    context  tokens that a sequence may have
    size     bytes of all files at most: those that were used the longest ago go first
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: Model, kv: int, context: int, size: int
    ) -> None:
        self.folder, self.size = Path(folder), size
        self._model, self._kv, self._context = model, kv, context
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._known: dict[str, list[int]] = {}  # tokens by the names of files
        for path in sorted(self.folder.glob(f"*{END}"), key=lambda path: path.stat().st_mtime):
            with suppress(LLMError, OSError):  # of another model, or damaged: it is not ours to remove
                self._known[path.name] = saved.read_tokens(path, model, kv, context)
        self._lock = threading.Lock()
        self._queue: Queue[tuple[str, Saved] | None] = Queue(WAITING)
        self._writer = threading.Thread(target=self._write_all, name="pyllm-shelf", daemon=True)
        self._writer.start()

    def find(self, partition: Any, ids: list[int], most: int) -> tuple[str, int]:
        """The file that begins most like ids, and how many of the first `most` of them it holds."""
        owner = _owner(self._model, partition)
        with self._lock:
            own = [(name, tokens) for name, tokens in self._known.items() if name.startswith(owner)]
        shared = [(min(shared_prefix(tokens, ids), most), name) for name, tokens in own]
        if self._model.counts.state:  # it can only be taken as a whole
            shared = [(n, name) for n, name in shared if n == len(self._known.get(name, ()))]
        length, name = max(shared, default=(0, ""))
        return name, length

    def load(self, name: str) -> Saved | None:
        """What a file has; None when it is not what it should be, and then it is removed."""
        path = self.folder / name
        try:
            found = saved.read(path, self._model, self._kv, self._context)
            os.utime(path)
            with self._lock:
                self._known[name] = self._known.pop(name)  # the last that was used
        except (LLMError, OSError, KeyError):
            self._remove(name)
            return None
        return found

    def put(self, partition: Any, kept: Saved) -> None:
        """Has a sequence written soon, unless there is one already that begins with it or too many wait."""
        if self.find(partition, kept.tokens, len(kept.tokens))[1] == len(kept.tokens):
            return
        ids = hashlib.sha256(np.array(kept.tokens, "<u4").tobytes()).hexdigest()[:32]
        with suppress(Full):
            self._queue.put_nowait((f"{_owner(self._model, partition)}-{ids}{END}", kept))

    def close(self, timeout: float | None = None) -> None:
        """Waits until all is written."""
        with suppress(Full):
            self._queue.put(None, timeout=timeout)
        self._writer.join(timeout)

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            name, kept = item
            with suppress(OSError):  # a full disk is no reason to stop
                saved.write(self.folder / name, self._model, self._kv, kept)
                with self._lock:
                    self._known[name] = kept.tokens
                self._make_room()

    def _make_room(self) -> None:
        """Removes the files that were used the longest ago while there are too many bytes."""
        with self._lock:
            names = list(self._known)
        sizes = {name: self._size(name) for name in names}
        for name in names[:-1]:
            if sum(sizes.values()) <= self.size:
                return
            sizes.pop(name)
            self._remove(name)

    def _size(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return 0

    def _remove(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)
        with suppress(OSError):
            (self.folder / name).unlink()


def _owner(model: Model, partition: Any) -> str:
    """Whose files these are, as they are named: those of other partitions and models are called otherwise."""
    return hashlib.sha256(model.fingerprint + repr(partition).encode()).hexdigest()[:32]
