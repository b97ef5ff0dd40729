"""What a search leaves behind: schedules, which can be published, and a report."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtr_vllm.errors import JobConflict, RequestError, ScheduleError, show
from vtr_vllm.schedules import Schedule, ScheduleBook

__all__ = ["load_schedules", "publish", "report_file"]

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def load_schedules(out: Path) -> dict[str, Schedule]:
    """The schedules of a search's folder by name; raises ScheduleError for a file that is none."""
    return {schedule.name: schedule for schedule in _by_file(out).values()}


def publish(
    found: Mapping[str, Schedule], names: Sequence[str] | None, folder: Path
) -> dict[str, Path]:
    """Write schedules (None: all that were found) into the folder of a server: name -> file.

    A published schedule takes the place of one of the same name. Nothing is written unless a
    server would accept the folder as it will be: raises RequestError for a name that was not
    found, ScheduleError or GeometryMismatch as ``ScheduleBook`` does, and JobConflict where the
    file that a schedule would go to holds another, or the folder cannot be written.
    """
    wanted = sorted(found) if names is None else sorted(set(names))
    unknown = [name for name in wanted if name not in found]
    if unknown or not wanted:
        raise RequestError(
            f"there is no schedule {show(unknown)} to publish; the job found"
            f" {', '.join(sorted(found)) or 'none'}"
        )
    published = _by_file(folder)
    places = {schedule.name: path for path, schedule in published.items()}
    targets = {name: places.get(name, folder / f"{name}.json") for name in wanted}
    for name, path in targets.items():
        if path in published and published[path].name != name:
            raise JobConflict(
                f"{path.name} in the published folder holds the schedule {published[path].name};"
                f" rename that file to publish {name}"
            )
    would_be = published | {path: found[name] for name, path in targets.items()}
    try:
        ScheduleBook(found[wanted[0]].geometry, would_be.values())
    except ScheduleError as err:
        raise type(err)(f"a server would refuse the published folder: {err}") from err
    try:
        for name, path in targets.items():
            found[name].save(path)
    except OSError as err:
        raise JobConflict(
            f"the published folder {folder} cannot be written ({err.strerror or err}); let the server"
            " write there, or start it with another"
        ) from err
    return targets


def report_file(out: Path, name: str) -> Path | None:
    """A file of the report; None if there is none of that name."""
    path = out / "report" / name
    if not _FILE.fullmatch(name) or path.is_symlink() or not path.is_file():
        return None
    return path


def _by_file(folder: Path) -> dict[Path, Schedule]:
    return {path: Schedule.load(path) for path in sorted(folder.glob("*.json"))}
