"""Stores where shards meet, and the process groups that they make of them, without process-wide state."""

import socket
from datetime import timedelta
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d

from serve_app.types.shards import Rendezvous

Store = c10d.Store


def open_store(host: str, rendezvous_s: float) -> c10d.TCPStore:
    """Start a store that listens on the given address only, on a free port."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    return c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=rendezvous_s),
        master_listen_fd=listener.detach(),
    )


def connect_store(rendezvous: Rendezvous) -> c10d.TCPStore:
    """Reach a store that another shard has opened."""
    return c10d.TCPStore(
        rendezvous.host,
        rendezvous.port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=rendezvous.rendezvous_s),
    )


def make_group(
    store: c10d.Store,
    name: str,
    rank: int,
    size: int,
    rendezvous: Rendezvous,
    device: torch.device,
    own_host: str,
) -> Any:
    """A process group of its own: NCCL on CUDA, gloo over `own_host`'s interface elsewhere."""
    prefixed = c10d.PrefixStore(name, store)
    timeout = timedelta(seconds=rendezvous.collective_s)
    if device.type == "cuda":
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return c10d.ProcessGroupNCCL(prefixed, rank, size, options)
    options = c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # missing from the stubs
    options._timeout = timeout
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=own_host)]
    return c10d.ProcessGroupGloo(prefixed, rank, size, options)
