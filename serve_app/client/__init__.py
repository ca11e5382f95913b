"""The Python client of a running server."""

from serve_app.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
