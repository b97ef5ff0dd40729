import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import json_values, schedules
from vtr_vllm.errors import GeometryMismatch, ScheduleError
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule, explicit

GEOMETRY = ModelGeometry(4, 128, 320, 2, 2, 64)
SCHEDULE = Schedule(
    name="pairs-0.625",
    geometry=GEOMETRY,
    keep=(1.0, 1.0, 0.25, 0.25),
    rules=(RankRule.parse("last"),),
    method="g-search",
    parameters={"tolerance": 0.01},
    budget=0.625,
    provenance={"data": {"calibration": "sha256:00"}, "seed": 7},
)


def values():
    return json.loads(SCHEDULE.to_json())


def test_derived_values():
    assert SCHEDULE.mean_keep == 0.625
    assert SCHEDULE.cuts == (2,)
    assert SCHEDULE.counts(9) == (9, 9, 2, 2)
    assert SCHEDULE.wire() == {"vtr_keep": [1.0, 1.0, 0.25, 0.25], "vtr_rules": ["last"]}


def test_a_floor_is_in_the_file_and_on_the_wire_where_it_is_set():
    assert "per_image_floor" not in SCHEDULE.to_json()
    fair = replace(SCHEDULE, per_image_floor=0.5)
    assert json.loads(fair.to_json()) == values() | {"per_image_floor": 0.5}
    assert fair.wire() == SCHEDULE.wire() | {"vtr_floor": 0.5}
    assert Schedule.from_json(json.dumps(values() | {"per_image_floor": 0})) == SCHEDULE


def test_lists_and_whole_numbers_are_taken_as_they_come():
    schedule = Schedule("a", GEOMETRY, [1, 1, 0, 0], ["last"], "explicit")
    assert schedule.keep == (1.0, 1.0, 0.0, 0.0)
    assert all(isinstance(rate, float) for rate in schedule.keep)
    assert schedule.rules == (RankRule.parse("last"),)
    assert hash(schedule) == hash(replace(schedule))


def test_the_callers_mapping_is_copied():
    parameters = {"k": [1]}
    schedule = replace(SCHEDULE, parameters=parameters)
    parameters["k"].append(2)
    assert schedule.parameters == {"k": [1]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "schedule name '' is not allowed"),
        ({"per_image_floor": 1.5}, r"per_image_floor is 1.5; .* in \[0, 1\]"),
        ({"per_image_floor": None}, "per_image_floor is None"),
        ({"name": "../up"}, "schedule name"),
        ({"name": "a" * 97}, "schedule name"),
        ({"name": "line\n"}, "schedule name"),
        ({"method": None}, "schedule method None"),
        ({"geometry": None}, "must be a ModelGeometry"),
        ({"keep": (1.0, 1.0)}, "2 rates, the model has 4 layers"),
        ({"rules": ()}, "0 rank rules for 1 cuts"),
        ({"rules": ("last:901",)}, "has weights for 3 attention heads; the model has 2"),
        ({"budget": 0.62}, "the mean keep rate is 0.625"),
        ({"budget": 0}, r"null or in \(0, 1\]"),
        ({"budget": True}, r"null or in \(0, 1\]"),
        ({"budget": float("nan")}, r"null or in \(0, 1\]"),
        ({"rules": ("last@0.5",)}, r"has budget 0.625 and adaptive cuts \(last@0.5\)"),
        (
            {"rules": ("last@0.5",), "budget": None, "per_image_floor": 0.5},
            "has per_image_floor 0.5 and adaptive cuts",
        ),
        ({"parameters": {"a": float("inf")}}, r"parameters\.a holds inf"),
        ({"provenance": []}, "provenance must be an object"),
    ],
)
def test_malformed_is_refused(change, reason):
    with pytest.raises(ScheduleError, match=reason):
        replace(SCHEDULE, **change)


def test_an_adaptive_schedule_promises_no_budget():
    made = replace(SCHEDULE, rules=("last@0.5",), budget=None)
    assert made.is_adaptive
    assert not made.is_local
    assert not SCHEDULE.is_adaptive
    assert Schedule.from_json(made.to_json()) == made
    layers = tuple(1 - layer / 10 for layer in (0, 0, 1, 2, 3, 4, 5))
    shape = ModelGeometry(7, 128, 320, 2, 2, 64)
    with pytest.raises(ScheduleError, match="5 cuts are adaptive .* 4 may be"):
        explicit(shape, layers, ["last@0.5"] * 5)


def test_fits_one_geometry_only():
    SCHEDULE.check_fits(ModelGeometry(4, 128, 320, 2, 2, 64))
    other = ModelGeometry(4, 128, 320, 2, 1, 64)
    with pytest.raises(GeometryMismatch, match=r"4L-128h-320i-2q-2kv-64d.*4L-128h-320i-2q-1kv-64d"):
        SCHEDULE.check_fits(other)


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_json_round_trip(schedule):
    back = Schedule.from_json(schedule.to_json())
    assert back == schedule
    assert back.to_json() == schedule.to_json()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 2}, "schema_version is 2, this release reads 1"),
        ({"schema_version": True}, "schema_version is True"),
        ({"schema_version": 1.0}, "schema_version is 1.0"),
        ({"kepe": [], "extra": 1}, "unknown .'extra', 'kepe'."),
        ({"geometry": {"layers": 4}}, "geometry: missing head_dim"),
        ({"geometry": "4L"}, "geometry must be an object"),
        ({"keep": {"0": 1}}, "list of 4 keep rates"),
        ({"keep": [1, 1, True, 0.25]}, r"keep\[2\] is True"),
        ({"rules": [None]}, "rank rule None is unknown"),
        ({"budget": "0.625"}, "budget is '0.625'"),
        ({"name": 1}, "schedule name 1"),
    ],
)
def test_json_is_strict(change, reason):
    with pytest.raises(ScheduleError, match=reason):
        Schedule.from_json(json.dumps(values() | change))


@pytest.mark.parametrize("key", list(values()))
def test_every_key_is_needed(key):
    rest = values()
    del rest[key]
    with pytest.raises(ScheduleError, match=f"missing {key}"):
        Schedule.from_json(json.dumps(rest))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_may_be_without_end(constant):
    text = SCHEDULE.to_json().replace("0.01", constant)
    with pytest.raises(ScheduleError, match=r"NaN|Infinity|inf"):
        Schedule.from_json(text)


def test_every_truncation_is_refused():
    text = SCHEDULE.to_json().rstrip()
    for length in range(len(text)):
        with pytest.raises(ScheduleError):
            Schedule.from_json(text[:length])


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_mutated_text_gives_a_schedule_error_and_nothing_else(data):
    text = SCHEDULE.to_json()
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 20))
    piece = data.draw(
        st.text(max_size=4) | st.sampled_from(["NaN", "null", "-1", "{", "[[", "1e9"])
    )
    with contextlib.suppress(ScheduleError):
        Schedule.from_json(text[:start] + piece + text[start + length :])


@given(st.sampled_from(sorted(values())), json_values)
@settings(deadline=None, max_examples=150)
def test_a_mutated_value_gives_a_schedule_error_and_nothing_else(key, value):
    with contextlib.suppress(ScheduleError):
        Schedule.from_json(json.dumps(values() | {key: value}))


def test_files_round_trip_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "one.json"
    SCHEDULE.save(path)
    replace(SCHEDULE, provenance={}).save(path)
    SCHEDULE.save(str(path))
    assert Schedule.load(str(path)) == SCHEDULE
    assert [file.name for file in tmp_path.iterdir()] == ["one.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "one.json"
    SCHEDULE.save(path)

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        replace(SCHEDULE, name="other").save(path)
    assert Schedule.load(path) == SCHEDULE
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read it"),
        (b"\xff\xfe{}", "cannot read it"),
        (b"", "not valid JSON"),
        (b" " * (1 << 20) + b"{}", "larger than 1048576 bytes"),
        (b'{"schema_version": 1}', "missing budget"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, reason):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScheduleError, match=reason) as caught:
        Schedule.load(path)
    assert str(path) in str(caught.value)


def test_the_documented_example_loads():
    text = (Path(__file__).parents[3] / "docs" / "schedules.md").read_text(encoding="utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    assert Schedule.from_json(example).cuts == (2, 4, 6)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ScheduleError, match="cannot read it"):
        Schedule.load(tmp_path)
