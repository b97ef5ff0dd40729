"""What a job may read: paths and addresses of a spec are a client's, the rules the operator's."""

from dataclasses import dataclass
from pathlib import Path

from vtr_server.jobs.protocol import JobSpec
from vtr_vllm.errors import RequestError
from vtr_vllm.schedules.strict_json import show

__all__ = ["Sources"]


@dataclass(frozen=True)
class Sources:
    """Where data and models may lie, and which models and servers may be named."""

    data_root: Path
    model_root: Path | None = None
    models: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()

    def arguments(self, spec: JobSpec) -> list[str]:
        """The spec as arguments of ``vtr search``, paths resolved.

        Raises RequestError for a file, a model or a server that is not allowed or not there.
        """
        for server in spec.servers:
            if server not in self.servers:
                raise RequestError(
                    f"server {show(server)} is not allowed; allowed are {_listed(self.servers)}:"
                    " start the job service with --servers to allow more"
                )
        arguments = [spec.kind, "--model", self._model(spec.model)]
        arguments += ["--data", self._data("data", spec.data), "--seed", str(spec.seed)]
        arguments += ["--budgets", ",".join(map(str, spec.budgets))]
        heldout = None if spec.heldout is None else self._data("heldout", spec.heldout)
        optional = {
            "--tolerance": spec.tolerance,
            "--objective": spec.objective,
            "--servers": ",".join(spec.servers) or None,
            "--items": spec.items,
            "--heldout": heldout,
        }
        for flag, value in optional.items():
            arguments += [] if value is None else [flag, str(value)]
        return arguments

    def _data(self, field: str, given: str) -> str:
        path = _inside(self.data_root, given)
        if path is None or not path.is_file():
            raise RequestError(
                f"{field} {show(given)} is no file under the data folder of this service; give a"
                " path relative to that folder"
            )
        return str(path)

    def _model(self, given: str) -> str:
        if given == "demo" or given in self.models:
            return given
        path = None if self.model_root is None else _inside(self.model_root, given)
        if path is None or not path.is_dir():
            raise RequestError(
                f"model {show(given)} is not allowed; allowed are"
                f" {_listed(('demo', *self.models))} and folders under --model-root, if the"
                " service was started with one"
            )
        return str(path)


def _inside(root: Path, given: str) -> Path | None:
    """The real path of ``given`` under ``root``; None if it leads out or cannot be followed."""
    try:
        path = (root / given).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return None
    return path if path.is_relative_to(root.resolve()) else None


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values) or "none"
