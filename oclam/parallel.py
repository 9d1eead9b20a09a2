"""Several processes that train one model together, one a GPU: PyTorch's elastic launcher (torchrun) on one machine.

Every process takes an equal share of each batch; `oclam.training` averages the gradients. The process of rank 0 goes
on alone when training is done, and is the only one that writes.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable
from tempfile import TemporaryDirectory

from oclam.errors import Absent, UserError
from oclam.machine import end_with_parent

HANDLED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT  # by torchrun, which replaces our handlers


def is_worker() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launch(processes: int) -> None:
    """Run the command of this process once more in so many processes, and wait for them.

    Raises UserError or Absent as a process did, or UserError with the traceback of its other error.
    """
    import torch  # here, because workers that only simulate start faster without it
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UserError(f"compute.devices: {processes} given, this machine has {gpus} GPUs")
    logging.disable(logging.CRITICAL)  # torchrun's; all that it would say is said below
    handlers, stopped = {number: signal.getsignal(number) for number in HANDLED}, None
    module = sys.modules["__main__"].__spec__.name  # of `python -m stages.ocp`
    with TemporaryDirectory() as logs:
        quiet = DefaultLogsSpecs(log_dir=logs, redirects={rank: Std.ALL for rank in range(1, processes)})
        config = LaunchConfig(1, 1, processes, quiet, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
                              rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0)
        try:
            elastic_launch(config, sys.executable)("-m", module, *sys.argv[1:])
        except SignalException as error:
            stopped = error.sigval
        except ChildFailedError as error:
            raise _cause(list(error.failures.values())) from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    if stopped:
        signal.raise_signal(stopped)


def _cause(failures):
    """The error to report: a UserError or Absent first, before those of the lost connection."""
    told = [failure.message for failure in failures if isinstance(failure.message, dict)]
    for message in told:
        for kind in (UserError, Absent):
            if message["message"].startswith(name := f"{kind.__name__}: "):
                return kind(message["message"].removeprefix(name))
    if told:
        return UserError(told[0]["extraInfo"]["py_callstack"])
    return UserError(f"process {failures[0].local_rank} of the training ended with status {failures[0].exitcode}")


def work(main: Callable[[], None]) -> None:
    """Run main as one process of those that `launch` started; its exception, if any, is reported to the launcher."""
    import torch
    from torch import distributed
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    # Killed with the launcher, even by kill -9. A signal must not wait for Python: it may be within a collective call.
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A process sees its own GPU only, in all its threads; this must stand before CUDA is asked for anything.
    rank, visible = int(os.environ["LOCAL_RANK"]), os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank) if visible is None else "".join(visible.split(",")[rank:rank + 1])
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        main()
    except Exception as error:
        get_error_handler().record_exception(error)
        sys.exit(1)
