"""The tables of the documentation are those of the code, in both directions."""

from __future__ import annotations

import json
import re
import types
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import vtr_vllm.errors
from tests.contract.source import ROOT
from tests.docs.pages import anchors, blocks, read, rows, texts
from vtr_server.policy.settings import KeySettings, ServerSettings
from vtr_server.policy.vtr_field import VTRAnswer, VTRField
from vtr_vllm.errors import VTRError

SETTINGS = read("docs/settings.md")
SERVER = read("docs/server.md")
OPERATIONS = read("docs/operations.md")

NEVER_ANSWERED = {
    "configuration",  # at start-up
    "unsupported_model",  # at start-up
    "evaluation_failed",  # of the search's command line
    "invalid_calibration",  # of the search's command line
    "retry_later",  # the root of those that are
    "time_limit_reached",  # of the search's command line
}


def table_models() -> dict[str, type[BaseModel]]:
    """Heading -> the model of that table."""
    found: dict[str, type[BaseModel]] = {"keys": KeySettings}
    for name, field in ServerSettings.model_fields.items():
        for kind in [field.annotation, *typing.get_args(field.annotation)]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found.setdefault(name, kind)
    return found


def in_toml(value: object) -> str:
    """A default as the settings page writes it."""
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "`{}`"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


@pytest.mark.parametrize("name", sorted(table_models()))
def test_the_settings_page_has_every_key_and_default(name: str) -> None:
    said = {row[0].strip("`"): row[1] for row in rows(SETTINGS, f"## {name}")}
    fields = table_models()[name].model_fields
    assert said == {key: in_toml(field.default) for key, field in fields.items()}


def test_the_settings_page_has_every_table() -> None:
    headings = re.findall(r"^## (.+)$", SETTINGS, re.MULTILINE)
    assert set(headings) == set(ServerSettings.model_fields)
    tiers = {row[0].strip("`"): row[1] for row in rows(SETTINGS, "## tiers")}
    assert tiers == {name: in_toml(meaning) for name, meaning in ServerSettings().tiers.items()}
    details = {row[0].strip("`") for row in rows(SETTINGS, "## detail")}
    annotation = ServerSettings.model_fields["detail"].annotation
    assert details == set(typing.get_args(typing.get_args(annotation)[0]))


def test_the_limits_name_refusals_that_exist() -> None:
    codes = {error.code: error.http_status for error in error_classes()}
    for row in rows(SETTINGS, "## limits"):
        status, code = re.fullmatch(r"(\d+) `(\w+)`", row[4]).groups()  # type: ignore[union-attr]
        assert codes[code] == int(status)


def test_the_example_has_every_setting() -> None:
    example = ServerSettings.load(ROOT / "deploy/settings.example.toml")
    assert example.model_fields_set == set(ServerSettings.model_fields)
    for name, model in table_models().items():
        given = getattr(example, name)
        assert (given[0] if name == "keys" else given).model_fields_set == set(model.model_fields)


@pytest.mark.parametrize("page", sorted(texts()))
def test_settings_in_the_texts_load(page: str, tmp_path: Path) -> None:
    for block in blocks(page, texts()[page]):
        if block.language == "toml" and block.not_run is None:
            file = tmp_path / "settings.toml"
            file.write_text(block.text)
            ServerSettings.load(file)


def error_classes() -> list[type[VTRError]]:
    """Every error of the tree."""
    named = (getattr(vtr_vllm.errors, name) for name in vtr_vllm.errors.__all__)
    return [error for error in named if isinstance(error, type)]


def test_the_server_page_has_every_refusal() -> None:
    said = {(int(row[0]), row[1].strip("`")) for row in rows(SERVER, "## Refusals")}
    tree = {(error.http_status, error.code) for error in error_classes()}
    assert said == {(status, code) for status, code in tree if code not in NEVER_ANSWERED}


def test_the_server_page_has_every_field() -> None:
    asked = {
        name.partition(".")[2]
        for row in rows(SERVER, "## Asking")
        for name in re.findall(r"`(vtr\.\w+)`", row[0])
    }
    assert asked == set(VTRField.model_fields)
    answered = {row[0].strip("`") for row in rows(SERVER, "## What an answer says")}
    assert answered == set(VTRAnswer.model_fields)


def test_every_alert_has_its_place_in_the_runbook() -> None:
    groups = yaml.safe_load(read("deploy/prometheus/rules/alerts.yml"))["groups"]
    alerts = [rule for group in groups for rule in group["rules"]]
    headings = set(re.findall(r"^### (VTR\w+)$", OPERATIONS, re.MULTILINE))
    assert headings == {rule["alert"] for rule in alerts}
    for rule in alerts:
        url = rule.get("annotations", {}).get("runbook_url", "")
        assert not url or url.partition("#")[2] in anchors(OPERATIONS)


def test_the_architecture_names_every_module() -> None:
    page = read("docs/architecture.md")
    cells = re.findall(r"^\|([^|]*)\|", page[page.index("## Modules") :], re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([\w/.]+?)/?`", cell)}
    for folder in (
        "vtr_vllm/schedules",
        "vtr_vllm/reduction",
        "vtr_vllm/engine",
        "vtr_vllm/search",
        "vtr_vllm/training",
        "server/vtr_server",
    ):
        # A form is a file of its own; of these folders the page names the folder.
        found = (ROOT / folder).rglob("[a-z]*.py")
        modules = {file.stem for file in found if file.parent.name not in ("forms", "jobs")}
        assert modules <= named, folder


def test_types_of_settings_are_read() -> None:
    """The helper above sees through optional tables, which are unions."""
    assert isinstance(ServerSettings.model_fields["jobs"].annotation, types.UnionType)
    assert {
        "adaptive",
        "budget",
        "elastic",
        "limits",
        "media",
        "admin",
        "page",
        "jobs",
        "keys",
    } == set(table_models())
