"""Geometries, keep curves and schedules for property tests."""

from hypothesis import strategies as st

from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule
from vtr_vllm.schedules.keep_rates import cut_layers

LLAVA_7B = ModelGeometry(32, 4096, 11008, 32, 32, 128)

ATTENTION_RULES = ["last", "last-norope", "last-max", "last-norope-max", "instruction"]
ADAPTIVE_RULES = ["last@0.5", "instruction@0.3", "atp"]
BLIND_RULES = ["saliency", "cls", "random"]

budgets = st.floats(1e-6, 1.0)
geometries = st.builds(
    ModelGeometry,
    layers=st.integers(8, 48),
    hidden_size=st.just(128),
    intermediate_size=st.just(320),
    heads=st.just(4),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.just(32),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # JSON text may hold lone surrogates only escaped; both must survive
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def curves(draw, layers, adaptive=False):
    """A valid keep curve of so many layers, with a valid rule per cut; ``adaptive``: some of these too."""
    rate = st.sampled_from([0.0, 0.05, 0.25, 1 / 3, 0.5, 0.999, 1.0]) | st.floats(0, 1)
    keep = sorted(draw(st.lists(rate, min_size=layers, max_size=layers)), reverse=True)
    rules = []
    for cut in cut_layers(keep, 1.0):
        allowed = BLIND_RULES + (ATTENTION_RULES if cut >= 2 else [])
        if adaptive and cut >= 2 and sum(rule in ADAPTIVE_RULES for rule in rules) < 4:
            allowed += ADAPTIVE_RULES
        rules.append(draw(st.sampled_from(allowed + (["previous"] if rules else []))))
    return tuple(keep), tuple(RankRule.parse(rule) for rule in rules)


@st.composite
def schedules(draw):
    geometry = draw(geometries)
    keep, rules = draw(curves(geometry.layers))
    return Schedule(
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        geometry=geometry,
        keep=keep,
        rules=rules,
        method="drawn",
        parameters=draw(st.dictionaries(st.text(), json_values, max_size=3)),
        provenance=draw(st.dictionaries(st.text(), json_values, max_size=3)),
        per_image_floor=draw(st.sampled_from([0.0, 0.3]) | st.floats(0, 1)),
    )
