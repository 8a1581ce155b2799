"""What drafts save where a text quotes its prompt: three requests to a chat model, with and without drafts.

    python -m tools.bench.drafts smollm2.llm

Both run in turn, the prompt being known already, and medians are printed, with how many tokens were guessed,
how many of these came, and whether text, tokens and log-probabilities are the same to the last bit. A draft
model can be named in place of prompt lookup. Exits with 1 when anything differs."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from pyllm import LLM, Completion

MINUTES = (
    "Minutes of the meeting of 4 May. Present: Ada Berg, Tom Hale, Ines Ruiz. The roof of the hall "
    "leaks above the stage. Tom Hale will ask three roofers for a price by 20 May. The summer concert "
    "is on 12 July at seven in the evening. Ines Ruiz will print two hundred posters and hang them in "
    "the shops by 15 June. The account holds 4,310 pounds. Ada Berg will pay the heating bill of 612 "
    "pounds by 10 May. The next meeting is on 1 June at eight."
)

CODE = """def read_records(path):
    records = []
    with open(path) as f:
        for line in f:
            line = line.strip()
            if not line:
                continue
            name, value = line.split(",")
            records.append((name, float(value)))
    return records


def average(records):
    total = 0.0
    for name, value in records:
        total += value
    return total / len(records)


def largest(records):
    best = None
    for name, value in records:
        if best is None or value > best[1]:
            best = (name, value)
    return best
"""

CASES = {
    "summary": f"{MINUTES}\n\nSummarize the minutes.",
    "code edit": "Add a docstring to each function of this Python code, and write out the whole code:\n\n"
    f"```python\n{CODE}```",
    "tasks": f"{MINUTES}\n\nList what each person will do, as the minutes say it.",
}
HEAD = ["text", "tokens", "tokens/s without", "with drafts", "ratio", "guessed", "right", "the same"]


def timed(llm: LLM, text: str, params: dict[str, Any]) -> tuple[float, Completion]:
    """Seconds of a reply, and the reply. The prompt is run before."""
    messages = [{"role": "user", "content": text}]
    llm.chat(messages, max_tokens=1, seed=0)
    start = time.perf_counter()
    reply = llm.chat(messages, **params)
    return time.perf_counter() - start, reply


def measure(plain: LLM, drafting: LLM, text: str, repeat: int, params: dict[str, Any]) -> list[Any]:
    """A row of the table, behind its name."""
    seconds: dict[LLM, list[float]] = {plain: [], drafting: []}
    replies: list[Completion] = []
    for _ in range(repeat):
        for llm in (plain, drafting):
            took, reply = timed(llm, text, params)
            seconds[llm].append(took)
            replies.append(reply)
    without, with_drafts = (statistics.median(seconds[llm]) for llm in (plain, drafting))
    n, last = len(reply.tokens), replies[-1]
    same = all(reply == replies[0] for reply in replies)
    speeds = f"{n / without:.1f}", f"{n / with_drafts:.1f}", f"{without / with_drafts:.2f}"
    return [n, *speeds, last.drafted_tokens, last.accepted_tokens, "yes" if same else "NO"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.drafts", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a chat model's file")
    parser.add_argument(
        "--draft", metavar="FILE", help="a smaller model that guesses; without it: prompt lookup"
    )
    parser.add_argument("--repeat", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument("--threads", type=int, help="processors to use (default: all)")
    parser.add_argument("--max-tokens", type=int, default=300, help="of a reply (default: 300)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    o = parser.parse_args(arguments)
    small = LLM(o.draft, threads=o.threads) if o.draft else None
    plain = LLM(o.model, threads=o.threads, draft=False)
    drafting = LLM(o.model, threads=o.threads, draft=small)
    params = dict(max_tokens=o.max_tokens, temperature=o.temperature, seed=1, logprobs=1)
    print(f"{plain!r}\nmedians of {o.repeat}, in turn; the prompts had been run\n")
    print("| " + " | ".join(HEAD) + " |\n| --- |" + " --: |" * (len(HEAD) - 1))
    differs = False
    for name, text in CASES.items():
        row = measure(plain, drafting, text, o.repeat, params)
        print("| " + " | ".join(map(str, [name, *row])) + " |", flush=True)
        differs |= row[-1] != "yes"
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
