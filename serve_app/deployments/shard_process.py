"""What Ray starts in place of Python for a shard on CPU: has the shards' server fork it, or runs it itself.

`python -m serve_app.deployments.shard_process SOCKET SCRIPT ARGUMENT...`.
"""

import os
import sys
from collections.abc import Mapping

from serve_app.deployments.forked_process import ask_server, own_command, run_script


def main(arguments: list[str], variables: Mapping[str, str]) -> None:
    """Have a script run: `arguments` are the server's socket, the script and its arguments."""
    path, *command = arguments
    if not ask_server(path, own_command(command, variables)):
        run_script(command)


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
