"""Schedules: what each decoder layer keeps, what that costs, and which one a budget means.

Pure Python: no torch, no vllm, no numpy, so that admission, the scheduler process and the
offline search can all use it.
"""

from vtr_vllm.ranking import RankRule
from vtr_vllm.schedules.book import ScheduleBook, Selection
from vtr_vllm.schedules.cost import flops_fraction, kv_bytes, kv_tokens, prefill_flops
from vtr_vllm.schedules.floors import check_floor, image_floors
from vtr_vllm.schedules.forms import FORMS, form_by_name
from vtr_vllm.schedules.forms.fastv import fastv
from vtr_vllm.schedules.forms.full import full
from vtr_vllm.schedules.forms.p_sigmoid import p_sigmoid
from vtr_vllm.schedules.forms.pdrop import pyramid_drop
from vtr_vllm.schedules.forms.random import random
from vtr_vllm.schedules.forms.uniform import uniform
from vtr_vllm.schedules.forms.vtw import vtw
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.interpolation import interpolate
from vtr_vllm.schedules.keep_rates import (
    FIRST_ATTENTION_CUT,
    MOST_ADAPTIVE_CUTS,
    adaptive_rules,
    check_budget,
    cut_layers,
    cuts_inside_bands,
    of_one_image,
    see_no_question,
)
from vtr_vllm.schedules.plan import Plan, make_plan
from vtr_vllm.schedules.schedule import SCHEMA_VERSION, Schedule, explicit
from vtr_vllm.schedules.wire import (
    FLOOR_KEY,
    KEEP_KEY,
    RULES_KEY,
    TRACE_KEY,
    UNITS_KEY,
    parse_floor,
    parse_trace,
    parse_units,
    parse_wire,
    to_wire,
)

__all__ = [
    "FIRST_ATTENTION_CUT",
    "MOST_ADAPTIVE_CUTS",
    "FLOOR_KEY",
    "FORMS",
    "KEEP_KEY",
    "RULES_KEY",
    "SCHEMA_VERSION",
    "TRACE_KEY",
    "UNITS_KEY",
    "ModelGeometry",
    "Plan",
    "RankRule",
    "Schedule",
    "ScheduleBook",
    "Selection",
    "adaptive_rules",
    "check_budget",
    "check_floor",
    "cut_layers",
    "cuts_inside_bands",
    "explicit",
    "fastv",
    "flops_fraction",
    "form_by_name",
    "full",
    "image_floors",
    "interpolate",
    "kv_bytes",
    "kv_tokens",
    "make_plan",
    "of_one_image",
    "p_sigmoid",
    "parse_floor",
    "parse_trace",
    "parse_units",
    "parse_wire",
    "prefill_flops",
    "see_no_question",
    "pyramid_drop",
    "random",
    "to_wire",
    "uniform",
    "vtw",
]
