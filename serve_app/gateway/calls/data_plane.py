"""What all carriers share: the calls that HTTP and gRPC turn their bytes into."""

from pathlib import Path

from serve_app.backend.protocol import ModelBackend
from serve_app.backend.text_models import TextModels
from serve_app.config.batches import open_batches_directory
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.api_keys import ApiKeys
from serve_app.gateway.calls.explain import ExplainCalls
from serve_app.gateway.calls.explain_answers import AnswerExplanations
from serve_app.gateway.calls.explain_labels import LabelExplanations
from serve_app.gateway.calls.graph_calls import GraphCalls
from serve_app.gateway.calls.held_answers import HeldAnswers
from serve_app.gateway.calls.inference import InferenceService
from serve_app.gateway.calls.known_apis import KnownApiCalls
from serve_app.gateway.calls.model_calls import ModelCalls
from serve_app.gateway.calls.models import ServedModels
from serve_app.gateway.calls.open_inference_counts import InferenceCounts
from serve_app.gateway.calls.prompt_encoder import PromptEncoder
from serve_app.gateway.calls.prompt_steps import PromptSteps
from serve_app.gateway.calls.reader import RequestReader
from serve_app.gateway.intake import Intake
from serve_app.gateway.open_streams import OpenStreams
from serve_app.metrics.of_gateway import GatewayMetrics
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool
from serve_app.tracing.tracing import Tracing


class DataPlane:
    """One Gateway replica's calls. Starts its threads and template workers at once."""

    def __init__(
        self,
        backend: ModelBackend,
        config: GatewayConfig,
        replica_id: str = "gateway",
        tracing: Tracing | None = None,
    ) -> None:
        """tracing: None: no request is traced; closed with the plane."""
        self.backend = backend
        self.tracing = tracing
        self.metrics = GatewayMetrics(replica_id)
        self.config = config
        self.keys = None if config.api_keys_file is None else ApiKeys(Path(config.api_keys_file))  # it may refuse
        self.batches_directory = None if config.batches is None else open_batches_directory(config.batches)  # so may it
        self.intake = Intake()
        self.pool = TextPool(config.tokenizer_threads)
        self._renderer = ChatTemplateRenderer(
            timeout_s=config.chat_template_timeout_s, max_output_bytes=config.chat_template_max_bytes
        )
        text_models = TextModels(backend, self.pool, tracing)
        self.models = ServedModels(text_models, self.metrics, config.request_timeout_s)
        self._held_answers = HeldAnswers(self.pool)
        self.prompts = PromptEncoder(self.pool, self._renderer, tracing)
        self.reader = RequestReader(PromptSteps(backend), self.prompts, self._held_answers, config.queue_timeout_s)
        service = InferenceService(text_models, config.queue_timeout_s)
        self.watches = OpenStreams()
        self.infer_streams = OpenStreams(max_of_caller=256, max_in_all=2048)
        self.inference_counts = InferenceCounts()
        self.calls = ModelCalls(service, self.models, GraphCalls(backend, config.queue_timeout_s))
        self.explanations = ExplainCalls(
            self.models,
            LabelExplanations(service, self.pool),
            AnswerExplanations(backend, self.pool, config.queue_timeout_s),
        )
        self.known_calls = KnownApiCalls(self.calls, self.models)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken, and every model can answer."""
        return not self.intake.is_closed and self.backend.health().is_healthy

    def close(self) -> None:
        """End threads and processes; what is traced leaves before."""
        self.pool.close()
        self._held_answers.close()
        self._renderer.close()
        if self.tracing is not None:
            self.tracing.close()
