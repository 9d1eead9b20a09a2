"""Curves of trainings while they run: `tensorboard --logdir logs`."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def curves(name: str, first: int) -> Iterator[Callable[[dict], None]]:
    """A function that adds a row of step and scalars to the curves in logs/<experiment>/<name>.

    The experiment is DVC's, or `workspace`. Experiments in temporary copies write to the logs of their checkout.

    Args:
        name: of the training, with task, seed and variant.
        first: the step that it resumes from; 0 removes the curves of earlier trainings.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    here = Path.cwd()
    root = next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)
    place = root / "logs" / os.environ.get("DVC_EXP_NAME", "workspace") / name
    if first == 0:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    # Not torch's writer: its thread prints a traceback, and loses the curves, where the disk is full.
    with open(place / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}", "wb") as file:
        records = RecordWriter(file)

        def add(**event):
            records.write(Event(wall_time=time.time(), **event).SerializeToString())

        def write(row):
            values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items() if key != "step"]
            add(step=row["step"], summary=Summary(value=values))
            file.flush()

        add(file_version="brain.Event:2")
        add(step=first + 1, session_log=SessionLog(status=SessionLog.START))  # hides later steps of an interrupted run
        yield write
