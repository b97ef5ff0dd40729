"""vLLM's way in: the entry point ``vtr`` of the group ``vllm.endpoint_plugins``."""

import asyncio
import logging
import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fastapi import FastAPI

import vtr_vllm
from vtr_server.gate.drain import drain_first
from vtr_server.gate.drain_flag import shared_drain_flag
from vtr_server.gate.middleware import Gate, install
from vtr_server.gate.shared_names import refuse_shared_names
from vtr_server.http.answer import GenerationService
from vtr_server.http.error_handlers import install_error_handlers
from vtr_server.http.message_limits import install_protocol
from vtr_server.http.routes import check_json_object, invocations, refuse_engine_error, router
from vtr_server.jobs.app import JobService, JobServiceSettings, start_service
from vtr_server.jobs.app import router as jobs_router
from vtr_server.jobs.sources import SETTINGS, Sources
from vtr_server.jobs.store import JobStore
from vtr_server.media.connector import install_media_connector
from vtr_server.operations.admin import router as admin_router
from vtr_server.operations.admin import start_admin
from vtr_server.operations.background import Background, poll_engine
from vtr_server.operations.metrics import observe_elastic, observe_elastic_step, observe_info
from vtr_server.page.routes import page_data
from vtr_server.page.routes import router as page_router
from vtr_server.policy.elastic import Elastic
from vtr_server.policy.exposure import check_exposure
from vtr_server.policy.schedule_choice import ScheduleChooser
from vtr_server.policy.schedule_folder import ScheduleFolder
from vtr_server.policy.settings import (
    JobsSettings,
    ServerSettings,
    check_adapt,
    check_reuse,
)
from vtr_server.policy.settings_file import SettingsFile
from vtr_server.vllm_api.engine import LOAD, Engine, EngineDeadError, EngineGenerateError
from vtr_server.vllm_api.sagemaker import own_invocations
from vtr_vllm.demo import SCHEDULES
from vtr_vllm.engine_settings import EngineSettings
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ScheduleBook

__all__ = ["VTREndpoints"]

logger = logging.getLogger("vllm.vtr")


class VTREndpoints:
    """Puts our routes in the place of vLLM's; see vLLM's ``EndpointPlugin`` protocol."""

    name = "vtr"
    required_tasks: ClassVar[tuple[str, ...]] = ("generate",)

    def __init__(self) -> None:
        self._settings = ServerSettings()
        self._app: FastAPI | None = None
        self._gate: Gate | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Phase A: routes, the gate before them, and the handlers of errors."""
        self._settings = settings = _settings(app.state)
        refuse_shared_names(os.environ, has_keys=bool(settings.keys))
        args = app.state.args
        local = getattr(args, "uds", None) is not None
        check_exposure(settings, "localhost" if local else getattr(args, "host", None))
        install_media_connector(settings.media, settings.limits)
        app.include_router(router)
        install_error_handlers(app)
        app.add_exception_handler(EngineDeadError, refuse_engine_error)
        app.add_exception_handler(EngineGenerateError, refuse_engine_error)
        own_invocations(invocations, check_json_object)
        install_protocol()
        if settings.page.enabled:
            app.include_router(page_router)
        if settings.jobs is not None:
            app.include_router(jobs_router)
        app.include_router(admin_router)
        self._gate = install(app, settings)
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Phase B: schedules, controller, jobs, and what runs beside the requests.

        Raises ScheduleError for a bad schedule, ConfigurationError for settings that do not go
        together with vLLM's.
        """
        settings = self._settings
        gate = self._gate or Gate(settings)  # the batch runner has no routes

        async def stop_jobs() -> None:
            if (service := getattr(state, "jobs", None)) is not None:
                await service.runner.stop()

        drain_first(engine_client, gate, stop_jobs)
        engine = Engine(engine_client, state)
        gate.draining = shared_drain_flag(engine.process_count, os.environ)
        elastic = _elastic(settings)
        schedules = ScheduleFolder(
            engine.geometry, engine.schedules, _chooser(engine, elastic, settings)
        )

        async def adopt(settings: ServerSettings) -> None:
            chooser, confidence = schedules.offer.chooser, settings.adaptive.confidence
            if (chooser.tiers, chooser.confidence) != (settings.tiers, confidence):
                await asyncio.to_thread(schedules.adopt, settings.tiers, confidence)
            gate.adopt(settings)
            state.vtr = GenerationService(engine, settings, schedules, elastic, gate)
            state.page = page_data(args.model, engine.image_processor, settings)

        check = partial(check_settings, engine=engine, schedules=schedules)
        check(settings)
        await adopt(settings)
        path = _settings_file(args)
        followed = None if _is_batch(state) else path  # one file, under one policy
        settings_file = state.vtr_settings = SettingsFile(followed, settings, adopt, check)
        if settings.jobs is not None:
            state.jobs = _jobs(engine, settings.jobs)
        background = state.vtr_background = Background()
        background.start("schedules", schedules.watch)
        background.start("settings", settings_file.watch)
        if elastic is not None:
            background.start("elastic", elastic.run)
        told = engine.process_rank == 0
        background.start("engine", lambda: poll_engine(engine, told=told))
        if self._app is not None:
            await start_admin(self._app, settings, engine.process_rank)
        observe_info(vtr_vllm.__version__, engine.served_models()[0], engine.geometry.fingerprint)
        if path is not None:
            await engine.greet()
        reason = await engine.why_not_in_place()
        logger.info(
            "VTR serves %s; reduction %s",
            engine.geometry.fingerprint,
            f"is NOT in place: {reason}" if reason else "is in place",
        )


def _settings_file(args: Any) -> Path | None:
    return EngineSettings.of(getattr(args, "additional_config", None)).settings


def _settings(state: Any) -> ServerSettings:
    path = _settings_file(state.args)
    settings = ServerSettings() if path is None else ServerSettings.load(path)
    return settings.of_a_batch() if _is_batch(state) else settings


def check_settings(settings: ServerSettings, engine: Engine, schedules: ScheduleFolder) -> None:
    """Refuse what does not go with what runs, at the start and each time the file has changed.

    Raises ConfigurationError.
    """
    refuse_shared_names(os.environ, has_keys=bool(settings.keys))
    check_reuse(settings, caches_prefixes=engine.caches_prefixes)
    check_adapt(settings, has_family=schedules.offer.chooser.family is not None)
    schedules.offer.chooser.check_tiers(settings.tiers)


def _is_batch(state: Any) -> bool:
    """Whether ``vtr batch`` runs the routes, for one file and no callers."""
    return getattr(state, "vtr_batch", False)


def _chooser(engine: Engine, elastic: Elastic | None, settings: ServerSettings) -> ScheduleChooser:
    """A chooser without stored schedules."""
    empty = ScheduleBook(engine.geometry, band_starts=engine.band_starts, modules=engine.modules)
    auto = None
    if elastic is not None:
        auto = lambda b: (elastic.controller.level, elastic.budget(b.minimum, b.maximum))  # noqa: E731
    return ScheduleChooser(
        empty,
        settings.tiers,
        auto,
        engine.caches_prefixes,
        engine.checkpoint,
        confidence=settings.adaptive.confidence,
    )


def _jobs(engine: Engine, settings: JobsSettings) -> JobService:
    """Search jobs, whose schedules are published to the folder that this server watches."""
    if engine.process_count > 1:
        raise ConfigurationError(
            f"[jobs] works with one API server process, and there are {engine.process_count};"
            " start with --api-server-count 1, or run `vtr search serve` beside"
        )
    sources = Sources(
        data_root=settings.data_root,
        model_root=settings.model_root,
        models=settings.models,
        servers=settings.servers,
        engines=settings.memory_share is not None,
        memory_share=settings.memory_share,
        workers=settings.workers,
        names=SETTINGS,
    )
    job_settings = JobServiceSettings(
        root=settings.root,
        sources=sources,
        publish=None if engine.schedules == SCHEDULES else engine.schedules,  # the package's
    )
    return start_service(JobStore(settings.root), job_settings)


def _elastic(settings: ServerSettings) -> Elastic | None:
    if settings.elastic is None:
        return None
    return Elastic(settings.elastic, LOAD, observe_elastic, observe_elastic_step)
