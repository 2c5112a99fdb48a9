"""The settings of gunicorn in the container: a worker per core, or as many as the variable WEB_CONCURRENCY says."""

from __future__ import annotations

import functools
import os
import signal
from typing import Any

wsgi_app = "echo_server:service"
worker_class = "ngi_gevent.gunicorn.Worker"
workers = int(os.environ.get("WEB_CONCURRENCY") or len(os.sched_getaffinity(0)))
bind = "0.0.0.0:8000"
graceful_timeout = 8  # less than the 10 seconds after which engines kill a container that they stop
worker_tmp_dir = "/dev/shm"  # a file system in memory, which exists even in a read-only container
control_socket_disable = True  # its file would be in the home directory


def when_ready(arbiter: Any) -> None:
    # Signals are blocked from the start of process 1, so that none is lost while gunicorn starts.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT])


def post_worker_init(worker: Any) -> None:
    """Answer health checks, in each worker. The kernel picks one worker."""
    from echo_server import Health

    import ngi_gevent

    health = functools.partial(Health, lambda: not worker.alive)
    ngi_gevent.listener(("0.0.0.0", 8001), health, reuse_port=True, max_connections=10, idle_timeout=5)
