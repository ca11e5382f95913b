"""What loading would refuse, refused when an application is built: Serve stops older copies only for what builds."""

from pathlib import Path

from serve_app.checkpoints.source import is_hub_id, resolve_source
from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.served_model import plan_batch_model
from serve_app.preprocessing.tokenizer_files import read_tokenizer_files


def refuse_unloadable(config: ModelConfig, base_dir: Path, environment: Environment, *, is_only_node: bool) -> None:
    """Raises ConfigError for what the files of a model on this node tell.

    What is not here is looked at where it is loaded: weights of a hub or of URLs, modules of a package of one's own,
    and where the cluster has other nodes (`is_only_node` is false) a directory that only they may have.
    """
    directory = base_dir / Path(config.source).expanduser()
    if not directory.is_dir():
        if is_only_node and not is_hub_id(config.source, base_dir):
            resolve_source(config.source, config.revision, base_dir, environment)
        return
    if config.remote_weights or config.architecture is not None:
        return
    if not config.is_generative:
        plan_batch_model(config, base_dir, environment).refuse_problems()
        return
    plan = plan_generator(config, base_dir, environment)
    read_tokenizer_files(plan.source.directory)
    plan.refuse_problems()
