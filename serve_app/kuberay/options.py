"""What `rayshard kuberay` is told beside the Serve file."""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from serve_app.errors import ConfigError

IMAGE = "registry.example.com/rayshard:0.1.0"
IMAGE_FOLDER = PurePosixPath("/app")  # what cluster/Dockerfile copies
MODELS_FOLDER = PurePosixPath("/models")  # where the volume of --models-claim is mounted
MAX_NAME_LENGTH = 47  # KubeRay's limit for a RayService

_LABEL = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1035, as KubeRay asks of a name
_OBJECT = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)+")
_REDIS = re.compile(r"(?:rediss?://)?[A-Za-z0-9._-]+:([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of this machine whose content pods have elsewhere."""

    here: Path  # absolute
    in_pod: PurePosixPath


@dataclass(frozen=True, slots=True)
class Entry:
    """How requests come from outside the cluster."""

    kind: str  # ingress, gateway
    class_name: str  # of the controller
    host: str
    tls_secret: str


@dataclass(frozen=True, slots=True)
class KubeRayOptions:
    """How the manifests are to be; a name of a Secret or claim is that of an object which is made apart."""

    name: str = "rayshard"
    namespace: str | None = None  # None: that of kubectl
    image: str = IMAGE
    places: tuple[Place, ...] = ()
    models_claim: str | None = None  # a volume with models, mounted for reading
    cache_claim: str | None = None  # a volume for what is downloaded; None: each pod's own
    keys_secret: str | None = None  # with keys.txt
    hub_secret: str | None = None  # with token
    token_secret: str | None = None  # with auth_token: Ray's; None: KubeRay makes one
    gpu_type: str | None = None  # of models that name none
    devices: Path | None = None  # a file of further kinds of GPUs
    node_selector: dict[str, str] = field(default_factory=dict)  # of pods with GPUs; of all workers where none has
    gpus_per_pod: int | None = None  # None: a copy's, or as many as a node has
    redis: str | None = None  # host:port, for a GCS whose state outlives the head
    redis_secret: str | None = None  # with password
    entry: Entry | None = None
    has_monitoring: bool = False
    has_ray_tls: bool = False
    drain_s: int = 120  # for requests of a pod that ends

    def problems(self) -> list[str]:
        """What cannot be, each with a way out."""
        found = []
        if _LABEL.fullmatch(self.name) is None or len(self.name) > MAX_NAME_LENGTH:
            found.append(
                f"--name {self.name}: KubeRay takes at most {MAX_NAME_LENGTH} small letters, digits and '-', beginning "
                "with a letter"
            )
        if self.namespace is not None and _LABEL.fullmatch(self.namespace) is None:
            found.append(f"--namespace {self.namespace} is not a namespace; use small letters, digits and '-'")
        if not self.image or re.search(r"\s", self.image):
            found.append(f"--image {self.image!r} is not an image; write REGISTRY/NAME:TAG")
        for option, value in self._objects().items():
            if value is not None and _OBJECT.fullmatch(value) is None:
                found.append(f"{option} {value} is not an object's name; use small letters, digits, '-' and '.'")
        if self.redis is not None:
            match = _REDIS.fullmatch(self.redis)
            if match is None or not 0 < int(match[1]) < 65_536:
                found.append(f"--redis {self.redis} is not an address; write HOST:PORT")
        elif self.redis_secret is not None:
            found.append("--redis-secret without --redis; give its address too")
        if self.entry is not None and _HOST.fullmatch(self.entry.host) is None:
            found.append(f"--host {self.entry.host} is not a host's name; write one like models.example.com")
        return [*found, *self._place_problems()]

    @property
    def redis_port(self) -> int:
        """The port of `redis`, which is an address."""
        assert self.redis is not None
        return int(self.redis.rpartition(":")[2])

    def _objects(self) -> dict[str, str | None]:
        return {
            "--models-claim": self.models_claim,
            "--cache-claim": self.cache_claim,
            "--keys-secret": self.keys_secret,
            "--hub-secret": self.hub_secret,
            "--token-secret": self.token_secret,
            "--redis-secret": self.redis_secret,
            "--tls-secret": self.entry.tls_secret if self.entry is not None else None,
        }

    def _place_problems(self) -> list[str]:
        found = []
        for place in self.places:
            roots = [root for root in (IMAGE_FOLDER, MODELS_FOLDER) if place.in_pod.is_relative_to(root)]
            if not roots or ".." in place.in_pod.parts:
                found.append(
                    f"--in-pod {place.here}={place.in_pod}: pods have folders below {IMAGE_FOLDER} (the image's) and "
                    f"{MODELS_FOLDER} (--models-claim); name one of them"
                )
            elif roots[0] == MODELS_FOLDER and self.models_claim is None:
                found.append(
                    f"--in-pod {place.here}={place.in_pod}: {MODELS_FOLDER} is a volume's; name its claim by "
                    "--models-claim NAME"
                )
        return found


def parse_place(text: str) -> Place:
    """A place as HERE=IN_POD. Raises ConfigError."""
    here, _, in_pod = text.rpartition("=")
    if not here or not in_pod.startswith("/"):
        raise ConfigError(f"--in-pod {text}: write HERE=IN_POD, such as ~/models=/models")
    return Place(Path(here).expanduser().resolve(), PurePosixPath(in_pod))


def parse_selector(texts: list[str]) -> dict[str, str]:
    """Labels of nodes as KEY=VALUE. Raises ConfigError."""
    selector: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        part = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
        is_label = re.fullmatch(rf"(?:[a-z0-9.-]{{1,253}}/)?{part}", key) and re.fullmatch(rf"(?:{part})?", value)
        if not equals or not is_label:
            raise ConfigError(f"--node-selector {text}: write a label of nodes as KEY=VALUE")
        if key in selector:
            raise ConfigError(f"--node-selector {key} is given twice; keep one")
        selector[key] = value
    return selector
