"""One arm of the conversation benchmark: ``python -m benchmarks.talker``, driven by JSON lines.

As ``benchmarks.worker``, but a request is a conversation: the next turn's prompt is the last one
with its answer and a further question, sent as soon as the answer is whole, or, where conversations take
turns, once all others have had theirs.
"""

from __future__ import annotations

import statistics
import string
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from benchmarks.shapes import follow_up, make_request
from benchmarks.worker import Flight, Machine, Worker, main


@dataclass
class Talk:
    """A conversation under way."""

    request: dict[str, Any]
    """Prompt and image of the turn that runs, or ran last."""
    turns: list[Flight] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    """CPU time of this process when each turn began, and at its first and its last token."""
    cached: list[int] = field(default_factory=list)
    """Prompt tokens of each turn that the prefix cache had."""
    prompts: list[int] = field(default_factory=list)
    """Prompt tokens of each turn."""


class Talker(Worker):
    """An engine that is talked to."""

    def measure(self, spec: dict[str, Any]) -> dict[str, object]:
        """Run ``spec['requests']`` conversations of ``spec['turns']`` turns each."""
        tokenizer = self.engine.get_tokenizer()
        # Answers of dummy weights become text of the next prompt: let them be letters.
        letters = tokenizer.encode(string.ascii_letters, add_special_tokens=False)
        first = spec["first"]
        waiting = range(first, first + spec["requests"])
        self.watch.begin()
        machine, begun = Machine(), time.perf_counter()
        talks = self._talk(waiting, spec, letters)
        wall = time.perf_counter() - begun
        return (
            {"wall_s": wall, "turns": summary(talks, spec["turns"])}
            | machine.facts()
            | {"kv_peak_bytes": self.watch.peak_blocks * self.watch.bytes_per_block}
            | {"tokens": [flight.tokens for talk in talks for flight in talk.turns]}
        )

    def _ask(
        self, name: str, talks: dict[str, Talk], spec: dict[str, Any], letters: list[int]
    ) -> None:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=spec["output_tokens"],
            ignore_eos=True,
            allowed_token_ids=letters,
            extra_args=spec["wire"],
        )
        talk = talks[name]
        talk.turns.append(Flight(time.perf_counter()))
        talk.cpu.append([time.process_time()])
        self.engine.add_request(name, talk.request, params)

    def _talk(self, waiting: range, spec: dict[str, Any], letters: list[int]) -> list[Talk]:
        talks = {f"c{index}": Talk(make_request(self.shape, index)) for index in waiting}
        ready = deque(talks)
        running = 0
        while ready or running:
            while ready and running < spec["concurrency"]:
                self._ask(ready.popleft(), talks, spec, letters)
                running += 1
            outputs = self.engine.step()
            now, spent = time.perf_counter(), time.process_time()
            for output in outputs:
                talk, answer = talks[output.request_id], output.outputs[0]
                flight = talk.turns[-1]
                flight.times += [now] * (len(answer.token_ids) - len(flight.tokens))
                flight.tokens = list(answer.token_ids)
                talk.cpu[-1] = [*talk.cpu[-1][:2], spent]
                if not output.finished:
                    continue
                running -= 1
                talk.cached.append(output.num_cached_tokens or 0)
                talk.prompts.append(len(output.prompt_token_ids))
                if len(talk.turns) < spec["turns"]:
                    index, turn = int(output.request_id[1:]), len(talk.turns)
                    talk.request = follow_up(
                        self.shape, spec["form"], talk.request, answer.text, index, turn
                    )
                    add = ready.append if spec["take_turns"] else ready.appendleft
                    add(output.request_id)
        return list(talks.values())


def summary(talks: list[Talk], turns: int) -> list[dict[str, float]]:
    """Return medians over the conversations, a turn each: seconds and tokens.

    CPU seconds are this process's: a turn's own where one conversation runs at a time.
    """
    found = []
    for turn in range(turns):
        flights = [talk.turns[turn] for talk in talks]
        cpu = [talk.cpu[turn] for talk in talks]
        found.append(
            {
                "ttft_s": statistics.median(f.times[0] - f.started for f in flights),
                "total_s": statistics.median(f.times[-1] - f.started for f in flights),
                "ttft_cpu_s": statistics.median(c[1] - c[0] for c in cpu),
                "total_cpu_s": statistics.median(c[-1] - c[0] for c in cpu),
                "prompt_tokens": statistics.median(talk.prompts[turn] for talk in talks),
                "cached_tokens": statistics.median(talk.cached[turn] for talk in talks),
            }
        )
    return found


if __name__ == "__main__":
    main(Talker)
