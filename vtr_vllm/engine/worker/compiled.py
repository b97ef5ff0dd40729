"""One compiled function for all decoder layers, for steps that drop tokens.

vLLM compiles the decoder as a whole, and a step with cuts cannot run it: rows leave between layers.
Compiled layer by layer nothing is lost. A layer of vLLM begins with the addition and the norm
that belong to the layer before, so no fusion reaches over its end.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import vllm.envs as envs
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.types import GuardFilterEntry
from torch._dynamo.utils import counters
from vllm import ir
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.utils.torch_utils import _USE_LAYERNAME

from vtr_vllm.errors import ConfigurationError

logger = logging.getLogger("vllm.vtr")

_ROWS = 64
"""Rows of the run that compiles; any number from 1 runs the same code."""
_ROWS_OF = ("positions", "hidden", "residual")
_MOST_CAUSES = 16
"""Of running uncompiled that are told apart."""
_MOST_GRAPHS = 2048
"""As in vLLM. A model has one or two, and a process may hold several models one after another."""


class LayerRunner:
    """Runs one decoder layer: compiled where vLLM compiles the decoder, as it is elsewhere."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._config = vllm_config
        self._compiled: Any = None
        self._graphs: dict[nn.Module, Callable[..., Any]] = {}
        """Layer -> what was compiled for it, called without torch's guards: what they would look at in a
        layer does not change, and of the rows ``_fits`` looks at what may."""
        self.misses = 0
        """Runs of a layer for which no compiled graph was made: it ran as it is."""
        self._causes: set[str] = set()
        compilation = vllm_config.compilation_config
        if compilation.mode != CompilationMode.NONE:
            options: dict[str, Any] = {"guard_filter_fn": _kept_guards}
            if compilation.backend == "inductor":
                options |= compilation.inductor_compile_config
                if envs.VLLM_DISABLE_COMPILE_CACHE:
                    options["fx_graph_cache"] = False
            self._compiled = torch.compile(
                _run, fullgraph=True, dynamic=False, backend=compilation.backend, options=options
            )

    def __call__(
        self,
        layer: nn.Module,
        positions: torch.Tensor,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden, residual) [rows, hidden] behind ``layer``.

        ``positions`` [..., rows], ``hidden`` and ``residual`` [rows, hidden], all contiguous: strides
        that depend on the number of rows are compiled in. The first layer has no residual.
        """
        if self._compiled is None:
            return _run(layer, positions, hidden, residual)
        if residual is None:
            # Zero, which is added: one graph for all layers.
            residual = torch.zeros_like(hidden)
        graph = self._graphs.get(layer)
        if graph is None or not self._fits(positions, hidden, residual):
            self._missed(layer, positions, hidden, residual)
            graph = _run
        behind: tuple[torch.Tensor, torch.Tensor] = graph(layer, positions, hidden, residual)
        return behind

    def _fits(self, positions: torch.Tensor, *states: torch.Tensor) -> bool:
        dtype = self._config.model_config.dtype
        return positions.is_contiguous() and all(
            each.dtype == dtype and each.is_contiguous() for each in states
        )

    def _missed(self, layer: nn.Module, *given: torch.Tensor) -> None:
        """Count it, and say once a cause why it is slower than it should be."""
        self.misses += 1
        if len(self._causes) == _MOST_CAUSES:
            return
        inputs = dict(zip(_ROWS_OF, given, strict=True), layer=layer)
        cause = "; ".join(
            part
            for entry in _debug_get_cache_entry_list(_run.__code__)
            for part in entry.guard_manager.check_verbose(inputs).verbose_code_parts
        )
        # One cause whatever the number of rows.
        kind = re.sub(r"[0-9]+", "#", cause)
        if kind not in self._causes:
            self._causes.add(kind)
            logger.warning(
                "VTR: a decoder layer (%s) runs uncompiled, and slower, in steps that drop tokens; the"
                " answers are the same. No graph that was compiled at start fits: %s. Counted as"
                " vtr_uncompiled_layers_total; please report it",
                type(layer).__name__,
                cause or "none was compiled",
            )

    def warm_up(
        self, layers: Sequence[nn.Module], tails: Sequence[nn.Module] = (), width: int = 0
    ) -> None:
        """Compile, once for all layers that are alike, by running each on empty rows.

        ``tails`` are the second halves of layers, which take [rows, ``width``]. Call outside a forward pass, on all tensor-parallel ranks alike. Raises ConfigurationError
        when a layer cannot be compiled.
        """
        if self._compiled is None:
            return
        begun, graphs = time.monotonic(), counters["stats"]["unique_graphs"]
        try:
            with (
                torch.inference_mode(),
                set_current_vllm_config(self._config),
                set_forward_context(None, self._config, num_tokens=_ROWS),
                # vLLM's own lowering, which does not run here, would choose implementations later.
                ir.enable_torch_wrap(False),
                torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS),
            ):
                hidden = self._config.model_config.get_hidden_size()
                for layer in layers:
                    self._compile(layer, *self._empty_rows(layer, hidden))
                for tail in tails:
                    self._compile(tail, *self._empty_rows(tail, width))
        except Exception as error:
            raise ConfigurationError(
                f"torch.compile of the decoder layers failed with {type(error).__name__}: {error};"
                " start with --enforce-eager to run them uncompiled"
            ) from error
        logger.info(
            "VTR: compiled %d decoder layers, whole and in halves, as %d graphs in %.1f s",
            len(layers),
            counters["stats"]["unique_graphs"] - graphs,
            time.monotonic() - begun,
        )

    def _compile(self, layer: nn.Module, *rows: torch.Tensor) -> None:
        self._compiled(layer, *rows)
        given = dict(zip(("layer", *_ROWS_OF), (layer, *rows), strict=True))
        entry = next(
            entry
            for entry in _debug_get_cache_entry_list(_run.__code__)
            if entry.guard_manager.check(given)
        )
        # With a copy of the names that the code uses: torch takes its own back when it forgets a graph.
        self._graphs[layer] = FunctionType(entry.code, dict(_run.__globals__))

    def _empty_rows(
        self, layer: nn.Module, width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = self._config.model_config
        device = next(layer.parameters()).device
        shape = (3, _ROWS) if model.uses_mrope else (_ROWS,)
        positions = torch.zeros(shape, dtype=torch.int64, device=device)
        hidden = torch.zeros(_ROWS, width, dtype=model.dtype, device=device)
        residual = hidden.new_zeros(_ROWS, model.get_hidden_size())
        for rows, dim in ((positions, positions.ndim - 1), (hidden, 0), (residual, 0)):
            torch._dynamo.mark_dynamic(rows, dim)
        return positions, hidden, residual


def _run(
    layer: nn.Module, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, residual = layer(positions, hidden, residual)
    return hidden, residual


def _kept_guards(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """What tells the graphs of unlike layers apart, and, where one does not fit, why.

    Everything about the layer and the tensors, so that layers which differ (dense among experts)
    get graphs of their own. Not the layers' names, which vLLM hands to its operators as inputs of
    the graph. Nothing global, as in vLLM, where no guards are kept at all; and not the number of
    rows, which torch would take to be 2 or more.
    """
    kept = []
    for guard in guards:
        name = guard.orig_guard.name
        of_call = "L['" in name and guard.guard_type != "SHAPE_ENV"
        named = _USE_LAYERNAME and name.endswith("layer_name")
        kept.append(of_call and not named)
    return kept
