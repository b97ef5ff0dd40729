"""Full CUDA graphs without a GPU: what is captured is kept as a call, and replayed by calling it again.

A graph replays its kernels with the addresses and the host's numbers of the captured step. So does the
same forward pass, run once more with the very objects of that step: metadata, slots, inputs. What a
replay must not rely on, a number from the host or a tensor made for one step, goes wrong here as there.
The attention is Triton's, through its interpreter: the CPU's own plans its work on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from vllm import LLM
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

SIZES = [1, 2, 4, 8, 16]
"""Requests of a captured step; others are padded to the next."""


class Replays:
    """Lets the engine of this process capture and replay."""

    def __init__(self) -> None:
        self.reduced = 0
        """Replays of steps in which layers store unlike numbers of tokens."""

    def patch(self) -> None:
        """Let the engine that this process starts next have full graphs, and an attention for them."""
        stock = CpuPlatform.check_and_update_config
        path = f"{TritonAttentionBackend.__module__}.{TritonAttentionBackend.__qualname__}"

        def check(vllm_config: VllmConfig) -> None:
            stock(vllm_config)
            compilation = vllm_config.compilation_config
            compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
            compilation.cudagraph_capture_sizes = SIZES
            compilation.max_cudagraph_capture_size = SIZES[-1]

        CpuPlatform.check_and_update_config = staticmethod(check)
        CpuPlatform.get_attn_backend_cls = classmethod(lambda cls, *args, **kwargs: path)
        CpuPlatform.get_global_graph_pool = lambda self: None
        # The kernels' launchers size their blocks by it.
        torch.cuda.get_device_capability = lambda *args: (8, 0)

    @torch.inference_mode()
    def capture(self, llm: LLM) -> None:
        """What a GPU's worker does once its engine has a KV cache."""
        worker: Any = llm.llm_engine.model_executor.driver_worker.worker
        runner = worker.model_runner
        reduction = worker.get_model().reduction
        lengths = runner.model_state._decode_buffers.lengths

        def capture(manager: CudaGraphManager, create: Callable[..., Any], _text: str) -> None:
            for desc in manager._capture_descs[CUDAGraphMode.FULL]:
                forward = create(desc, warmup=False)
                step = reduction._step
                forward(CUDAGraphMode.NONE)
                manager.graphs[desc] = _Graph(self, lengths, reduction, step, forward)
            manager._graphs_captured = True

        with mock.patch.object(CudaGraphManager, "capture", capture):
            runner.cudagraph_manager.capture(
                runner.model,
                runner.model_state,
                runner.input_buffers,
                runner.intermediate_tensors,
                runner.block_tables,
                runner.attn_groups,
                runner.kv_cache_config,
            )


class _Graph:
    """Stands for a ``torch.cuda.CUDAGraph``."""

    def __init__(
        self,
        replays: Replays,
        lengths: torch.Tensor,
        reduction: Any,
        step: Any,
        forward: Callable[..., Any],
    ) -> None:
        self._replays, self._lengths, self._reduction = replays, lengths, reduction
        self._step, self._forward = step, forward

    def replay(self) -> None:
        self._replays.reduced += bool((self._lengths != self._lengths[0]).any())
        assert self._reduction.take_step() is None, "a replay calls no model, and takes no step"
        self._reduction.expect(self._step)
        self._forward(CUDAGraphMode.NONE)
