"""Rank rules that a model or an engine cannot follow: refused at admission."""

import numpy as np
from vllm.config import VllmConfig

from vtr_vllm.engine.common.atp import facts_of
from vtr_vllm.engine.common.config import model_geometry
from vtr_vllm.engine.common.registers import REGISTERS_KEY, registers_of
from vtr_vllm.engine.common.supported_models import CLS_ARCHITECTURES
from vtr_vllm.errors import RequestError, ScheduleError, UnsupportedRequest
from vtr_vllm.ranking import Need, check_heads
from vtr_vllm.reduction.request import ReducedRequest


def check_rules(reduced: ReducedRequest, vllm_config: VllmConfig, *, adapted: bool = False) -> None:
    """Refuse rules that need what the model, or the engine, does not have; raises RequestError.

    ``adapted``: the request runs with a LoRA adapter.
    """
    _check_registers(reduced, vllm_config)
    _check_tower(reduced, vllm_config)
    _check_modules(reduced, vllm_config, adapted=adapted)
    try:
        check_heads(reduced.plan.rules, model_geometry(vllm_config).heads)
    except ScheduleError as err:
        raise RequestError(str(err)) from err


def _check_registers(reduced: ReducedRequest, vllm_config: VllmConfig) -> None:
    """Registers are worth nothing without the rule that keeps them, and it nothing without them."""
    count = registers_of(vllm_config.model_config.hf_config)
    for rule in reduced.plan.rules:
        if count and Need.REGISTERS not in rule.needs:
            raise UnsupportedRequest(
                f"rank rule {rule} would drop the model's {count} registers, which it was trained to"
                " look at instead of an image; choose a schedule with rule registers"
            )
        if not count and Need.REGISTERS in rule.needs:
            raise UnsupportedRequest(
                f"rank rule {rule} keeps learned registers, and the model has none"
                f" ({REGISTERS_KEY} of its config.json); choose a schedule with another rule, or train"
                " some with vtr train registers"
            )


def _check_tower(reduced: ReducedRequest, vllm_config: VllmConfig) -> None:
    rule = next((rule for rule in reduced.plan.rules if Need.TOWER in rule.needs), None)
    if rule is None:
        return
    model = vllm_config.model_config
    tower = getattr(model.hf_config, "vision_config", None)
    tower_type = getattr(tower, "model_type", None)
    multimodal = model.multimodal_config
    if model.architecture not in CLS_ARCHITECTURES or tower_type != "clip_vision_model":
        raise UnsupportedRequest(
            f"rank rule {rule} needs vision tokens that are the patches of a tower with a CLS token"
            f" (CLIP in {', '.join(CLS_ARCHITECTURES)}), and this is {model.architecture} with"
            f" {tower_type}; choose a schedule with another rule, such as saliency"
        )
    if multimodal is not None and multimodal.enable_mm_embeds:
        raise UnsupportedRequest(
            f"rank rule {rule} needs images that the tower sees, and this server takes ready-made"
            " embeddings (--enable-mm-embeds); choose a schedule with another rule"
        )


def _check_modules(reduced: ReducedRequest, vllm_config: VllmConfig, *, adapted: bool) -> None:
    """Modules are trained for one model, one image of one form, and each for its layer."""
    plan = reduced.plan
    judged = {
        cut: rule
        for cut, rule in zip(plan.cuts, plan.rules, strict=True)
        if Need.MODULES in rule.needs
    }
    if not judged:
        return
    facts = facts_of(vllm_config)
    if facts is None:
        raise UnsupportedRequest(
            f"rank rule {next(iter(judged.values()))} is decided by trained modules, and the engine was"
            " started without; start it with --atp DIR, of vtr train atp, or choose a schedule with another"
            " rule"
        )
    if adapted:
        raise UnsupportedRequest(
            f"rank rule {next(iter(judged.values()))} is decided by modules that were trained on the model"
            " without a LoRA adapter; ask the model itself, or choose a schedule with another rule"
        )
    if other := sorted(set(judged) - set(facts.layers)):
        raise UnsupportedRequest(
            f"rank rule {judged[other[0]]} stands before layer {other[0]}, and the engine's modules were"
            f" trained for those before layers {', '.join(map(str, facts.layers))}; cut there"
        )
    units = reduced.parts[0].units
    forms = [unit.grid for unit in units]
    if forms != [facts.grid] or (np.diff(units[0].vision) > 1).any():
        shown = ", ".join("x".join(map(str, form)) if form else "no grid" for form in forms)
        raise UnsupportedRequest(
            f"the prompt has {len(units)} images ({shown}), and rank rule {next(iter(judged.values()))} is"
            f" decided by modules that were trained on one image of {facts.grid[0]}x{facts.grid[1]} vision"
            " tokens; send one, or choose a schedule with another rule"
        )
