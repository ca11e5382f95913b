"""Writes serve_config.yaml into the manifest for KubeRay, as it is but for the address to listen on."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVE_CONFIG = ROOT / "serve_config.yaml"
MANIFEST = ROOT / "cluster" / "rayservice.yaml"

_LOCAL_HOST = "  host: 127.0.0.1  # this machine only\n"
_POD_HOST = "  host: 0.0.0.0  # every address of the pod: the Service in front of it comes from outside\n"
_KEY = "  serveConfigV2: |\n"


def render(manifest: str, serve_config: str) -> str:
    """The manifest with `serve_config` as its serveConfigV2, listening on every address of the pod.

    Raises ValueError when either text has not the line that is replaced.
    """
    if serve_config.count(_LOCAL_HOST) != 1:
        raise ValueError(f"serve_config.yaml must have one line {_LOCAL_HOST!r}")
    if manifest.count(_KEY) != 1:
        raise ValueError(f"rayservice.yaml must have one line {_KEY!r}")
    before, _, after = manifest.partition(_KEY)
    rest = after.splitlines(keepends=True)
    while rest and (not rest[0].strip() or rest[0].startswith("    ")):
        del rest[0]
    config = serve_config.replace(_LOCAL_HOST, _POD_HOST).splitlines(keepends=True)
    block = "".join(f"    {line}" if line.strip() else line for line in config)
    return f"{before}{_KEY}{block}{''.join(rest)}"


def main() -> None:
    """Rewrite cluster/rayservice.yaml."""
    MANIFEST.write_text(render(MANIFEST.read_text(), SERVE_CONFIG.read_text()))


if __name__ == "__main__":
    main()
