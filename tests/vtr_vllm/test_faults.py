import pytest
from pydantic import BaseModel, ValidationError, model_validator

from vtr_vllm.faults import first_fault


class Inner(BaseModel):
    numbers: list[int]


class Outer(BaseModel):
    inner: Inner

    @model_validator(mode="after")
    def _some(self) -> "Outer":
        if not self.inner.numbers:
            raise ValueError("give a number")
        return self


def fault(numbers: object, *within: str, given: bool = False) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"numbers": numbers}})
    return first_fault(caught.value, *within, given=given)


def test_the_first_fault_is_told_with_its_place() -> None:
    assert fault([1, "x", "y"]).startswith("inner.numbers.1: Input should be a valid integer")
    assert fault([1, "x"], "body").startswith("body.inner.numbers.1: ")


def test_a_fault_of_the_whole_is_told_in_its_own_words() -> None:
    assert fault([]) == "give a number"
    assert fault([], "body") == "body: give a number"


def test_what_was_given_is_told_where_it_may_be() -> None:
    assert "secret" not in fault(["secret"])
    assert fault(["a" * 1000], given=True).endswith("aaa'")
    assert "; got 'aaa" in fault(["a" * 1000], given=True)
    assert len(fault(["a" * 1000], given=True)) < 200
