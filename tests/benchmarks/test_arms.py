"""What the arms leave behind."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.arms import log_folder


def test_logs_stay_where_a_run_failed() -> None:
    with log_folder("check") as good:
        (good / "log").write_text("fine")
    assert not good.exists()
    with pytest.raises(ValueError, match="broken"), log_folder("check") as bad:
        raise ValueError("broken")
    assert bad.is_dir()
    shutil.rmtree(bad)
