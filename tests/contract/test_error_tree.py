"""Every error that VTR raises has an HTTP status and a code, and is drawn."""

from __future__ import annotations

from tests.contract.error_tree import errors_elsewhere, faults, tree_of, undrawn
from tests.contract.source import code_files
from vtr_vllm import errors


def error_class(**attributes: object) -> type[Exception]:
    """Return a new error class, outside the real tree."""
    return type("Broken", (Exception,), attributes)


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    assert faults(tree_of(errors.VTRError)) == []


def test_every_error_is_drawn_and_public() -> None:
    tree = tree_of(errors.VTRError)
    assert undrawn(tree, errors.__doc__ or "") == []
    assert {error.__name__ for error in tree} == set(errors.__all__) - {"show"}


def test_the_tree_holds_every_error() -> None:
    served = {path: text for path, text in code_files().items() if "benchmarks/" not in path}
    assert errors_elsewhere(served, "vtr_vllm/errors.py") == []


def test_a_missing_status_is_found() -> None:
    assert len(faults([error_class(code="a")])) == 1
    assert len(faults([error_class(code="a", http_status=200)])) == 1


def test_a_missing_or_repeated_code_is_found() -> None:
    assert len(faults([error_class(http_status=400)])) == 1
    assert len(faults([error_class(http_status=400, code="Not-Snake")])) == 1
    assert len(faults([error_class(http_status=400, code="a")] * 2)) == 2


def test_an_inherited_code_is_found() -> None:
    parent = error_class(http_status=400, code="parent")
    assert len(faults([type("Child", (parent,), {})])) == 1


def test_a_drawing_that_lies_is_found() -> None:
    tree = [error_class(http_status=400, code="broken")]
    assert undrawn(tree, "    ├── Broken   400  broken   says why") == []
    assert undrawn(tree, "    ├── Broken   422  broken   says why") != []
    assert undrawn(tree, "") != []
    assert undrawn([], "    Gone   400  gone") != []


def test_an_error_outside_the_tree_is_found() -> None:
    files = {"vtr_vllm/demo/world.py": "class WorldError(ValueError):\n    pass"}
    assert len(errors_elsewhere(files, "vtr_vllm/errors.py")) == 1
    assert errors_elsewhere(files, "vtr_vllm/demo/world.py") == []
