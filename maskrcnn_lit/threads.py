"""How many threads this process computes with."""

import os

import torch

from maskrcnn_lit.data.datamodule import choose_workers


def share_cores(workers: int | str) -> int:
    """Give torch the cores that the loader processes leave, at least one, and return how many that are.

    Where more threads want to run than there are cores, each parallel operator waits for the slowest of its threads:
    on 2 cores with one loader a step of two threads took longer than one of a single thread. OMP_NUM_THREADS, where
    the user has set it, stays.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        loaders = choose_workers(workers, processes=1, cuda=torch.cuda.is_available())
        torch.set_num_threads(max(1, cores - loaders))
    return torch.get_num_threads()
