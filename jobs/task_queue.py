"""The only producer of Celery messages. A ring says "look at the table" and carries no truth: it may be lost,
doubled or late, and nothing bad follows. The reconciler heals lost ones. A forged one starts nothing that is not in the
table; who can write to Redis can at worst end a worker process, whose job is queued again.
"""

import logging
import threading
from enum import StrEnum
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import RedisError

from jobs.settings import Settings

logger = logging.getLogger(__name__)

BROKER_ERRORS = (OperationalError, ChannelError, RedisError)
"""What sending and counting raise when Redis does not answer, or answers with an error such as a full memory."""

PUBLISH_SECONDS = 1.0
"""A ring that takes longer is given up."""
PAUSE_SECONDS = 0.2
"""Between two rings of one process."""


class Queue(StrEnum):
    TRAIN = "train"
    """Workers with GPUs (or the CPU) that run jobs."""
    CHECK = "check"
    """Workers that check datasets; they need no GPU."""


TASKS = {Queue.TRAIN: "run_next_job", Queue.CHECK: "check_next_dataset"}
"""The one task of each queue. It takes no arguments."""


class RedisNotConfigured(Exception):
    """There is no Redis URL."""


def get_redis_url(settings: Settings) -> str:
    """Raises RedisNotConfigured."""
    if settings.redis_url is None:
        raise RedisNotConfigured(
            "MEDTUNE_REDIS_URL is not set; set it, or use `medtune serve`, which runs a Redis of its own"
        )
    return settings.redis_url.get_secret_value()


def build_celery(settings: Settings, **options: Any) -> Celery:
    """The Celery application of producers and workers: the same transport options everywhere, as Redis needs it."""
    app = Celery("medtune", broker=get_redis_url(settings), set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,  # The lease in the database recovers work, not the broker.
        task_routes={task: {"queue": queue_name.value} for queue_name, task in TASKS.items()},
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": "medtune:",
            "visibility_timeout": 3600,
            "socket_connect_timeout": PUBLISH_SECONDS,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        **options,
    )
    return app


class Doorbell:
    """Rings from a thread of its own, so that a request never waits for Redis.

    Rings of the same moment become one: the worker that it wakes rings for the next while there is more to do.
    """

    def __init__(self, settings: Settings) -> None:
        self._celery = build_celery(settings)
        self._celery.conf.broker_transport_options |= {"socket_timeout": PUBLISH_SECONDS, "retry_on_timeout": False}
        self._wanted: set[Queue] = set()
        self._is_wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
        self._thread.start()

    def ring(self, name: Queue) -> None:
        """Ask an idle worker of the queue to look at the table; after the commit, so that it finds what it is rung for.

        Returns at once.
        """
        self._wanted.add(name)
        self._is_wanted.set()

    def close(self) -> None:
        """Send what was asked for, at most for as long as one ring takes."""
        self._closing.set()
        self._is_wanted.set()
        self._thread.join(timeout=2 * PUBLISH_SECONDS)
        self._celery.close()

    def _run(self) -> None:
        while self._is_wanted.wait():
            self._is_wanted.clear()
            while self._wanted:
                self._try_to_ring(self._wanted.pop())
            if self._closing.wait(PAUSE_SECONDS):
                return

    def _try_to_ring(self, name: Queue) -> None:
        try:
            ring(self._celery, name)
        except BROKER_ERRORS as error:
            logger.warning("cannot ring the workers, the reconciler will: %s", error)


def ring(celery: Celery, name: Queue) -> None:
    """Send one message. Raises one of BROKER_ERRORS."""
    celery.send_task(TASKS[name], queue=name.value, retry=False, expires=3600)


def count_waiting_rings(celery: Celery, name: Queue) -> int:
    """Messages that no worker took yet. Raises one of BROKER_ERRORS."""
    with celery.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=PUBLISH_SECONDS)
        declared = connection.default_channel.queue_declare(name.value, passive=False)
        return int(declared.message_count)
