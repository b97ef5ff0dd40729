"""The settings file: its defaults, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtr_server.policy.settings import ServerSettings, check_reuse
from vtr_vllm.errors import ConfigurationError

KEY = '[[keys]]\nname = "{name}"\nsha256 = "{hash}"\n'


def load(folder: Path, text: str) -> ServerSettings:
    file = folder / "settings.toml"
    file.write_text(text)
    return ServerSettings.load(file)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, "")
    assert settings == ServerSettings()
    assert settings.tiers == {"full": 1.0, "lossless": "lossless", "balanced": 0.5, "economy": 0.25}
    assert (settings.elastic, settings.admin, settings.jobs, settings.keys) == (
        None,
        None,
        None,
        (),
    )


def test_every_table_is_read(tmp_path: Path) -> None:
    text = """
        [budget]
        default = "auto"
        minimum = 0.125
        [tiers]
        quick = 0.2
        [detail]
        low = "quick"
        high = 1
        [elastic]
        ttft_seconds = 1
        levels = [1.0, 0.5]
        [limits]
        images = 2
        [media]
        domains = ["example.org"]
        [admin]
        port = 0
        [page]
        enabled = false
        [jobs]
        workers = 2
        memory_share = 0.25
        [[keys]]
        name = "team-a"
        sha256 = "%s"
        scopes = ["generate", "admin"]
        budget = { default = 0.5, maximum = 0.75 }
    """ % ("a" * 64)
    settings = load(tmp_path, text)
    assert settings.budget.default == "auto"
    assert settings.tiers == {"full": 1.0, "quick": 0.2}
    assert settings.detail == {"low": "quick", "high": 1.0}
    assert settings.elastic is not None
    assert settings.elastic.levels == (1.0, 0.5)
    assert settings.keys[0].budget.maximum == 0.75


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[budgit]\n", "budgit"),
        ("[budget]\ndefault = 0.0\n", "budget.default"),
        ("[budget]\ndefault = true\n", "budget.default"),
        ("[budget]\ndefault = nan\n", "budget.default"),
        ("[budget]\nminimum = 0.5\nmaximum = 0.2\n", "minimum 0.5 is above maximum 0.2"),
        ("[budget]\nminimum = 0.5\ndefault = 0.2\n", "default 0.2 lies outside"),
        ("[budget]\nreuse = 1\n", "budget.reuse"),
        ('[budget]\nreuse = "true"\n', "budget.reuse"),
        ('[budget]\ndefault = "auto"\n', "there is no \\[elastic\\]"),
        ("[tiers]\nfull = 0.5\n", "full is always 1.0"),
        ("[tiers]\nauto = 0.5\n", "auto is no name"),
        ("[tiers]\n'Big One' = 0.5\n", "tiers"),
        ('[detail]\nlow = "cheap"\n', "no tier"),
        ("[detail]\nmiddling = 0.5\n", "detail"),
        ("[elastic]\n", "elastic.ttft_seconds"),
        ("[elastic]\nttft_seconds = 1.0\nlevels = [0.5, 1.0]\n", "each below the one before"),
        ("[limits]\nimages = true\n", "limits.images"),
        ('[limits]\nbody_bytes = "1"\n', "limits.body_bytes"),
        ("[limits]\nin_flight = 0\n", "limits.in_flight"),
        (KEY.format(name="A b", hash="0" * 64), "keys.0.name"),
        (KEY.format(name="a", hash="secret"), "keys.0.sha256"),
        (KEY.format(name="a", hash="0" * 64) * 2, "the same name"),
        (KEY.format(name="a", hash="0" * 64) + KEY.format(name="b", hash="0" * 64), "same sha256"),
        (
            "[budget]\nmaximum = 0.5\n"
            + KEY.format(name="a", hash="0" * 64)
            + "budget = { minimum = 0.75 }\n",
            "budget of key a does not fit",
        ),
        (
            KEY.format(name="a", hash="0" * 64)
            + "budget = { maximum = 0.5 }\n[budget]\nminimum = 0.6\n",
            "0.6 to 0.5",
        ),
        (
            "[jobs]\n",
            "jobs: .*a job would start an engine beside the serving one.*memory_share = 0.3",
        ),
        ("[jobs]\nmemory_share = 1.0\n", "jobs.memory_share"),
        ("[jobs]\nmemory_share = 0.5\nworkers = 2\n", "2 workers with a memory_share of 0.5"),
        ("budget = \n", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigurationError, match=place):
        load(tmp_path, text)


@pytest.mark.parametrize("line", ['servers = ["http://127.0.0.1:8000"]', "memory_share = 0.3"])
def test_jobs_run_on_servers_or_in_a_share_of_the_memory(tmp_path: Path, line: str) -> None:
    assert load(tmp_path, f"[jobs]\n{line}\n").jobs is not None


def test_a_default_of_reuse_needs_prefix_caching(tmp_path: Path) -> None:
    key = KEY.format(name="a", hash="0" * 64)
    for text in ("", "[budget]\nreuse = false\n", key + "budget = { reuse = false }\n"):
        check_reuse(load(tmp_path, text), caches_prefixes=False)
    for text, place in (
        ("[budget]\nreuse = true\n", "budget"),
        (key + "budget = { reuse = true }\n", "key a"),
    ):
        check_reuse(load(tmp_path, text), caches_prefixes=True)
        with pytest.raises(ConfigurationError, match=rf"reuse is true in the settings \({place}\)"):
            check_reuse(load(tmp_path, text), caches_prefixes=False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read"):
        ServerSettings.load(tmp_path / "none.toml")
