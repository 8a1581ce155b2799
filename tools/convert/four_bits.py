"""Writes the matrices of a flat file that have four bits: each as its source has it, if that lies on such a
grid already; else rounded as int4.py does it, by what the model's products see of a text.

For that the model runs once, as int8 from a file of its own, over all tokens of the text as one batch. The
engine shows each product's input before it computes it (llm_observe), and the matrix is rounded and written
there and then: memory is what one matrix takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pyllm._llm import ffi, lib

from pyllm.binding import LLMError, Model, call

from . import calibrate, flatfile, int4
from .calibrate import Calibration, Encoder
from .flatfile import Error, Job, Place
from .sources import ConvertError, Grid, Tensor

T = TypeVar("T")
R = TypeVar("R")
NUMBERS = {name: number for number, name in flatfile.TENSOR_IDS}
SPOTS = 8  # places in a matrix that its codebook is fitted to


@ffi.def_extern()  # type: ignore[untyped-decorator]
def pyllm_observer(
    handle: Any, tensor: int, layer: int, expert: int, n: int, cols: int, x: Any, stride: int
) -> None:
    """The llm_observer of run()."""
    observer: Observer = ffi.from_handle(handle)
    try:
        rows = np.frombuffer(ffi.buffer(x, 4 * ((n - 1) * stride + cols)), np.float32)
        seen = np.lib.stride_tricks.as_strided(rows, (n, cols), (4 * stride, 4), writeable=False)
        observer.see(tensor, layer, expert, np.ascontiguousarray(seen))
    except BaseException as error:  # it must not go through C
        observer.fail(error)


class Observer:
    """Who is shown the inputs of a session's products: see(tensor, layer, expert, x), x (n, cols) float32,
    which is valid until it returns. The first exception is kept, and ends what the session is at."""

    def __init__(self, see: Callable[[int, int, int, np.ndarray], None], session: Any) -> None:
        self.see, self.session = see, session
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """There is nothing more to see."""
        if self.error is None:
            self.error = error
        lib.llm_stop(self.session)


def sequences(model: Model, text: str) -> tuple[list[list[int]], int]:
    """The text's first tokens, at most calibrate.TOKENS of them, as sequences that each begin as a text does;
    and how many they are."""
    before = model.encode("", 0)  # BOS, of a model that has it before each text
    ids = model.encode(text, lib.LLM_NO_BOS)[: calibrate.TOKENS]
    length = min(calibrate.LENGTH, model.header.context) - len(before)
    if not ids or length < 1:
        raise ConvertError("there is no token to calibrate with")
    return [before + ids[start : start + length] for start in range(0, len(ids), length)], len(ids)


def run(
    path: Path,
    text: str,
    see: Callable[[int, int, int, np.ndarray], None],
    stop: Callable[[], None] = lambda: None,
) -> int:
    """Runs the model at `path` over a text and shows its products' inputs, in a thread of its own; how many
    tokens of the text that were. Ctrl-C ends it after at most one see(), and stop() is called then, so that
    this can end early."""
    model = Model(os.fspath(path))
    parts, count = sequences(model, text)
    tokens = [token for part in parts for token in part]
    seqs = [seq for seq, part in enumerate(parts) for _ in part]
    if max(tokens) >= model.vocab_size:
        raise ConvertError(f"the text to calibrate with has a token {max(tokens)}, which the model lacks")
    options = dict(context=max(map(len, parts)), n_seqs=len(parts), batch=len(tokens))
    session = call(lib.llm_session_open, model.ptr, ffi.new("llm_options *", options))
    observer = Observer(see, session)
    handle = ffi.new_handle(observer)
    lib.llm_observe(session, lib.pyllm_observer, handle)
    try:
        # in another thread, so that this one sees Ctrl-C while the engine is at work
        with ThreadPoolExecutor(1) as worker:
            arguments = (session, len(tokens), tokens, seqs, ffi.NULL, ffi.NULL)
            done = worker.submit(call, lib.llm_forward, *arguments)
            try:
                done.result()
            except LLMError as error:
                if observer.error is None:
                    raise ConvertError(
                        f"the model does not run over the text to calibrate with: {error}"
                    ) from None
            except BaseException as error:
                observer.fail(error)
                stop()
                while not done.done():
                    with suppress(KeyboardInterrupt):  # the first one has been heard
                        wait([done])
                raise
    finally:
        lib.llm_session_close(session)
    if observer.error is not None:
        raise observer.error
    return count


class Writer:
    """Rounds and writes matrices to an open file, (place, parts) each, in whatever order they are seen."""

    def __init__(
        self,
        fd: int,
        tensors: Iterable[tuple[Place, list[Tensor]]],
        pool: ThreadPoolExecutor,
        progress: Callable[[int], None],
    ) -> None:
        self.fd, self.pool, self.progress = fd, pool, progress
        self.waiting = {
            (NUMBERS[place.tensor], place.layer, place.expert): (place, parts) for place, parts in tensors
        }
        self.calibration = Calibration(each=self.map)
        self.layer = 0  # the one at work
        self.routed = False  # whether it has experts
        self.errors: dict[str, Error] = {}
        self.stopped = threading.Event()

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """pool.map(), which ends once stopped is set."""

        def unless_stopped(item: T) -> R:
            if self.stopped.is_set():
                raise ConvertError("the conversion was stopped")
            return work(item)

        return self.pool.map(unless_stopped, items)

    def calibrate(self, model: Path, text: str, notes: list[str]) -> None:
        """Rounds what the model at `model` shows of itself over a text; what is to be said about the text is
        added to notes."""
        tokens = run(model, text, self.see, self.stopped.set)
        self.finish_layer()
        if tokens < calibrate.FEW:
            notes.append(
                f"the text to calibrate with has only {tokens} tokens: of a longer one "
                f"{calibrate.TOKENS} would be used, and tell more"
            )

    def see(self, tensor: int, layer: int, expert: int, x: np.ndarray) -> None:
        """The input of a product, for run()."""
        if layer != self.layer:
            self.finish_layer()
            self.layer, self.routed = layer, False
        if tensor == lib.LLM_ROUTER:
            self.routed = True
            self.calibration.layer_inputs(layer, self.multiplied(x))
        if (tensor, layer, expert) in self.waiting:
            self.encode(tensor, layer, expert, self.encoder(tensor, layer, expert, x))

    def encoder(self, tensor: int, layer: int, expert: int, x: np.ndarray) -> Encoder:
        """How a matrix with these inputs is rounded. What all experts of a layer are given, an expert that
        sees little of it is rounded by, too; its second matrix is not."""
        of_expert = expert if self.routed and tensor == lib.LLM_GATE_UP else None
        return self.calibration.observe(tensor, layer, of_expert, self.multiplied(x))

    def multiplied(self, x: np.ndarray) -> np.ndarray:
        """What the stored weights are multiplied with."""
        return x

    def finish_layer(self) -> None:
        """Experts that no token came to, by what their layer has seen."""
        for tensor, layer, expert in [key for key in self.waiting if key[1] == self.layer]:
            nothing = np.zeros((0, self.waiting[tensor, layer, expert][0].cols), np.float32)
            self.encode(tensor, layer, expert, self.encoder(tensor, layer, expert, nothing))

    def finish(self) -> None:
        """What is left, without data."""
        for key in list(self.waiting):
            self.encode(*key, Encoder(self.waiting[key][0].cols))

    def encode(self, tensor: int, layer: int, expert: int, encoder: Encoder) -> None:
        """Rounds one matrix and writes it."""
        place, parts = self.waiting.pop((tensor, layer, expert))
        jobs = list(flatfile.jobs([(place, parts)]))
        for job, errors in zip(jobs, self.rounded(place, parts, jobs, encoder), strict=True):
            for (part, _, _), error in zip(job.pieces, errors, strict=True):
                self.errors.setdefault(part.name, Error()).add(error)
            self.progress(place.size * (job.stop - job.start) // place.rows)

    def rounded(
        self, place: Place, parts: list[Tensor], jobs: list[Job], encoder: Encoder
    ) -> Iterable[list[Error]]:
        """Rounds and writes a matrix; the errors of each job's pieces."""
        done = self.on_grid(place, parts, jobs)
        if done is not None:
            return done
        rounder = encoder.rounder(sample(place, parts))
        return self.map(lambda job: self.write(job, rounder.rows), jobs)

    def on_grid(self, place: Place, parts: list[Tensor], jobs: list[Job]) -> Iterable[list[Error]] | None:
        """Writes a matrix that has four bits already as it is; None: it has not."""
        grids = [part.grid() for part in parts]
        if any(grid is None or not np.array_equal(grid.codebook, grids[0].codebook) for grid in grids):  # type: ignore[union-attr]
            return None

        def rows(job: Job) -> int4.Int4:
            found = [
                (grid, first, last) for grid, (_, first, last) in zip(grids_of(job), job.pieces, strict=True)
            ]
            index = np.concatenate([grid.codes(first, last) for grid, first, last in found])
            scale = np.concatenate([grid.scales(first, last) for grid, first, last in found])
            matrix = int4.encode_grid(index, found[0][0].codebook, scale)
            assert matrix is not None  # its scales are fp16
            return matrix

        def grids_of(job: Job) -> list[Grid]:
            return [grid for part, _, _ in job.pieces if (grid := part.grid()) is not None]

        return list(self.map(lambda job: self.write(job, lambda _: rows(job)), jobs))

    def write(self, job: Job, rounded: Callable[[np.ndarray], int4.Int4]) -> list[Error]:
        """Reads, rounds and writes some rows; the error made in each piece."""
        place = job.place
        pieces = [part.read(first, last) for part, first, last in job.pieces]
        for (part, _, _), w in zip(job.pieces, pieces, strict=True):
            try:
                int4.check(w)
            except ValueError as error:
                raise ConvertError(f"{part.name} {error}") from None
        weights = np.concatenate(pieces)
        matrix = rounded(weights)
        stride, padded = int4.stride(place.cols), -(-place.rows // int4.TILE) * int4.TILE
        if job.start == 0:
            flatfile.write_at(self.fd, int4.pack_codebook(matrix.codebook), place.offset)
        at = place.offset + int4.HEAD
        flatfile.write_at(
            self.fd, int4.pack_index(matrix.indices, matrix.codebook), at + job.start * stride // 2
        )
        at += padded * stride // 2
        scale = int4.pack_scale(matrix.scale, place.cols)
        flatfile.write_at(self.fd, scale, at + job.start * stride // int4.GROUP * 2)
        return errors_of(pieces, int4.decode(matrix) - weights)


def errors_of(pieces: list[np.ndarray], difference: np.ndarray) -> list[Error]:
    """The error of each piece, from the difference of all of them."""
    found, row = [], 0
    for w in pieces:
        wrong, size = np.abs(difference[row : row + len(w)]), np.abs(w)
        row += len(w)
        found.append(
            Error(
                largest=float(wrong.max(initial=0)),
                total=float(wrong.sum(dtype=np.float64)),
                count=w.size,
                top=float(size.max(initial=0)),
                weight=float(size.sum(dtype=np.float64)),
            )
        )
    return found


def sample(place: Place, parts: list[Tensor]) -> np.ndarray:
    """Rows from all over a matrix that its codebook can be fitted to, about int4.SAMPLE weights."""
    count = max(1, int4.SAMPLE // SPOTS // max(1, place.cols))
    rows, starts = [], np.linspace(0, place.rows, SPOTS, endpoint=False, dtype=int)
    for part, first in zip(parts, np.cumsum([0, *(part.rows for part in parts)]), strict=False):
        for start in starts[(starts >= first) & (starts < first + part.rows)] - first:
            rows.append(part.read(int(start), min(int(start) + count, part.rows)))
    return np.concatenate(rows)


def write(
    fd: int,
    tensors: Iterable[tuple[Place, list[Tensor]]],
    threads: int,
    progress: Callable[[int], None],
    model: Path | None,
    text: str,
    notes: list[str],
) -> dict[str, Error]:
    """Writes matrices to an open flat file, by what the model at `model` sees of a text; None: without data.
    Returns the error by source tensor. What is to be said about the text is added to notes."""
    with ThreadPoolExecutor(threads) as pool:
        writer = Writer(fd, tensors, pool, progress)
        if model is not None:
            writer.calibrate(model, text, notes)
        writer.finish()
    return writer.errors
