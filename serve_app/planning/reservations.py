"""CPUs that applications reserve with Ray. A reservation limits only what Ray places, not what runs."""

from serve_app.planning.serve_file import ModelApplication, ServeFile

CPUS_PER_REPLICA = 0.05  # Gateway, Router, Preprocessor, Graph


def reserved_cpus(serve_file: ServeFile) -> float:
    """What all applications need to start, with the number of Router replicas they begin with."""
    total = CPUS_PER_REPLICA * (1 + len(serve_file.graphs))
    by_application: dict[str, list[ModelApplication]] = {}
    for model in serve_file.models:
        by_application.setdefault(model.name, []).append(model)
    for models in by_application.values():
        config = models[0].config
        num_shards = config.parallel.pipeline * config.parallel.tensor  # models of one application share a shard
        num_replicas = models[0].router.num_first_replicas if models[0].router is not None else 1
        total += num_replicas * (CPUS_PER_REPLICA + num_shards * config.device.cpus_per_shard)
        total += CPUS_PER_REPLICA * any(model.config.has_chains for model in models)
    return round(total, 3)
