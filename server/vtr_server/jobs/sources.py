"""What a job may use: paths, addresses and engines of a spec are a client's, the rules the operator's."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtr_server.jobs.protocol import JobSpec
from vtr_vllm.errors import RequestError, show
from vtr_vllm.own_models import OWN_MODELS
from vtr_vllm.search_options import to_arguments

__all__ = ["FLAGS", "MEMORY", "SETTINGS", "OperatorNames", "Sources"]

MEMORY = "gpu_memory_utilization"
"""vLLM's argument: the share of a device's memory that an engine takes."""

ENGINE_ARGS = (
    *("block_size", "dtype", "enforce_eager", MEMORY, "kv_cache_dtype", "kv_cache_memory_bytes"),
    *("limit_mm_per_prompt", "max_model_len", "max_num_batched_tokens", "max_num_seqs"),
    *("quantization", "tensor_parallel_size"),
)
"""What a client may set of vLLM's arguments: sizes and number formats. Others name code, files or
hosts, which are the operator's."""


@dataclass(frozen=True)
class OperatorNames:
    """What the operator calls the rules, for messages."""

    servers: str
    model_root: str
    publish: str
    memory_share: str


FLAGS = OperatorNames("--servers", "--model-root", "--publish FOLDER", "--memory-share")
SETTINGS = OperatorNames(
    *("servers in [jobs]", "model_root in [jobs]", "--schedules FOLDER", "memory_share in [jobs]")
)


@dataclass(frozen=True)
class Sources:
    """Where data and models may lie, which models and servers may be named, what engines may take."""

    data_root: Path
    model_root: Path | None = None
    models: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    engines: bool = True
    """Whether a job may start engines of its own; if not, it runs on ``servers``."""
    workers: int = 1
    """Jobs at once."""
    memory_share: float | None = None
    """The most that an engine of a job may take of its device's memory; None: as vLLM does."""
    names: OperatorNames = FLAGS

    def arguments(self, spec: JobSpec) -> list[str]:
        """The spec as arguments of ``vtr search``, paths resolved.

        Raises RequestError for a file, a model, a server or an engine that is not allowed or not
        there.
        """
        found: dict[str, Any] = {
            "model": self._model(spec.model),
            "data": self._data("data", spec.data),
        }
        if spec.heldout is not None:
            found["heldout"] = self._data("heldout", spec.heldout)
        found |= self._servers(spec) or self._engine_args(spec)
        return to_arguments(spec.model_copy(update=found))

    def _servers(self, spec: JobSpec) -> dict[str, Any]:
        """The servers to run on; nothing where the job starts engines of its own."""
        allowed = [server.rstrip("/") for server in self.servers]
        for server in spec.servers:
            if server not in allowed:
                raise RequestError(
                    f"server {show(server)} is not allowed; allowed are {_listed(self.servers)}:"
                    f" more can be allowed with {self.names.servers}"
                )
        if self.engines or spec.servers:
            return {"servers": spec.servers} if spec.servers else {}
        own = [name for name in ("engines", "engine_args") if name in spec.model_fields_set]
        if own:
            raise RequestError(
                f"{' and '.join(own)} cannot be given: jobs of this service run on"
                f" {_listed(self.servers)}; leave it out, or have {self.names.memory_share} set"
            )
        return {"servers": allowed}

    def _engine_args(self, spec: JobSpec) -> dict[str, Any]:
        """The arguments of the job's own engines, with no more memory than they may take."""
        given = dict(spec.engine_args)
        unknown = sorted(given.keys() - set(ENGINE_ARGS))
        if unknown:
            raise RequestError(
                f"engine_args {show(unknown)} may not be set by a job; those that may are"
                f" {', '.join(ENGINE_ARGS)}"
            )
        if self.memory_share is None:
            return {}
        together = spec.engines * self.workers
        if not _has_gpu() and together * self.memory_share >= 1:
            raise RequestError(
                f"engines is {spec.engines}, and {self.workers} jobs at once with as many engines of"
                f" {self.memory_share:g} of the memory each leave nothing: no GPU is visible here, so"
                " they share the machine's; give fewer engines, or leave it out"
            )
        share = given.setdefault(MEMORY, self.memory_share)
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise RequestError(f"engine_args {MEMORY} is {show(share)}; give a number in (0, 1]")
        if share > self.memory_share or "kv_cache_memory_bytes" in given:
            raise RequestError(
                f"engine_args ask for more than {self.memory_share:g} of a device's memory, which is"
                f" what an engine of a job may take here; give {MEMORY} up to that, and no"
                " kv_cache_memory_bytes"
            )
        return {"engine_args": given}

    def _data(self, field: str, given: str) -> str:
        path = _inside(self.data_root, given)
        if path is None or not path.is_file():
            raise RequestError(
                f"{field} {show(given)} is no file under the data folder of this service; give a"
                " path relative to that folder"
            )
        return str(path)

    def _model(self, given: str) -> str:
        if given in OWN_MODELS or given in self.models:
            return given
        path = None if self.model_root is None else _inside(self.model_root, given)
        if path is None or not path.is_dir():
            raise RequestError(
                f"model {show(given)} is not allowed; allowed are"
                f" {_listed((*OWN_MODELS, *self.models))} and folders in the folder of models, where the"
                f" service has one ({self.names.model_root})"
            )
        return str(path)


def _has_gpu() -> bool:
    """Whether engines may get a GPU each; seen without torch, which the service does not import."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def _inside(root: Path, given: str) -> Path | None:
    """The real path of ``given`` under ``root``; None if it leads out or cannot be followed."""
    try:
        path = (root / given).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return None
    return path if path.is_relative_to(root.resolve()) else None


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values) or "none"
