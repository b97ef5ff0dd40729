"""Whether a prompt decides on its own schedule, and on which."""

from dataclasses import replace

from vtr_server.policy.requested_budget import Bounds, Switch
from vtr_server.policy.schedule_choice import ChosenSchedule, ScheduleChooser
from vtr_server.policy.vtr_field import AdaptiveAnswer, Ask
from vtr_vllm.adaptive import Prompt
from vtr_vllm.errors import InvalidBudget, RequestError, UnsupportedRequest

__all__ = ["adapted", "adapts"]

_EPS = 1e-9


def adapts(chooser: ScheduleChooser, ask: Ask, choice: ChosenSchedule, adapt: Switch) -> bool:
    """Whether the prompt decides: where that is wanted, a budget below 1 was asked for, and the family
    can meet it.

    ``choice`` is what runs otherwise. Raises UnsupportedRequest, RequestError or InvalidBudget where
    the client asked for just that and it cannot be; what the load chose is never refused for it.
    """
    family, by_budget = chooser.family, _means_budget(chooser, ask)
    if not adapt.wanted:
        return False
    if family is not None and by_budget and choice.budget >= family.least - _EPS:
        return choice.budget < 1.0
    if not adapt.explicit or (choice.auto is not None and family is not None):
        return False
    if family is None:
        raise UnsupportedRequest(
            "adapt is true, and this server has no family of schedules; leave it out, or have one made"
            " with vtr search family"
        )
    if not by_budget:
        raise RequestError(
            f"adapt is true, and what is asked for is schedule {choice.schedule.name}; leave adapt out,"
            " or ask for a budget"
        )
    raise InvalidBudget(
        f"budget {choice.budget:g} is below what family {family.name} can meet; ask for"
        f" {family.least:g} or more, or without adapt"
    )


def adapted(
    chooser: ScheduleChooser, choice: ChosenSchedule, policy: Bounds, prompt: Prompt
) -> ChosenSchedule:
    """The schedule of the family that ``prompt`` needs, with the budget of ``choice`` as the mean.

    None that keeps less or more than ``policy`` allows. Raises InvalidBudget where that leaves none
    for this budget.
    """
    assert chooser.family is not None
    low, high = policy.minimum, policy.maximum
    if choice.auto is not None:
        low, high = choice.auto.minimum, choice.auto.maximum
    found = chooser.family.choose(prompt, choice.budget, low, high, chooser.confidence)
    answer = AdaptiveAnswer(
        family=chooser.family.name,
        probability=found.probability,
        expected=found.expected,
        promised=found.promised,
        schedules=[found.schedule.name],
    )
    reuse = chooser.book.reuses(found.schedule)
    return replace(choice, schedule=found.schedule, source="family", adaptive=answer, reuse=reuse)


def _means_budget(chooser: ScheduleChooser, ask: Ask) -> bool:
    """Whether it asks for a mean keep rate, and for no certain schedule."""
    if ask.tier is not None:
        return not isinstance(chooser.tiers.get(ask.tier), str)
    return ask.schedule is None and ask.keep is None
