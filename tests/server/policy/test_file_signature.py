import os
from pathlib import Path

from vtr_server.policy.file_signature import signature_of


def test_a_file_is_another_once_written_replaced_or_gone(tmp_path: Path) -> None:
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    assert signature_of(file) is None
    file.write_text("one")
    times = [signature_of(file)]
    assert signature_of(file) == times[0]
    file.write_text("longer")
    times.append(signature_of(file))
    other.write_text("shorts")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)  # as long, and as old
    times.append(signature_of(file))
    assert len(set(times)) == 3
    file.unlink()
    assert signature_of(file) is None
