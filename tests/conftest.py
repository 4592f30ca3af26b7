"""One thread a test process: two busy processes of two threads on two cores are four times slower than of one."""

import torch

torch.set_num_threads(1)
