"""Process items in worker processes; a crash costs only the item it happened on."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.subprocesses import end_with_parent
from video2world_preprocess.item_faults import Crashed

__all__ = ["WorkerPool"]

Load = Callable[[str], Callable[[Any], Any]]
EXIT_TIMEOUT = 5.0  # seconds to wait for a process that has closed its connection


def _serve(connection: Any, load: Load, device: str) -> None:
    """Load once, then process each received item; the main function of a worker process."""
    end_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has closed the connection
        try:
            work = load(device)
        except Exception as error:
            connection.send((False, _portable(error)))
            return
        connection.send((True, None))
        while True:
            item = connection.recv()
            try:
                outcome = True, work(item)
            except Exception as error:
                outcome = False, _portable(error)
            connection.send(outcome)


def _portable(error: Exception) -> Exception:
    """Return ``error`` if it can be pickled, else a RuntimeError with its text."""
    try:
        if isinstance(error, OSError | UserError) and str(pickle.loads(pickle.dumps(error))):  # noqa: S301
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


class _Worker:
    """A process that is started when it is first needed, and again after a crash."""

    def __init__(self, load: Load, device: str) -> None:
        self._load, self._device = load, device
        self._lock = threading.Lock()
        self._closed = False
        self._process: Any = None
        self._connection: Any = None

    def run(self, item: Any) -> Any:
        """Process ``item``: return what its work returns, and raise what it raises.

        Raises:
            Crashed: the process ended.
            OSError: the process ended twice while loading.
        """
        if self._process is None:
            try:
                self._start()
            except Crashed:
                if self._closed:
                    raise
                try:
                    self._start()
                except Crashed as error:
                    raise OSError(
                        f"a worker process could not load what it needs: {error}; see above, or "
                        "give the stage more memory (spec.stages)"
                    ) from None
        return self._exchange(lambda: self._connection.send(item))

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with self._lock:
            if self._closed:
                raise Crashed("the stage is ending")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self._load, self._device), daemon=True
            )
            self._process.start()
        theirs.close()  # otherwise recv() would not end with the process
        self._exchange(lambda: None)

    def _exchange(self, send: Callable[[], None]) -> Any:
        try:
            send()
            good, value = self._connection.recv()
        except (EOFError, ConnectionError):
            raise Crashed(self._reap()) from None
        if not good:
            raise value
        return value

    def _reap(self) -> str:
        """Drop the process, which has ended, and return how it ended."""
        process, self._process = self._process, None
        self._connection.close()
        process.join(EXIT_TIMEOUT)
        code = process.exitcode
        if code is None:
            process.kill()
        if code == -signal.SIGKILL:
            return "a worker process was killed, probably because it ran out of memory"
        if code is not None and code < 0:
            return f"a worker process was terminated by {signal.Signals(-code).name}"
        return f"a worker process ended with exit code {code}"

    def close(self, now: bool) -> None:
        """End the process, immediately if ``now``, else after its current item."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None and now:
            process.terminate()
        elif process is not None:
            self._connection.close()
            process.join()


class WorkerPool:
    """One worker process per device; each calls ``load(device)`` once.

    The function that ``load`` returns is called with each submitted item. If a process ends on an
    item, the item is tried once more while no other is running, as the others may have used up the
    memory. A context manager; on an error it does not wait for running items.
    """

    def __init__(self, load: Load, devices: Sequence[str]) -> None:
        self._workers = [_Worker(load, device) for device in devices]
        self._tasks: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._running = self._waiting = 0
        self._alone = self._closed = False

    def __enter__(self) -> WorkerPool:
        for worker in self._workers:
            # daemon threads: a terminating pod does not wait for them
            thread = threading.Thread(target=self._process_tasks, args=(worker,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._closed = kind is not None
        for _ in self._threads:
            self._tasks.put(None)
        if not self._closed:
            for thread in self._threads:
                thread.join()
        for worker in self._workers:
            worker.close(now=self._closed)

    def submit(self, item: Any) -> Future[Any]:
        """Return a future of the result of ``item``; its exception may be :class:`Crashed`."""
        future: Future[Any] = Future()
        self._tasks.put((item, future))
        return future

    def _process_tasks(self, worker: _Worker) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            item, future = task
            try:
                future.set_result(self._run(worker, item))
            except BaseException as error:
                future.set_exception(error)

    def _run(self, worker: _Worker, item: Any) -> Any:
        try:
            with self._turn(alone=False):
                return worker.run(item)
        except Crashed:
            if self._closed:
                raise
        with self._turn(alone=True):
            return worker.run(item)

    @contextlib.contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Run along with other items, or ``alone``, after those that are running have ended."""
        with self._changed:
            self._waiting += alone
            self._changed.wait_for(
                lambda: not self._running if alone else not (self._alone or self._waiting)
            )
            self._waiting -= alone
            self._running += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._alone = False
                self._changed.notify_all()
