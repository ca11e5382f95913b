"""Settings of every test process."""

import torch

torch.set_num_threads(1)  # two threads on a busy machine wait for each other far longer than they compute
