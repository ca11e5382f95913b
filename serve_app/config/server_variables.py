"""Variables by which `rayshard serve` tells its cluster of the servers that fork processes. Imports nothing."""

SHARD_SERVER_VARIABLE = "RAYSHARD_SHARD_SERVER"  # the socket of the one for shards on CPU
WORKER_SERVER_VARIABLE = "RAYSHARD_WORKER_SERVER"  # of the one for all other workers
