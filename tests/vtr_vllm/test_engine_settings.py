from pathlib import Path

import pytest

from vtr_vllm.engine_settings import EngineSettings
from vtr_vllm.errors import ConfigurationError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, EngineSettings()),
        ({}, EngineSettings()),
        ({"somebody": {"else": 1}}, EngineSettings()),
        ("of another kind", EngineSettings()),
        ({"vtr": {}}, EngineSettings()),
        ({"vtr": {"bands": 4}}, EngineSettings(bands=4)),
        ({"vtr": {"bands": None, "schedules": "here"}}, EngineSettings(schedules=Path("here"))),
        ({"vtr": {"settings": "s.toml"}}, EngineSettings(settings=Path("s.toml"))),
        ({"vtr": {"atp": "trained"}}, EngineSettings(atp=Path("trained"))),
    ],
)
def test_what_is_given_is_read(given, expected):
    assert EngineSettings.of(given) == expected


@pytest.mark.parametrize(
    ("vtr", "said"),
    [
        (
            {"band": 4},
            "unknown keys ['band']; allowed are ['atp', 'bands', 'schedules', 'settings']",
        ),
        ({"bands": 4, "x": 1, "a": 1}, "unknown keys ['a', 'x']"),
        ({"bands": "4"}, "bands is '4'"),
        ({"bands": 4.0}, "bands is 4.0"),
        ({"bands": True}, "bands is True"),
        ({"bands": 0}, "bands is 0"),
        ({"bands": -1}, "bands is -1"),
        ({"schedules": 4}, "schedules is 4"),
        ({"atp": 4}, "atp is 4"),
        ({"settings": ["s.toml"]}, "settings is ['s.toml']"),
        ([], "vtr is []"),
        ("bands=4", "vtr is 'bands=4'"),
        (None, "vtr is None"),
    ],
)
def test_wrong_settings_are_refused(vtr, said):
    with pytest.raises(ConfigurationError) as caught:
        EngineSettings.of({"vtr": vtr})
    assert said in str(caught.value)
