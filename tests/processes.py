"""Several processes at one training, forked from this one, so that each starts at once."""

import multiprocessing
import os
import pickle
import socket
from contextlib import closing

import torch

from twinbench.training.parallel import joined
from twinbench.training.start import start


def free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(work, size=2, seconds=120):
    """What work() returns in each of `size` processes."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    queue = fork.Queue()
    children = [fork.Process(target=_one, args=(work, rank, size, port, queue)) for rank in range(size)]
    for child in children:
        child.start()
    try:
        results = dict(queue.get(timeout=seconds) for _ in children)
    finally:
        for child in children:
            child.join(0 if child.exitcode else 5)
            child.kill()
    for rank in range(size):
        if isinstance(results[rank], Exception):
            raise results[rank]
    return [pickle.loads(results[rank]) for rank in range(size)]


def _one(work, rank, size, port, queue):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    try:
        queue.put((rank, pickle.dumps(work())))
    except Exception as error:
        queue.put((rank, error))


def train(resolved, runs, steps=None, last=lambda trainer: trainer):
    """Train with the processes that the environment names; returns last(trainer). steps: stop after so many."""
    with joined(resolved.train, gpu=False) as group:
        _, trainer = start(resolved, runs, group=group)
        for done, _ in enumerate(trainer, 1):
            if done == steps:
                break
        return last(trainer)
