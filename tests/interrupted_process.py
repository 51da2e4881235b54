"""One of two ranks of test_signals.py: Ctrl-C comes to the first one while it waits for the other.

python interrupted_process.py CALL RANK SIZE FILE
Prints what came of the call, and whether anything was written."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch.distributed as dist

import gradclip
from gradclip._ranks.exchange import Session

CALLS = {
    "global": lambda grads, **norm: gradclip.clip_by_global_norm_(grads, 1.0, **norm),
    "strict": lambda grads, **norm: gradclip.clip_by_global_norm_(grads, 1.0, strict=True, **norm),
    "leaf": lambda grads, **norm: gradclip.clip_by_norm_(grads, 1.0, **norm),
}


def interrupt_when_it_waits(sent):
    """Send Ctrl-C to this rank once its exchange has begun, and then leave a file."""
    begun, begin = threading.Event(), Session.begin

    def noted(session):
        begin(session)
        begun.set()

    def send():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
        sent.touch()

    Session.begin = noted
    threading.Thread(target=send, daemon=True).start()


if __name__ == "__main__":
    call, rank, size = CALLS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=size)
    grads = {"w": np.array([3.0, 4.0]), "b": np.full(3, 0.5 + rank)}
    dist.barrier()
    sent = Path(sys.argv[4] + ".sent")
    if not rank:
        interrupt_when_it_waits(sent)
    while rank and not sent.exists():  # so long the other waits
        time.sleep(0.01)
    try:
        call(grads, comm=dist.group.WORLD)
        print("returned", end=" ")
    except KeyboardInterrupt:
        print("KeyboardInterrupt", end=" ")
    print(grads["w"][0] < 3.0, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    dist.barrier()
    dist.destroy_process_group()
