"""LLM: a model file to generate, chat and score with.

An LLM shares one model between threads. Each call borrows a cache (an engine session and the tokens in it)
from a small pool, the one that shares the longest start with its prompt, so that a conversation's earlier
turns and repeated prompts are not computed again. Lists of prompts run as one batch that takes in the next
prompt as soon as one ends.
"""

from __future__ import annotations

import numbers
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args, overload

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.binding import CHUNK, Cache, Decoder, LLMError, Model, call, integer, shared_prefix, token_ids
from pyllm.chat import Message, Parting, Show, ends_inside, is_batch, marks_of, render_conversation
from pyllm.sampling import Completion, Continuation, SamplingParams, params_for
from pyllm.session import Session

BUILT_IN = Path(__file__).parent / "models" / "stories.llm"
MAX_BATCH = 32  # prompts of a list that run at the same time
MAX_IDLE = 4  # caches that wait in the pool, each with the keys and values of one sequence

Prompt = str | bytes | Sequence[int] | np.ndarray  # text, or token ids (n,)

POOLS = threading.RLock()  # guards every LLM's pool, for microseconds; one for all, which fork() waits for
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=POOLS.acquire, after_in_parent=POOLS.release, after_in_child=POOLS.release)


class Score(NamedTuple):
    """logprob: the summed natural logarithms of the tokens' probabilities; greedy: whether each was the most
    likely."""

    logprob: float
    greedy: bool


class LLM:
    """A language model from a flat file.

        with LLM("smollm2.llm") as llm:
            print(llm.generate("Once upon a time", max_tokens=64))

    path     of the file; None: the small built-in model, which tells children's stories
    threads  processors to use at once; None: those that this process may use. Results do not depend on it.
    context  tokens that prompt and continuation may have together; None: what the model was made for

    Raises LLMError when the file cannot be opened, is damaged, or memory cannot be reserved. Any number of
    threads may call the methods of one LLM at once. Pickling keeps the arguments: the copy opens the file
    again. Nothing is ever printed. A prompt is a text, encoded as encode() does it by default, or a sequence
    of token ids.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
    ) -> None:
        self._model: Model | None = None
        self._pool: list[Cache] = []  # idle ones, the least recently used first
        self._arguments = (None if path is None else os.path.abspath(os.fsdecode(path)), threads, context)
        self._threads = 0 if threads is None else integer("threads", threads, 1, 2**32 - 1)
        positions = 0 if context is None else integer("context", context, 1, 2**32 - 1)
        self.path: str = self._arguments[0] or str(BUILT_IN)
        if "\0" in self.path:
            raise ValueError(f"path must not contain NUL: {self.path!r}")
        self._model = model = Model(self.path)
        self.context: int = positions or model.header.context
        self.vocab_size: int = model.vocab_size
        self.dim: int = model.header.dim
        self.n_layers: int = model.header.n_layers
        self.dtype: str = {lib.LLM_FP16: "fp16", lib.LLM_INT8: "int8"}[model.header.dtype]
        self.name: str = model.text(lib.LLM_NAME) or Path(self.path).stem
        self._pool.append(self._open_cache(model))

    def _open(self) -> Model:
        """The model, or LLMError when this LLM is closed."""
        if (model := self._model) is None:
            raise LLMError(f"{self.path} is closed")
        return model

    def close(self) -> None:
        """Ends this object; closing twice is allowed. What other threads have under way, and streams and
        sessions that are open, raise LLMError at their next step; memory goes back when the last of them lets
        go of it."""
        with POOLS:
            self._model = None
            self._pool.clear()

    def __enter__(self) -> LLM:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        path, threads, context = self._arguments
        return partial(type(self), path, threads=threads, context=context), ()

    def __repr__(self) -> str:
        if self._model is None:
            return f"LLM({self.path!r}, closed)"
        size = f"{self.parameters / 1e6:.4g} million parameters"
        return f"LLM({self.path!r}: {self.name}, {size}, {self.dtype}, context {self.context})"

    # ------------------------------------------------------------------------------------------------------
    # What the file says

    @property
    def parameters(self) -> int:
        """The number of weights."""
        header, tensor, total = self._open().header, ffi.new("llm_tensor *"), 0
        for tensor_id in range(lib.LLM_N_TENSORS):
            call(lib.llm_layout, header, tensor_id, 0, 0, tensor)
            count = header.n_layers if tensor_id >= lib.LLM_ATTN_NORM else 1
            count *= header.n_experts or 1 if tensor_id in (lib.LLM_GATE_UP, lib.LLM_DOWN) else 1
            total += count * tensor.rows * tensor.cols if tensor.size else 0
        return total

    @property
    def about(self) -> dict[str, str]:
        """What the model is, as its file says: family, source, license, description."""
        lines = (line.split(":", 1) for line in (self._open().text(lib.LLM_ABOUT) or "").split("\n"))
        return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}

    @property
    def chat_template(self) -> str | None:
        """The Jinja template for conversations without tools, or None."""
        return self._open().text(lib.LLM_CHAT_TEMPLATE)

    @property
    def bos_token(self) -> int | None:
        """The id of the token that begins a text, or None."""
        token = lib.llm_token_bos(self._open().tokenizer)
        return None if token < 0 else token

    @property
    def eos_token(self) -> int | None:
        """The id of the token that ends a text, or None."""
        token = lib.llm_token_eos(self._open().tokenizer)
        return None if token < 0 else token

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a generation."""
        return self._open().stop_tokens

    # ------------------------------------------------------------------------------------------------------
    # Text and tokens

    def encode(self, text: str | bytes, *, bos: bool | None = None, special: bool = True) -> list[int]:
        """The token ids of a text. The defaults do what the Hugging Face tokenizer does.

        bos      None: BOS and EOS where that tokenizer adds them; True: BOS and no EOS; False: neither
        special  whether control tokens written in the text ("<|im_end|>") become those tokens

        Bytes that are not UTF-8, and surrogates without a partner, count as U+FFFD."""
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
        flags = {None: 0, True: lib.LLM_BOS, False: lib.LLM_NO_BOS}[bos]
        return self._open().encode(text, flags | (lib.LLM_SPECIAL if special else 0))

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """The text of token ids. Control tokens give none unless `special`; bytes that make no character
        become U+FFFD. Raises ValueError for ids that are out of range."""
        model = self._open()
        decoder = Decoder(model)
        tokens = token_ids(ids, max(model.vocab_size, lib.llm_token_count(model.tokenizer)))
        return decoder.feed(tokens, special) + decoder.end()

    def _ids(self, prompt: Prompt, name: str = "the prompt") -> list[int]:
        """The ids of a prompt: none, or up to as many as the context has."""
        if isinstance(prompt, (str, bytes)):
            ids = self.encode(prompt)
        else:
            ids = token_ids(prompt, self._open().vocab_size)
        if len(ids) > self.context:
            raise LLMError(f"{name} has {len(ids)} tokens, more than the context of {self.context}")
        return ids

    # ------------------------------------------------------------------------------------------------------
    # Generating

    @overload
    def generate(
        self, prompts: Prompt, params: SamplingParams | None = ..., **overrides: Any
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = ...,
        **overrides: Any,
    ) -> list[Completion]: ...

    def generate(self, prompts: Any, params: Any = None, **overrides: Any) -> Any:
        """Continues a prompt, giving a Completion, or each of a list of prompts, giving a list of them.

        params     SamplingParams, or a sequence with one for each prompt; None: the defaults
        overrides  fields of SamplingParams by name, in place of those in params

        A list runs as one batch, and each prompt's result is the same as alone. A seed that is given once for
        a list is that of its first prompt: prompt i has seed + i. Raises LLMError before any work when a
        prompt is longer than the context, ValueError when one has no tokens or a stop text can never come."""
        if _is_batch_of_prompts(prompts):
            return self._complete(list(prompts), params, overrides)
        return self._complete([prompts], params, overrides)[0]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any
    ) -> Generator[str, None, Completion]:
        """Continues a prompt as generate() does, but yields the text piece by piece: whole characters, and
        nothing that may turn out to be a stop text. The generator's return value is the Completion."""
        if _is_batch_of_prompts(prompt):
            raise TypeError("stream takes one prompt, not a list of them")
        return self._stream(self._prepare([prompt], params, overrides)[0])

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        params: Any,
        overrides: dict[str, Any],
        visible: frozenset[int] = frozenset(),
    ) -> list[Continuation]:
        """Checks everything, and computes nothing yet."""
        model, jobs = self._open(), []
        for i, each in enumerate(params_for(len(prompts), params, overrides)):
            name = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            each.check(model.vocab_size)
            ids = self._ids(prompts[i], name)
            if not ids:
                raise ValueError(f"{name} has no tokens")
            jobs.append(Continuation(model, ids, each, self.context, visible))
        return jobs

    def _complete(self, prompts: list[Prompt], params: Any, overrides: dict[str, Any]) -> list[Completion]:
        jobs = self._prepare(prompts, params, overrides)
        for _ in self._run(jobs):
            pass
        return [job.completion() for job in jobs]

    def _stream(self, job: Continuation) -> Generator[str, None, Completion]:
        shown = 0
        with closing(self._run([job])) as passes:
            for _ in passes:
                piece, shown = "".join(job.parts[shown:]), len(job.parts)
                if piece:
                    yield piece
        return job.completion()

    def _run(self, jobs: list[Continuation]) -> Generator[None, None, None]:
        """Runs jobs to their ends, up to MAX_BATCH at a time. Yields after each pass through the model."""
        if not jobs:
            return
        shared = jobs[0].prompt[:-1]  # what all prompts begin with; not their last tokens: those have logits
        for job in jobs[1:]:
            shared = shared[: shared_prefix(shared, job.prompt[:-1])]
        with self._borrow(jobs[0].prompt, min(len(jobs), MAX_BATCH)) as cache:
            if len(jobs) > 1:
                cache.extend(shared[cache.reuse(0, shared) :])
            waiting = deque(jobs)
            running: dict[int, Continuation] = {}
            while waiting or running:
                for seq in range(len(cache.tokens)):
                    if waiting and seq not in running:
                        running[seq] = job = waiting.popleft()
                        job.start(cache.reuse(seq, job.prompt[:-1]))
                for seq in self._pass(cache, running):
                    del running[seq]
                self._open()
                yield

    @staticmethod
    def _pass(cache: Cache, running: dict[int, Continuation]) -> list[int]:
        """One pass with up to CHUNK tokens: those that are generating first, then prompts, the shortest
        first. Returns the sequences that have finished."""
        tokens: list[int] = []
        seqs: list[int] = []
        want: list[bool] = []
        ready: list[int] = []
        for seq, job in sorted(running.items(), key=lambda item: len(item[1].todo)):
            part = job.todo[: CHUNK - len(tokens)]
            job.todo = job.todo[len(part) :]
            tokens += part
            seqs += [seq] * len(part)
            want += [False] * len(part)
            if part and not job.todo:
                want[-1] = True
                ready.append(seq)
        logits = ffi.from_buffer("float[]", cache.forward(tokens, seqs, want))
        for row, seq in enumerate(ready):
            running[seq].accept(logits + row * cache.vocab_size)
        return [seq for seq in ready if running[seq].finished]

    # ------------------------------------------------------------------------------------------------------
    # Chat

    @overload
    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = ..., **rest: Any
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = ...,
        **rest: Any,
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Any,
        params: Any = None,
        *,
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Show = "show",
        **overrides: Any,
    ) -> Any:
        """The reply to a conversation [{"role": "user", "content": "Hi"}, ...], a Completion; or to each of a
        list of conversations, as one batch.

        params, overrides       as for generate()
        chat_template           a Jinja template, or the name of one of the model's: "default" or "tool_use",
                                for most models the same; None: "tool_use" with tools, else "default"
        tools, documents        passed to the template: JSON schemas, {"title": ..., "text": ...}
        add_generation_prompt   whether the prompt ends with the beginning of the assistant's reply
        continue_final_message  whether the last message is to be continued, with add_generation_prompt=False
        template_kwargs         further variables of the template, such as {"enable_thinking": False}
        reasoning               what becomes of the reasoning that a thinking model's reply begins with, up to
                                </think> (or [/THINK]): "show": it stays in the text, as it was generated;
                                "hide": it is left out; "apart": the Completion has it as reasoning_content

        The prompt is render_chat()'s text with its control tokens recognised and no BOS added, as
        transformers' apply_chat_template does it. The marks around the reasoning are in the text that is
        shown even if they are control tokens. A reply that was taken apart goes into the next turn as
        {"role": "assistant", "content": reply.text, "reasoning_content": reply.reasoning_content}.

        The template is rendered in a process of its own, which is started at the first call and ends with
        this one: it may take 5 seconds and 512 MiB.

        Raises LLMError when the model has no template, TemplateError (a ValueError) when the template refuses
        the messages or takes more than it may, TypeError for tools that are no schemas, ImportError without
        jinja2, RuntimeError when that process cannot be started."""
        batch = is_batch(messages)
        options = dict(
            chat_template=chat_template,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        jobs, partings = self._chats(messages if batch else [messages], params, overrides, reasoning, options)
        for _ in self._run(jobs):
            pass
        replies = [job.completion() for job in jobs]
        if reasoning != "show":
            for i, parting in enumerate(partings):
                parting.feed(replies[i].text, last=True)
                replies[i] = parting.parted(replies[i], reasoning)
        return replies if batch else replies[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Show = "show",
        **overrides: Any,
    ) -> Generator[str, None, Completion]:
        """The reply of chat() to one conversation, piece by piece as stream() gives it. With "apart" the
        pieces of the reasoning are of the class Reasoning, a str."""
        options = dict(
            chat_template=chat_template,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        (job,), (parting,) = self._chats([messages], params, overrides, reasoning, options)
        pieces = self._stream(job)
        return pieces if reasoning == "show" else parting.run(pieces, reasoning)

    def _chats(
        self, chats: Any, params: Any, overrides: dict[str, Any], reasoning: Show, options: dict[str, Any]
    ) -> tuple[list[Continuation], list[Parting]]:
        """Checks everything, and computes nothing yet."""
        if reasoning not in get_args(Show):
            raise ValueError(f"reasoning must be one of {', '.join(get_args(Show))}, not {reasoning!r}")
        texts = [self.render_chat(messages, **options) for messages in chats]
        template = self._template(options["chat_template"], options["tools"])
        marks = marks_of(template, partial(self.encode, bos=False))
        tokens = [self.encode(mark, bos=False) for mark in marks]
        visible = frozenset(ids[0] for ids in tokens if len(ids) == 1)  # a mark can be a control token
        prompts = [self.encode(text, bos=False) for text in texts]
        jobs = self._prepare(prompts, params, overrides, visible)
        continued = options["continue_final_message"]
        return jobs, [
            Parting(marks, ends_inside(text, marks, messages, continued))
            for text, messages in zip(texts, chats, strict=True)
        ]

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that the model's template makes of a conversation. Arguments and errors as for chat()."""
        template = self._template(chat_template, tools)
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        return render_conversation(
            template,
            messages,
            {name: self.decode([token], special=True) for name, token in tokens.items() if token is not None}
            | dict(template_kwargs or {}),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    def _template(self, chosen: str | None, tools: list[dict[str, Any]] | None) -> str:
        """The template to render, as transformers' get_chat_template chooses it."""
        own = self.chat_template
        named = {"default": own, "tool_use": self._open().text(lib.LLM_CHAT_TEMPLATE_TOOLS) or own}
        if chosen is None:
            chosen = "default" if tools is None else "tool_use"
        if not isinstance(chosen, str):
            raise TypeError(f"chat_template must be str, not {type(chosen).__name__}")
        if (template := named.get(chosen, chosen)) is None:
            raise LLMError(f"{self.path}: the model has no chat template; generate() continues texts")
        return template

    # ------------------------------------------------------------------------------------------------------
    # Looking inside

    def logits(self, prompt: Prompt) -> np.ndarray:
        """float32 (n, vocab_size): for each of the prompt's n tokens, the logits of the token after it."""
        ids = self._ids(prompt)
        out = np.empty((len(ids), self.vocab_size), np.float32)
        with self._borrow() as cache:
            cache.truncate(0, 0)
            cache.extend(ids, out)
        return out

    def score(self, context: Prompt, continuation: Prompt, *, bos: bool | None = None) -> Score:
        """How likely the model finds `continuation` after `context`: both texts, or both token ids.

        Texts are split into tokens as EleutherAI's lm-evaluation-harness does it (TemplateLM.loglikelihood):
        white space at the end of the context moves to the continuation, both are encoded as one text, and the
        continuation is what comes after as many tokens as the context has alone. An empty context is BOS, or
        else EOS. Bytes are taken as UTF-8.

        bos  as for encode(), but that None adds nothing to texts that begin with BOS's own text

        Raises ValueError when there is no token to begin with, and when none is left to score: the
        continuation is empty, or ("Hel", "lo") both together have no more tokens than the context alone.
        Nothing is not certain: the harness refuses that too. Raises LLMError when both together are longer
        than the context and the last token, which is only predicted."""
        if isinstance(context, (str, bytes)) and type(context) is type(continuation):
            before, after = self._encode_pair(_text(context), _text(continuation), bos)
        elif isinstance(context, (str, bytes)) or isinstance(continuation, (str, bytes)):
            raise TypeError("context and continuation must be both str, both bytes or both token ids")
        else:
            before, after = (token_ids(ids, self.vocab_size) for ids in (context, continuation))
        if not before:
            raise ValueError("context has no tokens")
        if not after:
            texts = f": {context!r:.40} and {continuation!r:.40} together are no more tokens than the context"
            raise ValueError("continuation has no tokens to score" + (texts if len(continuation) else ""))
        if len(before) + len(after) > self.context + 1:
            raise LLMError(
                f"context with continuation has {len(before) + len(after)} tokens, more than the context of "
                f"{self.context} and the last token"
            )
        with self._borrow(before) as cache:
            return self._score(cache, before, after)

    def _encode_pair(
        self, context: str, continuation: str, bos: bool | None
    ) -> tuple[list[int], list[int]]:
        """Token ids of context and continuation, as the harness's loglikelihood() and HFLM.tok_encode() do
        it."""
        first = [token for token in (self.bos_token, self.eos_token) if token is not None][:1]
        if not context:
            after = self.encode(continuation, bos=False)
            return (first, after) if after[:1] != first else (after[:1], after[1:])
        begin = self.decode(first, special=True)

        def encode(text: str) -> list[int]:
            return self.encode(text, bos=False if bos is None and begin and text.startswith(begin) else bos)

        before = encode(context.rstrip())
        return before or first, encode(context + continuation)[len(before) :]

    def _score(self, cache: Cache, before: list[int], after: list[int]) -> Score:
        """The Score of the ids `after`, at least one."""
        ids, vocab = before + after, self.vocab_size
        total, greedy = 0.0, True
        top, value = ffi.new("uint32_t[1]"), ffi.new("float[1]")
        known = cache.reuse(0, before[:-1])
        for at in range(known, len(ids) - 1, CHUNK):
            part = ids[at : min(at + CHUNK, len(ids) - 1)]
            want = [i >= len(before) - 1 for i in range(at, at + len(part))]
            logits = ffi.from_buffer("float[]", cache.forward(part, [0] * len(part), want))
            for row, token in enumerate(ids[at + len(part) - sum(want) + 1 : at + len(part) + 1]):
                total += lib.llm_logprobs(logits + row * vocab, vocab, token, 1, top, value)
                greedy &= top[0] == token
        return Score(total, greedy)

    def session(self) -> Session:
        """An empty Session of this model."""
        return Session(self)

    # ------------------------------------------------------------------------------------------------------
    # The pool

    @contextmanager
    def _borrow(self, prompt: Sequence[int] = (), n_seqs: int = 1) -> Iterator[Cache]:
        """A cache of up to n_seqs sequences, the best one for this prompt, that no one else uses
        meanwhile."""
        cache = self._take(prompt, n_seqs) or self._open_cache(self._open(), n_seqs)
        try:
            yield cache
        finally:
            cache.sync()
            for seq in range(1, len(cache.tokens)):  # gives their memory back
                cache.truncate(seq, 0)
            with POOLS:
                if self._model is not None and not cache.orphaned:
                    self._pool.append(cache)
                    del self._pool[:-MAX_IDLE]

    def _take(self, prompt: Sequence[int], n_seqs: int) -> Cache | None:
        """The idle cache that holds the most of the prompt. When that is less than half: an empty one, or
        None while the pool has room for another, or the one least recently used."""
        with POOLS:
            fit = [cache for cache in self._pool if len(cache.tokens) >= n_seqs and not cache.orphaned]
            if not fit:
                return None
            shared = [shared_prefix(cache.tokens[0], list(prompt)) for cache in fit]
            cache = fit[shared.index(max(shared))]
            if 2 * max(shared) <= len(prompt):
                empty = [cache for cache in fit if not cache.tokens[0]]
                if not empty and len(self._pool) < MAX_IDLE:
                    return None
                cache = (empty or fit)[0]
            self._pool.remove(cache)
            return cache

    def _open_cache(self, model: Model, n_seqs: int = 1) -> Cache:
        """A new cache; of fewer sequences where their address space cannot be had."""
        while True:
            try:
                return Cache(model, self.context, self._threads, n_seqs)
            except LLMError:
                if n_seqs == 1:
                    raise
                n_seqs //= 2


def _text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "replace")


def _is_batch_of_prompts(prompts: Any) -> bool:
    """Whether these are several prompts; an empty list is a batch of none."""
    if isinstance(prompts, (str, bytes)):
        return False
    if hasattr(prompts, "__array__"):
        return np.ndim(prompts) > 1
    if not isinstance(prompts, Sequence):
        raise TypeError(f"a prompt is a str or a sequence of ids, not {prompts!r:.60}")
    return not (prompts and isinstance(prompts[0], numbers.Integral))
