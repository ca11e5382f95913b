"""Why Ray has not placed a replica yet, and the way out: from the nodes as Ray reports them and the bundles it wants.

Ray waits for room without a word, and begins by itself when a node joins that has it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

REPLICA_PREFIX = "SERVE_REPLICA::"  # of the names that Serve gives placement groups: application#deployment#id
_WAITING = ("PENDING", "RESCHEDULING")  # RESCHEDULING: a node with some of its bundles is gone
_TYPE_PREFIX = "accelerator_type:"  # of the resource that nodes with such GPUs have
_ROUNDING = 1e-4  # Ray counts in these
_GIB = 2**30

Resources = Mapping[str, float]
_Taken = list[dict[str, float]]  # what is left, by node


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A node that lives, as Ray reports it."""

    total: Resources
    free: Resources
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Want:
    """What Ray is to place for one replica: each bundle on one node. What it has placed already is not in it."""

    application: str
    deployment: str
    bundles: tuple[Resources, ...]
    selectors: tuple[Mapping[str, str], ...] = ()  # labels that the node of each bundle is to have; (): any node
    strategy: str = "PACK"  # as Ray names it
    has_router: bool = True  # of a Router: whether the first bundle is its own; the others are stages'

    def is_stage(self, index: int) -> bool:
        """Whether a bundle is that of a stage of a model."""
        return self.deployment == "Router" and (index > 0 or not self.has_router)

    def selector(self, index: int) -> Mapping[str, str]:
        """Of one bundle."""
        return self.selectors[index] if index < len(self.selectors) else {}


@dataclass(frozen=True, slots=True)
class Group:
    """A placement group, as Ray lists it."""

    name: str
    state: str
    bundles: tuple[tuple[Resources, str | None], ...]  # with the node where each is
    strategy: str = "PACK"


@dataclass(frozen=True, slots=True)
class WaitingPlaces:
    """The reasons of a look, kept until the next: what is being placed just now waits in one look only."""

    seen: frozenset[str] = frozenset()  # applications

    def take(self, found: Mapping[str, str]) -> tuple[dict[str, str], "WaitingPlaces"]:
        """Those that waited at the last look too, by application, and what the next look is to begin with."""
        return {name: reason for name, reason in found.items() if name in self.seen}, WaitingPlaces(frozenset(found))


def waiting_reasons(nodes: Sequence[NodeRoom], wants: Iterable[Want]) -> dict[str, str]:
    """By application, why a replica of it waits; those that there is room for are left out."""
    reasons: dict[str, str] = {}
    for want in wants:
        reason = why_not_placed(nodes, want)
        if reason is not None:
            reasons.setdefault(want.application, f"waits for room: {reason}")
    return reasons


def group_wants(groups: Iterable[Group], living: frozenset[str]) -> list[Want]:
    """What the placement groups of replicas still wait for. living: nodes."""
    wants = []
    for group in groups:
        if group.state not in _WAITING or not group.name.startswith(REPLICA_PREFIX):
            continue
        application, deployment, *_ = group.name.removeprefix(REPLICA_PREFIX).split("#")
        unplaced = [index for index, (_bundle, node) in enumerate(group.bundles) if node not in living]
        if unplaced:
            bundles = tuple(group.bundles[index][0] for index in unplaced)
            is_new = unplaced[0] == 0
            wants.append(Want(application, deployment, bundles, strategy=group.strategy, has_router=is_new))
    return wants


def why_not_placed(nodes: Sequence[NodeRoom], want: Want) -> str | None:
    """Why no place is found, and what to do; None: there is room. Nodes are filled as Ray does it, first fit."""
    if want.strategy == "STRICT_PACK":
        want = replace(want, bundles=(_sum(want.bundles),), selectors=(_joined(want.selectors),), strategy="PACK")
    order = sorted(range(len(want.bundles)), key=lambda index: _size(want.bundles[index]), reverse=True)
    for index in order:
        reason = _why_on_no_node(nodes, want, index)
        if reason is not None:
            return f"{reason}: it starts by itself then"
    in_total = _why_not_all(nodes, want, order, lambda node: node.total)
    if in_total is not None:
        return f"{in_total}: it starts by itself then"
    if _fits(nodes, want, order, lambda node: node.free) is None:
        return None
    return f"{_why_not_now(nodes, want)}: it starts by itself then"


def _why_on_no_node(nodes: Sequence[NodeRoom], want: Want, index: int) -> str | None:
    """Why one bundle would find no room in an empty cluster either."""
    bundle, selector = want.bundles[index], want.selector(index)
    part = _part(want, index)
    fitting = [node for node in nodes if _has_labels(node, selector)]
    if not fitting:
        shown = ", ".join(f"{key}={value}" for key, value in selector.items())
        if not nodes:
            return f"{part} needs a node, and none lives; start one"
        return f"{part} needs a node with the label {shown}, and none has it; change label_selector, or add such a node"
    for resource, amount in bundle.items():
        most = max(node.total.get(resource, 0.0) for node in fitting)
        if most == 0:
            return _why_nobody_has(nodes, part, resource, amount)
        if most + _ROUNDING < amount:
            return (
                f"{part} needs {_told(resource, amount)} on one node, and no node has more than "
                f"{_number(resource, most)}; {_smaller(want, index, resource)}, or add a node with "
                f"{_number(resource, amount)}"
            )
    if not any(_has_room(node.total, bundle) for node in fitting):
        return (
            f"{part} needs {_all_told(bundle)} on one node, and no node has all of it; "
            f"{_smaller(want, index, 'GPU' if 'GPU' in bundle else 'CPU')}, or add a node that has"
        )
    return None


def _why_nobody_has(nodes: Sequence[NodeRoom], part: str, resource: str, amount: float) -> str:
    if resource.startswith(_TYPE_PREFIX):
        types = sorted({name for node in nodes for name in node.total if name.startswith(_TYPE_PREFIX)})
        found = " and ".join(name.removeprefix(_TYPE_PREFIX) for name in types)
        there = f"the cluster's GPUs are {found}" if types else "no node has a GPU whose type Ray knows"
        wanted = resource.removeprefix(_TYPE_PREFIX)
        return f"{part} needs GPUs of type {wanted}, and {there}; change accelerator_type, or add a node with {wanted}"
    if resource == "GPU":
        return f"{part} needs {_told(resource, amount)}, and no node has any; set device.type: cpu, or add such a node"
    return (
        f"{part} needs {_told(resource, amount)}, and no node has any; remove it from ray_actor_options, or start a "
        f"node with it"
    )


def _why_not_all(
    nodes: Sequence[NodeRoom], want: Want, order: Sequence[int], room: Callable[[NodeRoom], Resources]
) -> str | None:
    """Why all bundles together find no room in an empty cluster."""
    lost = _fits(nodes, want, order, room)
    if lost is None:
        return None
    for resource, amount in _sum(want.bundles).items():
        there = sum(node.total.get(resource, 0.0) for node in nodes)
        if there + _ROUNDING < amount and not resource.startswith(_TYPE_PREFIX):
            return (
                f"a copy needs {_told(resource, amount)}, and all nodes together have {_number(resource, there)}; "
                "lower parallel, or add nodes"
            )
    bundle = want.bundles[lost]
    alike = sum(other == bundle for other in want.bundles)
    places = _num_places(nodes, bundle, want.selector(lost), is_spread=want.strategy == "STRICT_SPREAD")
    return (
        f"a copy has {alike} x {_all_told(bundle)}, each on one node, and the nodes have room for {places}; lower "
        f"parallel.pipeline, or add {alike - places if alike > places else 1} such"
    )


def _why_not_now(nodes: Sequence[NodeRoom], want: Want) -> str:
    """Why all bundles together find no room beside what runs."""
    way_out = "serve fewer models or copies, or add a node"
    for resource, amount in _sum(want.bundles).items():
        free = sum(node.free.get(resource, 0.0) for node in nodes)
        if free + _ROUNDING < amount and not resource.startswith(_TYPE_PREFIX):
            there = sum(node.total.get(resource, 0.0) for node in nodes)
            return (
                f"a copy needs {_told(resource, amount)}, and of {_number(resource, there)} in the cluster "
                f"{_number(resource, free)} are free; {way_out}"
            )
    shown = " and ".join(dict.fromkeys(_all_told(bundle) for bundle in want.bundles[-1:]))
    return f"a copy needs {shown} on one node, and what is free is spread over several; {way_out}"


def _fits(
    nodes: Sequence[NodeRoom], want: Want, order: Sequence[int], room: Callable[[NodeRoom], Resources]
) -> int | None:
    """The first bundle that finds no room any more; None: all find some."""
    left: _Taken = [dict(room(node)) for node in nodes]
    used: set[int] = set()
    for index in order:
        bundle, selector = want.bundles[index], want.selector(index)
        for number, node in enumerate(nodes):
            is_taken = want.strategy == "STRICT_SPREAD" and number in used
            if not is_taken and _has_labels(node, selector) and _has_room(left[number], bundle):
                for resource, amount in bundle.items():
                    left[number][resource] -= amount
                used.add(number)
                break
        else:
            return index
    return None


def _num_places(nodes: Sequence[NodeRoom], bundle: Resources, selector: Mapping[str, str], *, is_spread: bool) -> int:
    """How often an empty cluster has room for a bundle."""
    fitting = [node.total for node in nodes if _has_labels(node, selector) and _has_room(node.total, bundle)]
    if is_spread:
        return len(fitting)
    return sum(
        int(min((total[name] + _ROUNDING) / amount for name, amount in bundle.items() if amount)) for total in fitting
    )


def _has_room(room: Resources, bundle: Resources) -> bool:
    return all(room.get(resource, 0.0) + _ROUNDING >= amount for resource, amount in bundle.items())


def _has_labels(node: NodeRoom, selector: Mapping[str, str]) -> bool:
    """Whether labels are as Ray's selectors ask: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    for key, asked in selector.items():
        is_negated, wanted = asked.startswith("!"), asked.removeprefix("!")
        values = wanted[3:-1].split(",") if wanted.startswith("in(") and wanted.endswith(")") else [wanted]
        if (node.labels.get(key) in [value.strip() for value in values]) == is_negated:
            return False
    return True


def _sum(bundles: Iterable[Resources]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for bundle in bundles:
        for resource, amount in bundle.items():
            sums[resource] = sums.get(resource, 0.0) + amount
    return dict(sorted(sums.items(), key=lambda one: one[0] != "GPU"))  # what is scarce is told first


def _joined(selectors: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for selector in selectors for key, value in selector.items()}


def _size(bundle: Resources) -> tuple[float, ...]:
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0), bundle.get("memory", 0.0)


def _part(want: Want, index: int) -> str:
    """What a bundle is for."""
    if want.is_stage(index):
        return "a stage, whose ranks share a node,"
    return f"a {want.deployment}"


def _smaller(want: Want, index: int, resource: str) -> str:
    if not want.is_stage(index):
        return "lower it in ray_actor_options"
    if resource == "GPU":
        return "lower parallel.tensor and raise parallel.pipeline"
    return "lower device.cpus_per_shard, or parallel.tensor"


def _all_told(bundle: Resources) -> str:
    return " and ".join(_told(*one) for one in _sum([bundle]).items() if not one[0].startswith(_TYPE_PREFIX))


def _told(resource: str, amount: float) -> str:
    if resource == "memory":
        return f"{_number(resource, amount)} of memory"
    if resource in ("CPU", "GPU"):
        return f"{amount:g} {resource}" if amount == 1 else f"{amount:g} {resource}s"
    return f"{amount:g} of the resource {resource}"


def _number(resource: str, amount: float) -> str:
    return f"{amount / _GIB:.1f} GiB" if resource == "memory" else f"{round(amount, 4):g}"
