"""What a search has found, written each time that it has found more.

So whoever stops a search, or watches it, has schedules to serve and a report to read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtr_vllm.schedules import Schedule
from vtr_vllm.schedules.evidence import of_same_evidence, value
from vtr_vllm.search import records
from vtr_vllm.search.journal import Journal
from vtr_vllm.search.pipeline import HeldOutScores, Result
from vtr_vllm.search.study import Study

__all__ = ["Output", "write_report"]


@dataclass
class Output:
    """The folder of one search; every file in it is written at once or not at all.

    OSError passes through; asking for scores raises EvaluationFailed as the study.
    """

    folder: Path
    meta: Mapping[str, Any]
    """Of search.json, see ``report_data``, but for what is only known at its end."""
    data_sha256: str
    """Of all the data, searched on or not."""
    study: Study
    selection: HeldOutScores
    journal: Journal
    schedules: dict[str, Schedule] = field(default_factory=dict)
    """What is written, by name."""
    kept: dict[str, Schedule] = field(default_factory=dict)
    """What an earlier search left that is better than what this one found, by name."""

    def __post_init__(self) -> None:
        self._before = records.read_schedules(self.folder)

    def __str__(self) -> str:
        found = f"wrote {', '.join(self.schedules) or 'nothing yet'} to {self.folder}"
        if self.kept:
            found += f"; {', '.join(self.kept)} of an earlier search scored better and stayed"
        return found

    def write(self, result: Result, *, finished: bool = False) -> None:
        """Write schedules that are new or better, search.json, and the report."""
        seed = self.meta["seed"]
        best = [
            records.served(
                scored,
                self.study,
                self.selection.study,
                seed,
                self.data_sha256,
                self.selection.family(scored.schedule),
            )
            for scored in self.selection.best(result)
        ]
        self.kept = {
            found.name: self._before[found.name] for found in best if self._is_worse(found)
        }
        better = [
            found
            for found in best
            if found.name not in self.kept and self.schedules.get(found.name) != found
        ]
        records.write_schedules(self.folder, better)
        for found in better:
            self._replace_others(found)
        self.schedules |= {found.name: found for found in better}
        meta = {**self.meta, "finished": finished}
        offered = [self.kept.get(found.name, found) for found in best]
        record = records.search_record(
            meta, self.study, self.selection, result, offered, self.journal.states()
        )
        records.write_json(records.report_folder(self.folder) / "search.json", record)
        write_report(self.folder)
        if better:
            names = [found.name for found in better]
            self.study.progress.found(f"wrote {', '.join(names)}", names)

    def _is_worse(self, found: Schedule) -> bool:
        """Whether an earlier search of the same data, model and releases left a better one of that name.

        A search that goes on comes to its first schedules once more, and one of another kind may end
        with poorer ones; a server may be reading the folder.
        """
        before = self._before.get(found.name)
        return (
            before is not None
            and before.budget is not None
            and self.selection.family(before) == self.selection.family(found)
            and of_same_evidence(before, found)
            and value(before) > value(found)
        )

    def _replace_others(self, found: Schedule) -> None:
        """Remove the earlier search's file whose place this one takes under another name.

        Other bands make another family of a schedule, and a server refuses two of one family and budget.
        """
        if found.budget is None:
            return
        family = self.selection.family(found)
        for name in records.searched_names(found.budget):
            before = self._before.get(name)
            if (
                name != found.name
                and before is not None
                and self.selection.family(before) == family
            ):
                (self.folder / f"{name}.json").unlink(missing_ok=True)


def write_report(folder: Path) -> Path:
    """The report of what lies in ``folder``; returns its page."""
    from vtr_vllm.search.report import write_report  # matplotlib takes a second to load

    return write_report(records.report_folder(folder))
