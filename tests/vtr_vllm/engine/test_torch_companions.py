"""The cure for CUDA-built companions beside a CPU-built torch."""

import importlib.metadata
import pathlib
import subprocess
import sys
import sysconfig
import types

import pytest
import torch

from vtr_vllm.engine import torch_companions


class FakeLibrary:
    """Stands for ``torch.library.Library``; remembers what is defined."""

    defined: list[str]

    def __init__(self, namespace, kind):
        assert (namespace, kind) == ("torchvision", "FRAGMENT")

    def define(self, schema):
        name = schema.partition("(")[0]
        FakeLibrary.defined.append(name)
        setattr(torch.ops.torchvision, name, object())


@pytest.fixture
def machine(monkeypatch):
    """A machine with a CPU torch and a torchvision whose operators do not load."""
    FakeLibrary.defined = []
    versions = {"torchvision": "0.28.0"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.library, "Library", FakeLibrary)
    monkeypatch.setattr(torch.ops, "torchvision", types.SimpleNamespace())
    monkeypatch.setattr(torch_companions, "_keep_alive", [])
    return versions


def test_missing_operators_are_defined_once(machine):
    torch_companions.define_missing_torchvision_ops()
    assert FakeLibrary.defined == ["nms", "qnms"]
    torch_companions.define_missing_torchvision_ops()
    assert FakeLibrary.defined == ["nms", "qnms"]


def test_only_what_is_missing_is_defined(machine):
    torch.ops.torchvision.nms = object()
    torch_companions.define_missing_torchvision_ops()
    assert FakeLibrary.defined == ["qnms"]


def test_nothing_is_done_where_builds_match(machine, monkeypatch):
    machine["torchvision"] = "0.28.0+cpu"
    torch_companions.define_missing_torchvision_ops()
    machine["torchvision"] = "0.28.0"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    torch_companions.define_missing_torchvision_ops()
    assert FakeLibrary.defined == []


def test_nothing_is_done_without_torchvision(machine):
    machine.clear()
    torch_companions.define_missing_torchvision_ops()
    assert FakeLibrary.defined == []


def test_on_this_machine_it_can_be_called_again():
    torch_companions.define_missing_torchvision_ops()
    torch_companions.define_missing_torchvision_ops()


START_UP = """
import sys
sys.path[:0] = {path!r}
before = list(sys.meta_path)
import _vtr_torch_companions
(hook,) = [finder for finder in sys.meta_path if finder not in before]
assert type(hook).__module__ == "_vtr_torch_companions"
assert "torch" not in sys.modules, "a start-up file must be cheap"
try:
    import torchvision
except ModuleNotFoundError as error:
    assert error.name == "torchvision", error
assert hook not in sys.meta_path
"""


def test_the_start_up_copy_acts_when_torchvision_is_imported(tmp_path):
    """As a .pth file loads it, without the copy that this environment may have (-S)."""
    text = pathlib.Path(torch_companions.__file__).read_text()
    (tmp_path / "_vtr_torch_companions.py").write_text(text)
    paths = sysconfig.get_paths()
    code = START_UP.format(path=[str(tmp_path), paths["purelib"], paths["platlib"]])
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_modules_that_do_not_import_are_told_from_those_that_do(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "loads.py").write_text("print('loads, and says so', end='')")
    (tmp_path / "breaks.py").write_text("raise OSError('Could not load\\nthis library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = torch_companions._failures("loads", "breaks", "absent")
    assert list(found) == ["breaks", "absent"]
    assert "OSError: Could not load\nthis library" in found["breaks"]
    assert "No module named 'absent'" in found["absent"]
    (tmp_path / "torch.py").write_text("import absent")
    assert torch_companions._failures("loads") == {}


def test_what_does_not_load_is_mended_or_removed_and_nothing_else(tmp_path, monkeypatch, capsys):
    undefined = {"torchvision": "RuntimeError: operator torchvision::nms does not exist"}
    answers = [
        undefined
        | {"torchaudio": "OSError: Could not load this library: x.so"}
        | {"torchcodec.decoders": "ModuleNotFoundError: No module named 'torchcodec'"},
        {},
    ]
    monkeypatch.setattr(torch_companions, "_failures", lambda *modules: answers.pop(0))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    torch_companions.main()
    assert (tmp_path / "_vtr_torch_companions.pth").read_text() == "import _vtr_torch_companions\n"
    assert [command[-1] for command in commands] == ["torchaudio"]
    assert "torchaudio: a CUDA build" in capsys.readouterr().out

    answers[:] = [undefined, undefined]
    with pytest.raises(SystemExit, match="the cure failed"):
        torch_companions.main()
