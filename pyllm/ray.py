"""Generation on a cluster by Ray: a class for Ray Data, and how the server goes into Ray Serve.

A data set, a million prompts as well as ten:

    import ray
    from pyllm.ray import Generate

    rows = ray.data.read_json("prompts.jsonl")      # with columns id and prompt, or id and messages
    answers = rows.map_batches(
        Generate,
        fn_constructor_kwargs={"model": "/models/smollm2.llm", "max_tokens": 200, "seed": 1},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        batch_size=64,
        num_cpus=4,                                 # of each actor, which uses as many threads
    )
    answers.write_parquet("answers")

A server with as many replicas as are needed; it is what pyllm serve runs, and does all that it does:

    from ray import serve
    from pyllm.server import Settings, build_app

    def app():                                      # called where a replica runs
        return build_app("/models/smollm2.llm", Settings(max_waiting=64), threads=4)

    replica = serve.deployment(
        serve.ingress(app)(),
        ray_actor_options={"num_cpus": 4},
        max_ongoing_requests=80,                    # those that run in a replica, and those that wait
        autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16},
    )
    serve.run(replica.bind(), route_prefix="/")

Files of models have to be where the workers run. Needs pip install 'pyllm[ray]', and 'pyllm[server]' for Ray
Serve.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pyllm.chat import ChatOptions
from pyllm.engine import LLM
from pyllm.sampling import Completion, SamplingParams

if TYPE_CHECKING:
    import pyarrow

LLM_ARGUMENTS = frozenset(inspect.signature(LLM).parameters) - {"path"}
CHAT_OPTIONS = frozenset(field.name for field in fields(ChatOptions))
PARAMS = frozenset(field.name for field in fields(SamplingParams))


def seed_of(seed: int, row: Any) -> int:
    """The seed of a row: the first 8 bytes, as a big-endian number, of the SHA-256 of f"{seed}:{row}", where
    `row` is the row's id."""
    return int.from_bytes(sha256(f"{seed}:{row}".encode()).digest()[:8], "big")


class Generate:
    """An actor of Ray Data: rows.map_batches(Generate, fn_constructor_kwargs={"model": ...}, ...).

    model     the file, where the worker runs; None: the built-in model
    seed      of the whole run. A row's own seed is seed_of(seed, its id), so that its result depends neither
              on batches nor on how many workers there are; None: every row has a random one
    id        the column that tells rows apart. Only results that are drawn by chance need it: with
              temperature=0, or without a seed, there need be none
    prompt    the column of texts, or of token ids, to be continued
    messages  the column of conversations to be answered, lists of {"role": ..., "content": ...}. Where rows
              have it, they need no `prompt`
    options   arguments of LLM, and fields of SamplingParams and ChatOptions, by name. `threads` is what Ray
              gives the worker (num_cpus) unless told otherwise; fp16 files are computed exactly

    Rows come back with more columns: text, finish_reason, tokens (their ids), prompt_tokens, seed; with
    reasoning="apart" reasoning_content; with logprobs=0 or more, logprobs of the tokens. Errors, such as a
    prompt longer than the context, are those of LLM.generate() and LLM.chat(), and end the run.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        seed: int | None = 0,
        id: str = "id",
        prompt: str = "prompt",
        messages: str = "messages",
        **options: Any,
    ) -> None:
        if unknown := sorted(options.keys() - LLM_ARGUMENTS - CHAT_OPTIONS - PARAMS):
            raise TypeError(f"Generate has no {', '.join(unknown)}")
        self.seed, self.id, self.prompt, self.messages = seed, id, prompt, messages
        self.params = SamplingParams(**chosen(options, PARAMS))
        self.options = ChatOptions(**chosen(options, CHAT_OPTIONS))
        arguments = {"threads": assigned_threads(), "exact": True} | chosen(options, LLM_ARGUMENTS)
        self.llm = LLM(model, **arguments)

    def __call__(self, batch: Mapping[str, Any] | pyarrow.Table) -> pyarrow.Table:
        """The rows of a batch, in any batch_format, with what came of them."""
        table = as_table(batch)
        params = self._params(table)
        if self.messages in table.column_names:
            chats = [[without_none(turn) for turn in chat] for chat in table[self.messages].to_pylist()]
            done = self.llm.chat(chats, params, options=self.options) if chats else []
        elif self.prompt in table.column_names:
            done = self.llm.generate(table[self.prompt].to_pylist(), params)
        else:
            names = ", ".join(table.column_names)
            raise ValueError(f"rows have neither {self.messages!r} nor {self.prompt!r}, but {names}")
        columns = self._columns(done)
        if taken := sorted(columns.keys() & set(table.column_names)):
            raise ValueError(f"rows have {', '.join(taken)} already: rename these columns")
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def _params(self, table: pyarrow.Table) -> list[SamplingParams]:
        """Of each row, with its own seed."""
        if self.seed is None or self.params.temperature == 0:
            return [self.params] * table.num_rows
        if self.id not in table.column_names:
            raise ValueError(
                f"rows have no {self.id!r} to make their seeds of: name the column that tells them apart "
                "(id=...), or give seed=None or temperature=0"
            )
        return [replace(self.params, seed=seed_of(self.seed, row)) for row in table[self.id].to_pylist()]

    def _columns(self, done: Iterable[Completion]) -> dict[str, pyarrow.Array]:
        """The new columns. Their types do not depend on what is in them, so that batches fit together."""
        import pyarrow as pa

        types = {
            "text": pa.string(),
            "finish_reason": pa.string(),
            "tokens": pa.list_(pa.uint32()),
            "prompt_tokens": pa.int64(),
            "seed": pa.uint64(),
        }
        values = {name: [getattr(each, name) for each in done] for name in types}
        if self.options.reasoning == "apart":
            types["reasoning_content"] = pa.string()
            values["reasoning_content"] = [each.reasoning_content for each in done]
        if self.params.logprobs is not None:
            types["logprobs"] = pa.list_(pa.float32())
            values["logprobs"] = [[entry.logprob for entry in each.logprobs or ()] for each in done]
        return {name: pa.array(values[name], kind) for name, kind in types.items()}


def chosen(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The options of these names."""
    return {name: value for name, value in options.items() if name in names}


def assigned_threads() -> int:
    """The processors that Ray gives to this worker, at least one."""
    import ray

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return max(1, int(resources.get("CPU", 1)))


def as_table(batch: Mapping[str, Any] | pyarrow.Table) -> pyarrow.Table:
    """A batch as Arrow's: Ray Data makes dicts of arrays unless told otherwise."""
    import pyarrow as pa

    if isinstance(batch, pa.Table):
        return batch
    return pa.table({name: pa.array(plain(column)) for name, column in batch.items()})


def plain(value: Any) -> Any:
    """Lists for arrays, however deep."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def without_none(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the fields that only others have: Arrow gives all rows the same."""
    return {key: value for key, value in turn.items() if value is not None}
