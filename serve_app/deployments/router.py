"""The Router deployments: each replica drives one copy of its models.

Ray's own "request router" is what picks a replica for a Serve call; ours are reached over the call link.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.config.model_set import ModelSetConfig
from serve_app.deployments.batch_calls import BatchCalls
from serve_app.deployments.copy_work import CopyWork, GroupMaker
from serve_app.deployments.generator_calls import GeneratorCalls
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.ray_shard_group import RayShardGroups
from serve_app.deployments.serve_replica import ServeReplica, own_identity
from serve_app.deployments.start_failure import told_failure
from serve_app.observability import configure_logging
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.model_version import read_model_version
from serve_app.planning.served_model import plan_batch_model
from serve_app.planning.text_facts import TextFacts
from serve_app.preprocessing.tokenizer_files import read_tokenizer_files
from serve_app.tracing.start import start_tracing
from serve_app.wire.links import Senders

logger = logging.getLogger(__name__)

GroupsOf = Callable[[CopyWork, str], GroupMaker]  # of the work, on a Router of this node


class ModelRouter(ServeReplica):
    """One copy of its models."""

    service: ModelReplica | None = None

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks it every second where the number of replicas follows the load."""
        return {} if self.service is None else self.service.load_metrics()


class Router(ModelRouter):
    """One copy of a model that generates."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ModelConfig, _preprocessor: Any = None, groups_of: GroupsOf = RayShardGroups
    ) -> None:
        configure_logging()
        with told_failure(config.name):
            self.service = await self._start(config, groups_of)

    async def _start(self, config: ModelConfig, groups_of: GroupsOf) -> ModelReplica:
        plan = await asyncio.to_thread(plan_generator, config, Path.cwd(), read_environment())
        read_tokenizer_files(plan.source.directory)
        plan.refuse_problems()
        logger.info("model starting settings=%s\n%s", config.model_dump_json(), plan.text)
        _warn(config, plan.facts)
        version = await asyncio.to_thread(read_model_version, plan)
        identity = replace(own_identity("Router"), version=version)
        senders = Senders(identity.node)
        tracing = start_tracing("router", identity.replica_id)
        calls = GeneratorCalls(plan, identity.replica_id, senders, tracing)
        groups = groups_of(calls.work, identity.node)
        replica = ModelReplica(identity, calls.work, calls, groups, senders, tracing=tracing)
        await replica.start()
        self._export_metrics([config.name], replica)
        return replica


class BatchRouter(ModelRouter):
    """One copy of a model that is done with an entry after one step, or of several small ones."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: ModelConfig | ModelSetConfig,
        _preprocessor: Any = None,
        groups_of: GroupsOf = RayShardGroups,
    ) -> None:
        configure_logging()
        models = config.shared_models if isinstance(config, ModelSetConfig) else [config]
        with told_failure(",".join(model.name for model in models)):
            self.service = await self._start(models, groups_of)

    async def _start(self, models: list[ModelConfig], groups_of: GroupsOf) -> ModelReplica:
        environment = read_environment()
        plans = [await asyncio.to_thread(plan_batch_model, model, Path.cwd(), environment) for model in models]
        for plan in plans:
            plan.refuse_problems()
            logger.info("model starting settings=%s\n%s", plan.config.model_dump_json(), plan.text)
            _warn(plan.config, plan.facts)
        identity = own_identity("Router")
        tracing = start_tracing("router", identity.replica_id)
        calls = BatchCalls(plans, identity.replica_id, tracing)
        groups = groups_of(calls.work, identity.node)
        replica = ModelReplica(identity, calls.work, calls, groups, Senders(identity.node), tracing=tracing)
        await replica.start()
        self._export_metrics([model.name for model in models], replica)
        return replica


def _warn(config: ModelConfig, facts: TextFacts) -> None:
    for warning in facts.warnings:
        logger.warning("model=%s: %s", config.name, warning)
