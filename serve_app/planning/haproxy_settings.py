"""What Serve's throughput mode is told of HAProxy, on a laptop and in pods."""

HAPROXY_SETTINGS = {
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # it passes a hundred times more than a Gateway writes
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "81920",  # headers may have 64 KiB, as without it
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",  # streams outlive a change of its settings, as any deployment is
}
