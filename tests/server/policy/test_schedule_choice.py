"""From an ask to a schedule, within a policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.bad_input import INLINE
from vtr_server.policy.elastic import within
from vtr_server.policy.requested_budget import UNSAID, Bounds, Switch
from vtr_server.policy.schedule_choice import ChosenSchedule, ScheduleChooser, describe
from vtr_server.policy.settings import ServerSettings
from vtr_server.policy.vtr_field import Ask, AutoAnswer
from vtr_vllm.errors import (
    BudgetNotAllowed,
    ConfigurationError,
    InvalidBudget,
    RequestError,
    ScheduleError,
    UnknownSchedule,
    UnknownTier,
    UnsupportedRequest,
)
from vtr_vllm.schedules import (
    ModelGeometry,
    RankRule,
    Schedule,
    ScheduleBook,
    fastv,
    flops_fraction,
    uniform,
    vtw,
)

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)
SEARCHED = Schedule(
    name="searched-half",
    geometry=GEOMETRY,
    keep=(1.0,) * 2 + (0.4,) * 10,
    rules=(RankRule.parse("last"),),
    method="g-search",
    budget=0.5,
)
BOOK = ScheduleBook(GEOMETRY, [SEARCHED])
TIERS = ServerSettings().tiers | {"halved": "searched-half", "quick": "fastv-0.5"}
OPEN = Bounds(0.0, 1.0)
CHOOSER = ScheduleChooser(BOOK, TIERS)


def choose(ask: Ask, policy: Bounds = OPEN) -> ChosenSchedule:
    return CHOOSER.choose(ask, policy)


def stored(form: Schedule, budget: float) -> Schedule:
    """The same curve as a searched schedule has it."""
    return replace(form, name=f"stored-{budget}", method="g-search", budget=budget)


@pytest.mark.parametrize(
    ("ask", "name", "source", "budget"),
    [
        (Ask(), "full", "full", 1.0),
        (Ask(budget=1.0), "full", "full", 1.0),
        (Ask(budget=0.5), "searched-half", "searched", 0.5),
        (Ask(budget=0.25), "divprune-0.25", "local-default", 0.25),
        (Ask(budget=0.75), "interpolated-0.75", "interpolated", 0.75),
        (Ask(tier="full"), "full", "full", 1.0),
        (Ask(tier="economy"), "divprune-0.25", "local-default", 0.25),
        (Ask(tier="balanced"), "searched-half", "searched", 0.5),
        (Ask(tier="halved"), "searched-half", "searched", 0.5),
        (Ask(tier="quick"), "fastv-0.5", "built-in-form", 0.5),
        (Ask(schedule="full"), "full", "full", 1.0),
        (Ask(schedule="searched-half"), "searched-half", "searched", 0.5),
        (Ask(schedule="fastv-0.5"), "fastv-0.5", "built-in-form", 0.5),
        (Ask(keep=[1.0] * 6 + [0.5] * 6, rules=["last"]), "inline", "inline", 0.75),
        (Ask(keep=[1] * 12, rules=[]), "inline", "inline", 1.0),
        (Ask(keep=[0] * 12, rules=["random"]), "inline", "inline", 0.0),
    ],
)
def test_the_schedule_and_where_it_comes_from(
    ask: Ask, name: str, source: str, budget: float
) -> None:
    choice = choose(ask)
    assert (choice.schedule.name, choice.source, choice.tier) == (name, source, ask.tier)
    assert choice.budget == pytest.approx(budget)


@pytest.mark.parametrize(
    "ask", [Ask(), Ask(budget=1.0), Ask(schedule="full"), Ask(keep=[1.0] * 12, rules=[])]
)
def test_full_budget_puts_nothing_on_the_wire(ask: Ask) -> None:
    assert choose(ask).wire == {}


def test_a_reduced_choice_travels_as_flat_lists() -> None:
    wire = choose(Ask(schedule="searched-half")).wire
    assert wire == {"vtr_keep": [1.0] * 2 + [0.4] * 10, "vtr_rules": ["last"]}


def test_an_inline_schedule_travels_as_it_came() -> None:
    keep, rules = [1.0] * 4 + [0.5] * 4 + [0.0] * 4, ["last-norope", "previous"]
    assert choose(Ask(keep=keep, rules=rules)).wire == {"vtr_keep": keep, "vtr_rules": rules}


@pytest.mark.parametrize(
    ("keep", "rules", "reason"),
    [
        ([1.0] * 11, [], "keep has 11 rates, the model has 12 layers"),
        ([1.0] * 11 + [float("nan")], ["last"], r"keep\[11\] is nan"),
        ([0.5] * 6 + [1.0] * 6, ["random"], r"keep\[6\] is 1.0, above keep\[5\] = 0.5"),
        ([1.0] * 6 + [0.5] * 6, [], "0 rank rules for 1 cuts"),
        ([1.0] * 6 + [0.5] * 6, ["first"], "rank rule 'first' is unknown"),
    ],
)
def test_a_bad_inline_schedule_gets_the_schedules_own_reason(
    keep: list[float], rules: list[str], reason: str
) -> None:
    with pytest.raises(ScheduleError, match=reason):
        choose(Ask(keep=keep, rules=rules))


@pytest.mark.parametrize("field", INLINE, ids=lambda value: f"{value!r:.40}")
def test_every_malformed_inline_schedule_is_refused(field: dict[str, list[object]]) -> None:
    with pytest.raises(ScheduleError) as caught:
        choose(Ask(keep=field["keep"], rules=field["rules"]))
    assert len(str(caught.value)) < 400


def test_an_unknown_name_and_an_impossible_budget_are_refused() -> None:
    with pytest.raises(UnknownSchedule, match="searched-half"):
        choose(Ask(schedule="nosuch"))
    with pytest.raises(InvalidBudget, match="fastv cannot meet"):
        choose(Ask(schedule="fastv-0.01"))


def test_the_list_names_schedules_forms_and_geometry() -> None:
    listed = describe(CHOOSER)
    assert [item["name"] for item in listed["data"]] == ["full", "searched-half"]
    assert listed["geometry"] == GEOMETRY.to_dict()
    assert listed["tiers"] == CHOOSER.offered_tiers()
    assert listed["auto"] is False
    least = {form["name"]: form["least_budget"] for form in listed["forms"]}
    assert least["fastv-<budget>"] == 0.1667
    assert least["vtw-<budget>"] == 0.0833
    assert least["p-sigmoid-<budget>"] == 0.0001


def test_the_listed_inline_example_can_be_asked_for() -> None:
    choice = choose(Ask(**describe(CHOOSER)["inline"]["example"]))
    assert (choice.source, choice.budget) == ("inline", pytest.approx(0.5))


def test_every_listed_form_can_be_asked_for() -> None:
    for form in describe(CHOOSER)["forms"]:
        for name in (form["example"], form["name"].replace("<budget>", f"{form['least_budget']}")):
            assert choose(Ask(schedule=name)).source == "built-in-form"


def test_a_tier_is_offered_while_its_schedule_is_stored() -> None:
    assert set(TIERS) - set(CHOOSER.offered_tiers()) == {"lossless"}
    with pytest.raises(UnknownTier, match="tier lossless stands for schedule lossless, which is"):
        choose(Ask(tier="lossless"))
    keep = (1.0,) * 8 + (0.9,) * 4
    stored = Schedule("lossless", GEOMETRY, keep, (RankRule.parse("last"),), method="g-search")
    chooser = ScheduleChooser(ScheduleBook(GEOMETRY, [SEARCHED, stored]), TIERS)
    choice = chooser.choose(Ask(tier="lossless"), OPEN)
    assert (choice.tier, choice.schedule) == ("lossless", stored)
    assert chooser.offered_tiers()["lossless"] == stored.mean_keep


def test_an_unknown_tier_names_those_there_are() -> None:
    with pytest.raises(UnknownTier, match="tier 'gold' is unknown; there are full, balanced, eco"):
        choose(Ask(tier="gold"))


def test_every_offered_tier_can_be_asked_for_and_comes_to_its_budget() -> None:
    for name, budget in CHOOSER.offered_tiers().items():
        assert choose(Ask(tier=name)).budget == budget


def test_aliases_are_tiers_stored_budgets_and_auto() -> None:
    names = ["full", "balanced", "economy", "halved", "quick", "0.5"]
    reused = ["balanced+reuse", "economy+reuse"]
    assert CHOOSER.aliases() == [*names, *reused]
    auto = ScheduleChooser(BOOK, TIERS, lambda _: (1.0, 1.0))
    assert auto.aliases() == [*names, "auto", *reused, "auto+reuse"]
    assert replace(auto, caches_prefixes=False).aliases() == [*names, "auto"]
    stored = ScheduleBook(GEOMETRY, [SEARCHED, LOCAL])
    tiers = TIERS | {"local": "local-quarter"}
    assert ScheduleChooser(stored, tiers).aliases() == [
        *names[:-1],
        *("local", "0.5", "0.25", "balanced+reuse", "economy+reuse", "local+reuse", "0.25+reuse"),
    ]


REUSED, GUIDED = Switch(wanted=True, explicit=True), Switch(wanted=False, explicit=True)
LOCAL = Schedule(
    name="local-quarter",
    geometry=GEOMETRY,
    keep=(0.5,) * 4 + (0.125,) * 8,
    rules=(RankRule.parse("saliency"), RankRule.parse("grid")),
    method="g-search",
    budget=0.25,
)
TWO = ScheduleChooser(
    ScheduleBook(GEOMETRY, [SEARCHED, LOCAL], band_starts=(0, 2, 4, 6, 8, 10)),
    TIERS | {"local": "local-quarter"},
    lambda b: (0.5, min(0.5, b.maximum)),
)


@pytest.mark.parametrize(
    ("ask", "name", "source"),
    [
        (Ask(budget=0.25), "local-quarter", "searched"),
        (Ask(tier="economy"), "local-quarter", "searched"),
        (Ask(budget=0.2), "divprune-0.2", "local-default"),
        (Ask(budget=0.5), "interpolated-0.5", "interpolated"),
        (Ask(budget="auto"), "interpolated-0.5", "interpolated"),
        (Ask(tier="local"), "local-quarter", "searched"),
        (Ask(schedule="local-quarter"), "local-quarter", "searched"),
        (Ask(schedule="uniform-0.5"), "uniform-0.5", "built-in-form"),
        (Ask(keep=[0.5] * 12, rules=["cls"]), "inline", "inline"),
    ],
)
def test_reuse_chooses_from_the_ladder_of_local_schedules(ask: Ask, name: str, source: str) -> None:
    choice = TWO.choose(ask, OPEN, reuse=REUSED)
    assert (choice.schedule.name, choice.source, choice.reuse) == (name, source, True)
    assert choice.with_floor(0.5).reuse
    # a default runs the same, and never refuses a schedule that has a name
    assert TWO.choose(ask, OPEN, reuse=Switch(wanted=True)) == choice
    if ask.budget is not None or ask.tier == "economy":
        assert not TWO.choose(ask, OPEN, reuse=GUIDED).reuse


def test_whoever_does_not_say_gets_what_is_stored() -> None:
    """Of either kind, whatever a server's or a key's default is called; below both one cut."""
    for unsaid in (UNSAID, Switch(wanted=False)):
        found = [TWO.choose(Ask(budget=each), OPEN, reuse=unsaid) for each in (0.5, 0.4, 0.25, 0.2)]
        names = ["searched-half", "interpolated-0.4", "local-quarter", "divprune-0.2"]
        assert [each.schedule.name for each in found] == names
    asked = TWO.choose(Ask(budget=0.25), OPEN, reuse=GUIDED)
    assert (asked.schedule.name, asked.source) == ("p-sigmoid-0.25", "p-sigmoid-default")


@pytest.mark.parametrize(
    ("ask", "reuse", "said"),
    [
        (
            Ask(schedule="searched-half"),
            REUSED,
            "reuse is true, and schedule searched-half cannot be",
        ),
        (Ask(tier="halved"), REUSED, "last ranks by what stands behind the image; leave reuse out"),
        (Ask(schedule="fastv-0.5"), REUSED, "schedule fastv-0.5 cannot be reused"),
        (Ask(schedule="vtw-0.25"), REUSED, r"cuts before layers \[3\], and the engine's KV bands"),
        (
            Ask(keep=[1.0] * 6 + [0.5] * 6, rules=["last"]),
            REUSED,
            "schedule inline cannot be reused",
        ),
        (
            Ask(schedule="local-quarter"),
            GUIDED,
            "reuse is false, and schedule local-quarter is reused",
        ),
        (Ask(tier="local"), GUIDED, "leave reuse out"),
        (Ask(keep=[0.5] * 12, rules=["cls"]), GUIDED, r"leave reuse out \(or true\)"),
    ],
)
def test_a_schedule_of_the_other_kind_is_refused(ask: Ask, reuse: Switch, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        TWO.choose(ask, OPEN, reuse=reuse)
    for silent in (Switch(), Switch(wanted=True)):
        TWO.choose(ask, OPEN, reuse=silent)


@pytest.mark.parametrize("reuse", [REUSED, GUIDED])
def test_full_budget_goes_with_either(reuse: Switch) -> None:
    for ask in (Ask(), Ask(tier="full"), Ask(schedule="full"), Ask(keep=[1] * 12, rules=[])):
        choice = TWO.choose(ask, OPEN, reuse=reuse)
        assert (choice.wire, choice.reuse) == ({}, False)


def test_reuse_without_prefix_caching_is_refused() -> None:
    chooser = replace(TWO, caches_prefixes=False)
    for ask in (Ask(budget=0.5), Ask(budget="auto"), Ask(), Ask(schedule="local-quarter")):
        with pytest.raises(RequestError, match="without prefix caching: nothing would be reused"):
            chooser.choose(ask, OPEN, reuse=REUSED)
        chooser.choose(ask, OPEN, reuse=Switch())
    with pytest.raises(RequestError, match="without prefix caching"):
        chooser.choose_by_flops(0.5, OPEN, 100, 10, REUSED)
    assert describe(chooser)["prefix_caching"] is False


def test_what_a_policy_moves_stays_of_its_kind() -> None:
    for wanted in (True, False):
        choice = TWO.choose(
            Ask(budget=0.1), Bounds(0.3, 0.5), movable=True, reuse=Switch(wanted, explicit=True)
        )
        assert (choice.budget, choice.reuse) == (0.3, wanted)


def test_the_list_says_which_schedules_are_reused_and_why_not() -> None:
    listed = describe(TWO)
    assert (listed["prefix_caching"], listed["band_starts"]) == (True, [0, 2, 4, 6, 8, 10])
    assert {row["name"]: row["reuse"] for row in listed["data"]} == {
        "full": False,
        "local-quarter": True,
        "searched-half": False,
    }
    assert describe(CHOOSER)["band_starts"] is None


def allowed(policy: Bounds, budget: float) -> bool:
    return policy.minimum - 1e-6 <= budget <= policy.maximum + 1e-6


SHARES = st.floats(0.01, 1.0)
POLICIES = st.tuples(SHARES, SHARES).map(lambda two: Bounds(min(two), max(two)))
FLAT = st.integers(0, 11).map(lambda cut: [1.0] * cut + [0.5] * (12 - cut))
ASKS = st.one_of(
    st.builds(Ask, budget=SHARES),
    st.builds(Ask, tier=st.sampled_from(sorted(TIERS))),
    st.builds(Ask, schedule=st.sampled_from(["full", "searched-half", "fastv-0.5", "vtw-0.25"])),
    st.builds(Ask, keep=FLAT, rules=st.just(["random"])),
    POLICIES.map(lambda b: Ask(budget="auto", minimum=b.minimum, maximum=b.maximum)),
)
LEVELS = (1.0, 0.75, 0.5, 0.375, 0.25)


@given(ASKS, POLICIES, st.sampled_from(LEVELS))
def test_nothing_that_is_asked_leaves_the_policy(ask: Ask, policy: Bounds, level: float) -> None:
    chooser = ScheduleChooser(
        BOOK, TIERS, lambda b: (level, within(LEVELS, level, b.minimum, b.maximum))
    )
    try:
        choice = chooser.choose(ask, policy)
    except (BudgetNotAllowed, UnknownTier):
        return  # as good as inside
    assert allowed(policy, choice.budget)
    if choice.auto is not None:
        own = Bounds(ask.minimum or 0.0, ask.maximum or 1.0)
        assert allowed(own, choice.budget)
        assert choice.auto.minimum == max(own.minimum, policy.minimum)
        assert choice.auto.maximum == min(own.maximum, policy.maximum)
        assert choice.auto.level == level


@pytest.mark.parametrize("ask", [Ask(budget=0.3), Ask(tier="economy"), Ask(schedule="vtw-0.25")])
def test_what_lies_outside_is_refused_with_the_range(ask: Ask) -> None:
    with pytest.raises(BudgetNotAllowed, match=r"what you may ask for here, 0\.5 to 0\.75"):
        choose(ask, Bounds(0.5, 0.75))


def test_what_may_keep_less_than_a_minimum_is_refused() -> None:
    """Of adaptive cuts only the most is known that they keep."""
    ask = Ask(keep=[1.0] * 6 + [0.9] * 6, rules=["last@0.5"])
    assert choose(ask, Bounds(0.0, 1.0)).schedule.is_adaptive
    with pytest.raises(BudgetNotAllowed, match=r"inline has adaptive cuts, which may keep less"):
        choose(ask, Bounds(0.5, 1.0))
    chooser = ScheduleChooser(BOOK, TIERS)
    assert chooser.choose(ask, Bounds(0.5, 1.0), movable=True).budget == pytest.approx(0.95)


@given(ASKS, POLICIES)
def test_a_default_or_a_detail_is_moved_to_the_next_bound(ask: Ask, policy: Bounds) -> None:
    """One rule for both: what the client did not ask for itself never gets it a refusal."""
    chooser = ScheduleChooser(BOOK, TIERS, lambda b: (1.0, b.maximum))
    try:
        plain = chooser.choose(ask, OPEN).budget
    except (BudgetNotAllowed, UnknownTier):
        return
    if ask.budget == "auto":
        return  # chooses within the policy anyway
    moved = chooser.choose(ask, policy, movable=True)
    if allowed(policy, plain):
        assert moved == chooser.choose(ask, policy)
    else:
        assert moved.budget == (policy.minimum if plain < policy.minimum else policy.maximum)
        assert moved.tier is None, "it is not what the tier stands for"


def test_the_ends_of_the_range_may_be_asked_for() -> None:
    for budget in (0.5, 0.75):
        assert choose(Ask(budget=budget), Bounds(0.5, 0.75)).budget == budget


def test_auto_without_a_controller_or_outside_the_policy_is_refused() -> None:
    with pytest.raises(UnsupportedRequest, match=r"add \[elastic\]"):
        choose(Ask(budget="auto"))
    chooser = ScheduleChooser(BOOK, TIERS, lambda b: (1.0, b.maximum))
    for own, policy, said in (
        ({"maximum": 0.25}, Bounds(0.5, 1.0), r"up to 0\.25 lies outside .*, 0\.5 to 1; move"),
        ({"minimum": 0.75}, Bounds(0.1, 0.5), r"of at least 0\.75 lies outside"),
        ({"minimum": 0.6, "maximum": 0.75}, Bounds(0.1, 0.5), r"between 0\.6 and 0\.75 lies"),
    ):
        with pytest.raises(BudgetNotAllowed, match=said):
            chooser.choose(Ask(budget="auto", **own), policy)
    choice = chooser.choose(Ask(budget="auto", minimum=0.25), Bounds(0.1, 0.5))
    assert choice.auto == AutoAnswer(level=1.0, minimum=0.25, maximum=0.5)
    assert (choice.budget, choice.source) == (0.5, "searched")


LADDERS = [
    BOOK,
    ScheduleBook(GEOMETRY),
    # Of two curves the one with the larger budget may cost less: attention is quadratic.
    ScheduleBook(GEOMETRY, [stored(uniform(GEOMETRY, 0.5), 0.5)]),
    ScheduleBook(GEOMETRY, [stored(vtw(GEOMETRY, 0.25), 0.25), stored(fastv(GEOMETRY, 0.3), 0.3)]),
]
GRID = [step / 128 for step in range(1, 129)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LADDERS),
    SHARES,
    st.just(OPEN) | POLICIES,
    st.integers(1, 2000),
    st.integers(1, 300),
    st.booleans(),
    st.sampled_from([None, False, True]),
)
@example(LADDERS[2], 64 / 128, OPEN, 2000, 10, True, True)
@example(LADDERS[2], 63 / 128, Bounds(0.48, 0.5), 2000, 10, True, True)
def test_a_share_of_the_flops_gives_the_largest_budget_on_the_grid_that_meets_it(
    book: ScheduleBook,
    share: float,
    policy: Bounds,
    n_vision: int,
    n_text: int,
    exact: bool,
    wanted: bool | None,
) -> None:
    def cost(budget: float) -> float:
        counts = book.for_budget(budget, wanted).schedule.counts(n_vision)
        return flops_fraction(GEOMETRY, counts, n_vision, n_text)

    fraction = cost(share) if exact else share
    ends = [policy.maximum, *([policy.minimum] if policy.minimum else [])]
    costs = {b: cost(b) for b in [*GRID, *ends] if policy.minimum <= b <= policy.maximum}
    enough = [budget for budget, spent in costs.items() if spent <= fraction + 1e-9]
    chooser = ScheduleChooser(book, TIERS)
    if enough:
        choice = chooser.choose_by_flops(
            fraction, policy, n_vision, n_text, Switch(bool(wanted), wanted is not None)
        )
        assert choice.budget == max(enough)
        assert choice.schedule == book.for_budget(choice.budget, wanted).schedule
    else:
        with pytest.raises(InvalidBudget) as caught:
            chooser.choose_by_flops(
                fraction, policy, n_vision, n_text, Switch(bool(wanted), wanted is not None)
            )
        assert f"costs at least {min(costs.values()):.4f}" in str(caught.value)


def test_a_prompt_of_text_meets_any_share() -> None:
    assert CHOOSER.choose_by_flops(0.01, Bounds(0.1, 0.5), 0, 9).budget == 0.5


def test_a_tier_that_the_model_can_never_meet_is_refused_and_never_offered() -> None:
    """FastV keeps two layers in full; a schedule that is not stored yet may still be."""
    never = {"cheap": "fastv-0.01"}
    CHOOSER.check_tiers(TIERS | {"later": "not-stored-yet"})
    with pytest.raises(ConfigurationError, match=r"tier cheap = 'fastv-0.01'.*cannot"):
        CHOOSER.check_tiers(TIERS | never)
    assert replace(CHOOSER, tiers=TIERS | never).offered_tiers() == CHOOSER.offered_tiers()
