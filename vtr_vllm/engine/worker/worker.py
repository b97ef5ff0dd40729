"""The worker class: vLLM's own, with runner V1 exchanged for ours, and a status to ask for.

Start with ``--worker-cls vtr_vllm.engine.worker.Worker``; it fits the platform by itself.
"""

from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from vtr_vllm.engine.common import front_end
from vtr_vllm.engine.common.adaptive_counts import tell_scheduler
from vtr_vllm.engine.common.request_view import TraceCuts
from vtr_vllm.engine.worker.model_reduction import Reduction
from vtr_vllm.engine.worker.runner_v1 import ReducingRunner
from vtr_vllm.engine.worker.timing import Timing

if current_platform.is_cpu():
    from vllm.v1.worker import cpu_worker as _looked_up_in
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner as _StockRunner
    from vllm.v1.worker.cpu_worker import CPUWorker as _StockWorker
else:
    from vllm.v1.worker import gpu_model_runner as _looked_up_in
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as _StockRunner
    from vllm.v1.worker.gpu_worker import Worker as _StockWorker


class Runner(ReducingRunner, _StockRunner):
    """Runner V1 of this platform, reducing."""


class Worker(_StockWorker):
    """The platform's worker; runner V2 needs no exchange, the model brings its own state."""

    def init_device(self) -> None:
        front_end.check_worker(self.vllm_config)
        # vLLM's worker names its runner class in its code; it looks the name up in that module.
        name = _StockRunner.__name__
        setattr(_looked_up_in, name, Runner)
        try:
            super().init_device()
        finally:
            setattr(_looked_up_in, name, _StockRunner)

    def execute_model(
        self, scheduler_output: SchedulerOutput
    ) -> ModelRunnerOutput | AsyncModelRunnerOutput | None:
        """vLLM's; what adaptive cuts found goes along to the scheduler."""
        output = super().execute_model(scheduler_output)
        return None if output is None else self._with_counts(output)

    def sample_tokens(
        self, grammar_output: GrammarOutput | None
    ) -> ModelRunnerOutput | AsyncModelRunnerOutput:
        """Likewise."""
        return self._with_counts(super().sample_tokens(grammar_output))

    def _with_counts(
        self, output: ModelRunnerOutput | AsyncModelRunnerOutput
    ) -> ModelRunnerOutput | AsyncModelRunnerOutput:
        reduction = self._vtr_reduction()
        counts = {} if reduction is None else reduction.decoder.adaptive_counts.take_untold()
        return tell_scheduler(output, counts) if counts else output

    def vtr_status(self) -> dict[str, Any]:
        """What a health check asks every worker (``collective_rpc("vtr_status")``)."""
        reduction = self._vtr_reduction()
        if reduction is None:
            return {"loaded": False, "reason": "the model is not reducible, or not active"}
        return {
            "loaded": reduction.ready,
            "reason": None if reduction.ready else "the KV cache is not bound to bands",
            "runner": "v2" if self.use_v2_model_runner else "v1",
            "layers": len(reduction.decoder.layers),
            "bands": len(reduction.bands.starts),
            "geometry": reduction.geometry.to_dict(),
        }

    def vtr_counters(self) -> dict[str, float]:
        """Time spent on reduction since start, and what was slower than it should be; see ``Timing``."""
        reduction = self._vtr_reduction()
        if reduction is None:
            return {**Timing().counters(), "uncompiled_layers": 0}
        return reduction.decoder.counters()

    def vtr_take_trace(self, name: str) -> TraceCuts | None:
        """What each cut of a traced request kept, once; see ``Traces``."""
        reduction = self._vtr_reduction()
        return None if reduction is None else reduction.decoder.traces.take(name)

    def _vtr_reduction(self) -> Reduction | None:
        return getattr(self.model_runner.get_model(), "reduction", None)
