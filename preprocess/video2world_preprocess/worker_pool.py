"""Run work on items in helper processes; a crash costs only the item that it happened on."""

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

__all__ = ["Helpers"]

Load = Callable[[str], Callable[[Any], Any]]
LAST_WORDS = 5.0  # seconds for a process whose connection has closed to end


def _serve(connection: Any, load: Load, device: str) -> None:
    """Load once, then work on each item that comes; the main function of a helper process."""
    end_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent needs no more
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
    """Return ``error`` if it survives pickling to another process, else one with its text."""
    try:
        if isinstance(error, OSError | UserError) and str(pickle.loads(pickle.dumps(error))):  # noqa: S301
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


class _Helper:
    """One process, started when it is first needed and again after a crash."""

    def __init__(self, load: Load, device: str) -> None:
        self._load, self._device = load, device
        self._lock = threading.Lock()
        self._closed = False
        self._process: Any = None
        self._connection: Any = None

    def run(self, item: Any) -> Any:
        """Return what the work on ``item`` returns, and raise what it raises.

        Raises:
            Crashed: the process ended.
            OSError: it ended twice while it loaded what it needs.
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
        theirs.close()  # so that reading ends when the process does
        self._exchange(lambda: None)

    def _exchange(self, send: Callable[[], None]) -> Any:
        try:
            send()
            good, value = self._connection.recv()
        except (EOFError, ConnectionError):
            raise Crashed(self._end_of_process()) from None
        if not good:
            raise value
        return value

    def _end_of_process(self) -> str:
        """Forget the process that has ended, and say how it did."""
        process, self._process = self._process, None
        self._connection.close()
        process.join(LAST_WORDS)
        code = process.exitcode
        if code is None:
            process.kill()
        if code == -signal.SIGKILL:
            return "a worker process was killed, most likely for want of memory"
        if code is not None and code < 0:
            return f"a worker process was ended by {signal.Signals(-code).name}"
        return f"a worker process ended with exit code {code}"

    def close(self, now: bool) -> None:
        """End the process; at once if ``now``, whatever it works on."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None and now:
            process.terminate()
        elif process is not None:
            self._connection.close()
            process.join()


class Helpers:
    """Processes, one for each of the devices ``on``, that call ``load(device)`` once.

    What that returns is called with each item that is submitted. An item on which a process ends
    is tried once more, alone: it may have been killed for want of memory that others took. A
    context manager; on an error nothing is waited for.
    """

    def __init__(self, load: Load, on: Sequence[str]) -> None:
        self._helpers = [_Helper(load, device) for device in on]
        self._tasks: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._running = self._waiting = 0
        self._alone = self._closed = False

    def __enter__(self) -> Helpers:
        for helper in self._helpers:
            # daemons: a pod that is asked to end does not wait for them
            thread = threading.Thread(target=self._work_off, args=(helper,), daemon=True)
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
        for helper in self._helpers:
            helper.close(now=self._closed)

    def submit(self, item: Any) -> Future[Any]:
        """Return what will hold the result of ``item``, or :class:`.faults.Crashed`."""
        future: Future[Any] = Future()
        self._tasks.put((item, future))
        return future

    def _work_off(self, helper: _Helper) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            item, future = task
            try:
                future.set_result(self._run(helper, item))
            except BaseException as error:
                future.set_exception(error)

    def _run(self, helper: _Helper, item: Any) -> Any:
        try:
            with self._turn(alone=False):
                return helper.run(item)
        except Crashed:
            if self._closed:
                raise
        with self._turn(alone=True):
            return helper.run(item)

    @contextlib.contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Run among others, or alone: then those that have begun are waited for."""
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
