"""A real server on a loopback port, in a thread, over a guard of a tiny model."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from lasa.guard.guard import Guard
from lasa.serving.app import ServerSettings, create_app


@dataclass
class Served:
    """A running server."""

    url: str
    guard: Guard
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def scheduler(self):
        return self.server.config.app.state.scheduler

    def wait_for(self, condition, seconds: float = 10.0) -> None:
        """Wait until something becomes true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.005)


@contextmanager
def serving(guard: Guard, **settings) -> Iterator[Served]:
    """Serve a guard until the body ends; then stop as a signal would."""
    app = create_app(guard, ServerSettings(**{"model_name": "tiny", "max_new_tokens": 200, **settings}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    served = Served("", guard, server, thread)
    served.wait_for(lambda: server.started)
    served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def slow_down(monkeypatch, seconds: float) -> None:
    """Make every step of the batch take at least so long."""
    from lasa.serving.batch import RunningBatch

    step = RunningBatch.step

    def slow(self):
        time.sleep(seconds)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", slow)
