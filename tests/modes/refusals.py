"""What a configuration of vLLM's, made from its own arguments, is refused with."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from tests.modes.table import Refused
from tests.tiny import TinyShape, write_model_files
from vtr_vllm.engine.common.config import check_vllm_config
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.errors import ConfigurationError


@cache
def model() -> Path:
    """A model's folder without weights."""
    folder = Path(mkdtemp(prefix="tiny-config-"))
    write_model_files(folder, TinyShape())
    return folder


def config(**arguments: Any) -> VllmConfig:
    """What ``vtr serve`` with these arguments configures."""
    ours = {"worker_cls": WORKER_CLS, "scheduler_cls": SCHEDULER_CLS, "dtype": "float32"}
    return EngineArgs(model=str(model()), **ours, **arguments).create_engine_config()


def refused_config(line: Refused) -> VllmConfig:
    """The configuration that a line of the table is about."""
    made = config(**line.arguments)
    for path, value in line.changes.items():
        *parents, name = path.split(".")
        target: Any = made
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    return made


def refusal_of(line: Refused) -> str:
    """The error; raises AssertionError when there is none."""
    try:
        with patch.dict(os.environ, line.environment):
            check_vllm_config(refused_config(line))
    except ConfigurationError as err:
        return str(err)
    raise AssertionError(f"{line.name} is not refused")
