"""pyllm-replay: makes an answer once more from its receipt, and says whether it is the same."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllm import LLM, LLMError
from pyllm.server import chats, completions
from pyllm.server.errors import ApiError
from pyllm.server.schemas import ChatRequest, CompletionRequest, decode
from pyllm.server.service import Service
from pyllm.server.settings import Settings
from pyllm.server.stamps import RECEIPT, digest_of

KINDS: dict[str, tuple[Any, Any]] = {
    "/v1/completions": (CompletionRequest, completions.completions),
    "/v1/chat/completions": (ChatRequest, chats.chats),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 when the answer is the same, 1 when not or when it cannot be made; wrong usage
    exits with 2."""
    p = argparse.ArgumentParser(
        prog="pyllm replay", description="Makes an answer once more from its receipt."
    )
    p.add_argument("receipt", type=Path, help="a file with the receipt, or with the answer that has it")
    p.add_argument("-m", "--model", metavar="FILE", help="the model; default: the built-in one")
    p.add_argument("--threads", type=int, help="processors to use")
    options = p.parse_args(argv)
    try:
        given = json.loads(options.receipt.read_bytes())
        given = given if "receipt" not in given or isinstance(given["receipt"], int) else given["receipt"]
        wrong = replay(given, options.model, options.threads)
    except (LLMError, ApiError, OSError, ValueError, TypeError, KeyError) as error:
        print(f"pyllm replay: {options.receipt}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for line in wrong:
        print(line)
    if not wrong:
        print(f"the same: {sum(answer['tokens'] for answer in given['answers'])} tokens")
    return 1 if wrong else 0


def replay(given: dict[str, Any], model: str | None, threads: int | None = None) -> list[str]:
    """What differs from the receipt, a sentence each."""
    if given["receipt"] != RECEIPT:
        raise ValueError(f"version {given['receipt']} of receipts is not known here")
    kind, answer = KINDS[given["path"]]
    kv = {1: "fp16", 2: "int8"}.get(given["kv"])
    with LLM(model, threads=threads, exact=given["exact"], kv=kv, context=given["context"]) as llm:  # type: ignore[arg-type]
        if llm._open().fingerprint.hex() != given["model"]["fingerprint"]:
            raise ValueError(f"{llm.path} is another model than {given['model']['name']}, which answered")
        service = Service(llm, Settings(any_model=True, trust_messages=given["trust_messages"]))
        request = decode(json.dumps(given["request"]).encode(), kind)
        jobs = asyncio.run(answer(service, request, "")).jobs
        llm._batch().run(jobs)
        isa = (
            f" (then {given['isa']}, now {llm.instruction_set})"
            if given["isa"] != llm.instruction_set
            else ""
        )
    told = given["answers"]
    if len(told) != len(jobs):
        return [f"{len(jobs)} answers, not {len(told)}"]
    return [
        f"answer {i} differs: {len(job.tokens)} tokens, {job.finish_reason}{isa}"
        for i, (job, was) in enumerate(zip(jobs, told, strict=True))
        if (digest_of(job), job.finish_reason) != (was["sha256"], was["finish_reason"])
    ]
