"""gRPC servers of Serve on loopback: Serve opens them on every interface, whatever the host for HTTP is."""

from ray.serve._private import default_impl
from ray.serve._private.grpc_util import gRPCGenericServer


def listen_on_loopback() -> None:
    """Have the gRPC servers that Serve starts in this process from now on listen on 127.0.0.1.

    Serve calls it in replicas and proxies before it starts any: `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`.
    """
    default_impl.add_grpc_address = add_loopback_address


def add_loopback_address(grpc_server: gRPCGenericServer, server_address: str) -> None:
    """Listen at the port of an address, on 127.0.0.1; in place of Ray's `add_grpc_address`."""
    grpc_server.add_insecure_port(f"127.0.0.1:{server_address.rpartition(':')[2]}")
