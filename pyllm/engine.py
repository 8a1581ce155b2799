"""LLM: a model file to generate, chat and score with.

An LLM shares one model between threads, and one batch: whatever its methods are asked to run becomes requests
of its Scheduler, which runs those of all threads together.
"""

from __future__ import annotations

import numbers
import os
import weakref
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from pyllm._llm import lib
from pyllm.binding import KV, Cache, ContextError, Decoder, LLMError, Model, integer, token_ids
from pyllm.chat import (
    MARKS,
    ChatOptions,
    Message,
    Parting,
    closing_of,
    ends_inside,
    is_batch,
    marks_of,
    options_for,
    pieces_of,
    render_conversation,
)
from pyllm.drafts import Drafter, DraftModel, Lookup, ModelDrafts, texts_differ
from pyllm.embedding import Embedding, Recipe, recipe_of
from pyllm.grammar import Grammars, Marks, Reasoning, State
from pyllm.sampling import Completion, Continuation, SamplingParams, StreamEvent, params_for
from pyllm.scheduler import Policy, Scheduler
from pyllm.scoring import AllLogits, Score, Scoring
from pyllm.session import Session
from pyllm.thinking import Budget

BUILT_IN = Path(__file__).parent / "models" / "stories.llm"

Prompt = str | bytes | Sequence[int] | np.ndarray  # text, or token ids (n,)


class LLM:
    """A language model from a flat file.

        with LLM("smollm2.llm") as llm:
            print(llm.generate("Once upon a time", max_tokens=64))

    path     of the file; None: the small built-in model, which tells children's stories
    threads  processors to use at once; None: those that this process may use. Results do not depend on it.
    context  tokens that prompt and continuation may have together; None: what the model was made for
    verify   whether to compare the file with its checksums first, which takes as long as reading all of it
    draft    what guesses at the next tokens while one or two requests run. A pass over the weights takes
             guesses along for little, and each that is right saves one; results do not depend on it.
             None or "lookup": guesses are what followed in the text so far where it was as it is now; False:
             none are made; an LLM: a smaller one with the same tokens makes them
    kv       how keys and values are kept: "fp16" or "int8", half as large; None: "int8" for int8 and int4
             files, "fp16" for fp16 files
    rewind   tokens by which a text can be cut back and go on another way without being computed from its
             start; None: 4096. It matters in models with sliding windows only: of a layer with a window keys
             and values are kept for that many tokens beyond it
    exact    of an fp16 file: whether all is computed in float32. False: from 48 tokens at once on, weights
             and what they are multiplied with are rounded to 13 bits, so that a prompt's last bits depend on
             what runs beside it. int8 and int4 files give the same bits in any batch, whatever this says
    policy   how requests that run at once share processor and memory; None: Policy()'s defaults

    Raises LLMError when the file cannot be opened, is damaged, or memory cannot be reserved. Any number of
    threads may call the methods of one LLM at once: what they ask for runs as one batch, and gives each what
    it gives alone (but see exact). The earlier turns of a conversation and repeated prompts are not computed
    again. Pickling keeps the arguments: the copy opens the file again. Nothing is ever printed. A prompt is a
    text, encoded as encode() does it by default, or a sequence of token ids.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
        verify: bool = False,
        draft: LLM | Literal["lookup", False] | None = None,
        kv: Literal["fp16", "int8"] | None = None,
        rewind: int | None = None,
        exact: bool = False,
        policy: Policy | None = None,
    ) -> None:
        if kv not in list(KV):  # what has no hash is not in a list
            raise ValueError(f'kv must be None, "fp16" or "int8", not {kv!r:.60}')
        if not (isinstance(draft, LLM) or draft is None or draft is False or draft == "lookup"):
            raise TypeError(f'draft must be None, "lookup", False or an LLM, not {draft!r:.60}')
        self._model: Model | None = None
        self.path: str = str(BUILT_IN) if path is None else os.path.abspath(os.fsdecode(path))
        arguments: dict[str, Any] = dict(threads=threads, context=context, verify=bool(verify), draft=draft)
        arguments |= dict(kv=kv, rewind=rewind, exact=bool(exact), policy=policy)
        self._arguments = (None if path is None else self.path, arguments)
        self._threads = 0 if threads is None else integer("threads", threads, 1, 2**32 - 1)
        positions = 0 if context is None else integer("context", context, 1, 2**32 - 1)
        if "\0" in self.path:
            raise ValueError(f"path must not contain NUL: {self.path!r}")
        back = 0 if rewind is None else integer("rewind", rewind, 1, 2**32 - 1)
        self._model = model = Model(self.path, kv, bool(exact), back)
        if verify:
            model.verify()
        self.context: int = positions or model.header.context
        self.vocab_size: int = model.vocab_size
        self.dim: int = model.header.dim
        self.n_layers: int = model.header.n_layers
        self.dtype: str = model.dtype
        self.name: str = model.text(lib.LLM_NAME) or Path(self.path).stem
        self._draft = draft
        self._draft_model = self._open_draft(draft) if isinstance(draft, LLM) else None
        self._scheduler: Scheduler | None = Scheduler(model, self.context, self._threads, policy)
        self._end = weakref.finalize(self, self._scheduler.close)  # nobody else ends its thread
        self._end.atexit = False

    def _open(self) -> Model:
        """The model, or LLMError when this LLM is closed."""
        if (model := self._model) is None:
            raise LLMError(f"{self.path} is closed")
        return model

    def _batch(self) -> Scheduler:
        """The scheduler, or LLMError when this LLM is closed."""
        if (scheduler := self._scheduler) is None:
            raise LLMError(f"{self.path} is closed")
        return scheduler

    def _open_cache(self) -> Cache:
        """An engine session with one sequence, for a Session."""
        return Cache(self._open(), self.context, self._threads)

    def _open_draft(self, draft: LLM) -> DraftModel:
        """A smaller model's guesses, or LLMError when its tokens are others."""
        model, other = self._open(), draft._open()
        if texts_differ(model, other):
            raise LLMError(f"draft: {draft.path} has other tokens than {self.path}")
        return DraftModel(other, model, self.context, self._threads)

    def _drafter(self, prompt: list[int]) -> Drafter | None:
        """What guesses for a request, or LLMError when the draft model is closed."""
        if self._draft is False:
            return None
        if self._draft_model is None:
            return Lookup(self._open(), len(prompt))
        if isinstance(self._draft, LLM):
            self._draft._open()
        return ModelDrafts(self._draft_model)

    def close(self) -> None:
        """Ends this object; closing twice is allowed. What other threads have under way, and streams and
        sessions that are open, raise LLMError at their next step; memory goes back when the last of them lets
        go of it."""
        self._model = self._scheduler = None
        self._end()

    def __enter__(self) -> LLM:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        path, arguments = self._arguments
        return partial(type(self), path, **arguments), ()

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
        number: int = self._open().counts.parameters
        return number

    @property
    def instruction_set(self) -> str:
        """What the processor is used by: "avx2", "avx512", "neon" and so on."""
        return self._batch().isa

    def kv_bytes(self, tokens: int) -> int:
        """The bytes of keys and values of a text of that many tokens."""
        return self._open().kv_size(tokens)

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
            raise ContextError(f"{name} has {len(ids)} tokens, more than the context of {self.context}")
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
        a list is that of its first prompt: prompt i has seed + i. Raises ContextError before any work
        when a prompt is longer than the context, ValueError when one has no tokens or a stop text can never
        come."""
        if _is_batch_of_prompts(prompts):
            return self._complete(list(prompts), params, overrides)
        return self._complete([prompts], params, overrides)[0]

    @overload
    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = ...,
        *,
        events: Literal[False] = ...,
        **overrides: Any,
    ) -> Generator[str, None, Completion]: ...
    @overload
    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = ...,
        *,
        events: Literal[True],
        **overrides: Any,
    ) -> Generator[StreamEvent, None, Completion]: ...

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, events: bool = False, **overrides: Any
    ) -> Generator[Any, None, Completion]:
        """Continues a prompt as generate() does, but yields the text piece by piece: whole characters, and
        nothing that may turn out to be a stop text. The generator's return value is the Completion.

        params, overrides  as for generate()
        events             yield a StreamEvent for each token instead, with its text, id, log-probability and
                           in the end the finish reason and the usage

        It begins with the first piece that is asked for, and then goes on by itself, however slowly pieces
        are taken, until it ends or the generator is closed or dropped."""
        if _is_batch_of_prompts(prompt):
            raise TypeError("stream takes one prompt, not a list of them")
        stream = self._stream(self._prepare([prompt], params, overrides)[0])
        return stream if events else pieces_of(stream)

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        params: Any,
        overrides: dict[str, Any],
        visible: frozenset[int] = frozenset(),
        reasoning: Sequence[Reasoning | None] | None = None,
        bound: Sequence[State] | None = None,
    ) -> list[Continuation]:
        """Checks everything, and computes nothing yet.

        visible    control tokens that have a text nevertheless
        reasoning  what each may write before the text that a grammar binds
        bound      what binds each, in place of what its parameters say"""
        self._check_output()
        model, jobs = self._open(), []
        for i, each in enumerate(params_for(len(prompts), params, overrides)):
            name = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            each.check(model.vocab_size)
            ids = self._ids(prompts[i], name)
            if not ids:
                raise ValueError(f"{name} has no tokens")
            thought = reasoning[i] if reasoning else None
            grammar = bound[i] if bound else self._grammar(each, thought)
            if thought is not None and thought.budget is not None:
                grammar = Budget(model, thought, grammar)
            jobs.append(Continuation(model, ids, each, self.context, visible, self._drafter(ids), grammar))
        return jobs

    def _grammar(self, params: SamplingParams, reasoning: Reasoning | None) -> State | None:
        """What a text is bound to."""
        if (constraint := params.constraint) is None:
            return None
        return self._grammars.state(self._grammars.compile(constraint, reasoning))

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._open())

    def _complete(self, prompts: list[Prompt], params: Any, overrides: dict[str, Any]) -> list[Completion]:
        jobs = self._prepare(prompts, params, overrides)
        self._batch().run(jobs)
        return [job.completion() for job in jobs]

    def _stream(self, job: Continuation) -> Generator[StreamEvent, None, Completion]:
        scheduler, job.streamed = self._batch(), True
        try:
            scheduler.add(job)
            while isinstance(event := scheduler.get(job), StreamEvent):
                self._open()
                yield event
            self._open()
            if job.error is not None:
                raise job.error
        finally:
            scheduler.cancel(job)
        return job.completion()

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
        self, messages: Any, params: Any = None, options: ChatOptions | None = None, **overrides: Any
    ) -> Any:
        """The reply to a conversation [{"role": "user", "content": "Hi"}, ...], a Completion; or to each of a
        list of conversations, as one batch.

        params     as for generate()
        options    ChatOptions: the template and what it is given, what becomes of the reasoning; None: the
                   defaults
        overrides  fields of SamplingParams and ChatOptions by name, in place of those in params and options

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
        options, overrides = options_for(options, overrides)
        jobs, partings = self._chats(messages if batch else [messages], params, overrides, options)
        self._batch().run(jobs)
        replies = [job.completion() for job in jobs]
        for i, parting in enumerate(partings):
            parting.feed(replies[i].text, last=True)
            replies[i] = parting.parted(replies[i], options.reasoning)
        return replies if batch else replies[0]

    @overload
    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = ...,
        options: ChatOptions | None = ...,
        *,
        events: Literal[False] = ...,
        **overrides: Any,
    ) -> Generator[str, None, Completion]: ...
    @overload
    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = ...,
        options: ChatOptions | None = ...,
        *,
        events: Literal[True],
        **overrides: Any,
    ) -> Generator[StreamEvent, None, Completion]: ...

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        options: ChatOptions | None = None,
        *,
        events: bool = False,
        **overrides: Any,
    ) -> Generator[Any, None, Completion]:
        """The reply of chat() to one conversation, piece by piece as stream() gives it. With "apart" the
        pieces of the reasoning are of the class Reasoning, a str; events have them as reasoning_content."""
        options, overrides = options_for(options, overrides)
        (job,), (parting,) = self._chats([messages], params, overrides, options)
        stream = parting.run(self._stream(job), options.reasoning)
        return stream if events else pieces_of(stream)

    def _chats(
        self, chats: Any, params: Any, overrides: dict[str, Any], options: ChatOptions
    ) -> tuple[list[Continuation], list[Parting]]:
        """Checks everything, and computes nothing yet."""
        prompts, partings = [], []
        for messages in chats:
            ids, parting = self.chat_prompt(messages, options)
            prompts.append(ids)
            partings.append(parting)
        thoughts = [self._reasoning(options, parting) for parting in partings]
        return self._prepare(prompts, params, overrides, self._visible(options), thoughts), partings

    def _reasoning(self, options: ChatOptions, parting: Parting) -> Reasoning | None:
        """What a reply may begin with that no grammar binds; None where the model does not reason, which
        keeps to any budget."""
        marks = parting.marks
        if not (parting.begun or self._thinks(options)):
            return None
        closing = closing_of(self._template(options), marks.end)
        return Reasoning(marks, parting.begun, options.reasoning_budget, closing)

    def _thinks(self, options: ChatOptions) -> bool:
        """Whether the model knows marks of reasoning."""
        return self._known_marks(options) is not None

    def chat_prompt(self, messages: Sequence[Message], options: ChatOptions) -> tuple[list[int], Parting]:
        """The ids of a conversation's prompt, and what parts the reply from its reasoning."""
        marks = self._marks(options)
        if options.trust_messages:
            text = self.render_chat(messages, options)
            parts = [(text, True)]
        else:
            parts = self._open().control_texts.parts(self._render_marked(messages, options))
            text = "".join(part for part, _ in parts)
        ids = [i for part, counts in parts for i in self.encode(part, bos=False, special=counts)]
        begun = ends_inside(text, marks, messages, options.continue_final_message)
        return ids, Parting(marks, begun, shown=options.reasoning == "show")

    def _render_marked(self, messages: Sequence[Message], options: ChatOptions) -> str:
        """The text of a conversation in which the control tokens of messages are marked."""
        marked = self._open().control_texts.marked
        names = ("tools", "documents", "template_kwargs")
        own = {name: marked(getattr(options, name)) for name in names}
        return self.render_chat(marked(list(messages)), replace(options, **own))

    def _known_marks(self, options: ChatOptions) -> Marks | None:
        return marks_of(self._template(options), partial(self.encode, bos=False))

    def _marks(self, options: ChatOptions) -> Marks:
        """The texts around the reasoning of a reply."""
        return self._known_marks(options) or MARKS[0]

    def _visible(self, options: ChatOptions) -> frozenset[int]:
        """The control tokens in the marks: they have a text nevertheless."""
        model = self._open()
        parts = {part for mark in self._marks(options) for part in model.control_texts.split(mark)}
        return frozenset(token for text, token in model.control_tokens.items() if text in parts)

    def render_chat(
        self, messages: Sequence[Message], options: ChatOptions | None = None, **overrides: Any
    ) -> str:
        """The text that the model's template makes of a conversation. options, overrides (of ChatOptions) and
        errors as for chat()."""
        options, rest = options_for(options, overrides)
        if rest:
            raise TypeError(f"ChatOptions has no {', '.join(rest)}")
        template = self._template(options)
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        own = {
            name: self.decode([token], special=True) for name, token in tokens.items() if token is not None
        }
        variables: dict[str, Any] = dict(own)
        if options.reasoning_budget == 0:
            variables["enable_thinking"] = False
        variables |= options.template_kwargs or {}
        return render_conversation(template, messages, variables, options)

    def _template(self, options: ChatOptions) -> str:
        """The template to render, as transformers' get_chat_template chooses it."""
        own, chosen = self.chat_template, options.chat_template
        named = {"default": own, "tool_use": self._open().text(lib.LLM_CHAT_TEMPLATE_TOOLS) or own}
        if chosen is None:
            chosen = "default" if options.tools is None else "tool_use"
        if not isinstance(chosen, str):
            raise TypeError(f"chat_template must be str, not {type(chosen).__name__}")
        if (template := named.get(chosen, chosen)) is None:
            raise LLMError(f"{self.path}: the model has no chat template; generate() continues texts")
        return template

    # ------------------------------------------------------------------------------------------------------
    # Looking inside

    def logits(self, prompt: Prompt) -> np.ndarray:
        """float32 (n, vocab_size): for each of the prompt's n tokens, the logits of the token after it."""
        self._check_output()
        job = AllLogits(self.vocab_size, self._ids(prompt))
        self._batch().run([job] if job.ids else [])
        return job.out

    def score(self, context: Prompt, continuation: Prompt, *, bos: bool | None = None) -> Score:
        """How likely the model finds `continuation` after `context`: both texts, or both token ids.

        Texts are split into tokens as EleutherAI's lm-evaluation-harness does it (TemplateLM.loglikelihood):
        white space at the end of the context moves to the continuation, both are encoded as one text, and the
        continuation is what comes after as many tokens as the context has alone. An empty context is BOS, or
        else EOS. Bytes are taken as UTF-8.

        bos  as for encode(), but that None adds nothing to texts that begin with BOS's own text

        Raises ValueError when there is no token to begin with, and when none is left to score: the
        continuation is empty, or ("Hel", "lo") both together have no more tokens than the context alone.
        Nothing is not certain: the harness refuses that too. Raises ContextError when both together are
        longer than the context and the last token, which is only predicted."""
        self._check_output()
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
            raise ContextError(
                f"context with continuation has {len(before) + len(after)} tokens, more than the context of "
                f"{self.context} and the last token"
            )
        job = Scoring(self.vocab_size, before, after)
        self._batch().run([job])
        return job.score()

    def _encode_pair(self, context: str, continuation: str, bos: bool | None) -> tuple[list[int], list[int]]:
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

    def embed(
        self,
        texts: Prompt | Sequence[Prompt],
        *,
        prompt: str | None = None,
        pooling: Literal["last", "mean"] | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """The embedding of a text, float32 (dim,), or of each of a list of them, float32 (n, dim).

        prompt      the name of one of the model's own prompts, such as "query" or "document", whose text goes
                    before each text; None: the model's default, which most have not
        pooling     "last": the state of the last token; "mean": the mean of all; None: as the model's files
                    say, else "last"
        normalize   whether vectors are 1 long; None: as the model's files say, else yes
        dimensions  how many of the numbers, the first; None: all

        Texts are encoded as encode() does it by default; token ids are taken as they are, without a prompt.
        Raises ValueError when there is no token, no such prompt, or no so many numbers; ContextError when a
        text is longer than the model's files allow: none is cut; LLMError when they ask for what is not
        supported."""
        batch = _is_batch_of_prompts(texts)
        each: Any = list(texts) if batch else [texts]
        jobs = self._embeddings(each, prompt, pooling, normalize, dimensions)
        self._batch().run(jobs)
        if not batch:
            return jobs[0].vector()
        return np.array([job.vector() for job in jobs], np.float32).reshape(len(jobs), dimensions or self.dim)

    def _embeddings(
        self,
        texts: Sequence[Prompt],
        prompt: str | None = None,
        pooling: Literal["last", "mean"] | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> list[Embedding]:
        """Checks everything, and computes nothing yet."""
        recipe = self._recipe
        if recipe.refused is not None:
            raise LLMError(f"{self.path}: the model's embeddings: {recipe.refused}")
        before = recipe.prompt(prompt)
        skipped = 0 if recipe.include_prompt or not before else self._length_of_prompt(before)
        if pooling not in (None, "last", "mean"):
            raise ValueError(f'pooling must be None, "last" or "mean", not {pooling!r:.60}')
        if dimensions is not None:
            dimensions = integer("dimensions", dimensions, 1, self.dim)
        own = replace(
            recipe,
            pooling=pooling or recipe.pooling,
            normalize=recipe.normalize if normalize is None else bool(normalize),
        )
        jobs = []
        for i, text in enumerate(texts):
            name = f"text {i}" if len(texts) > 1 else "the text"
            behind = 0  # where it begins
            if isinstance(text, (str, bytes)):
                text, behind = before + _text(text), skipped
            ids = self._ids(text, name)
            if not ids:
                raise ValueError(f"{name} has no tokens")
            if recipe.max_tokens is not None and len(ids) > recipe.max_tokens:
                raise ContextError(
                    f"{name} has {len(ids)} tokens, more than the {recipe.max_tokens} that this model makes "
                    "embeddings of"
                )
            if behind >= len(ids):
                raise ValueError(f"{name} has no tokens behind its prompt")
            jobs.append(Embedding(ids, own, dimensions, behind))
        return jobs

    def _length_of_prompt(self, prompt: str) -> int:
        """The tokens of a prompt alone, but for an EOS behind them, as sentence-transformers counts them."""
        ids = self.encode(prompt)
        return len(ids) - (ids[-1:] == [self.eos_token])

    @cached_property
    def _recipe(self) -> Recipe:
        """How the model makes embeddings."""
        return recipe_of(self._open())

    def _check_output(self) -> None:
        """LLMError when the model has no output matrix to make logits with."""
        if not self._recipe.generates:
            raise LLMError(f"{self.path}: the model has no output matrix: it makes embeddings, and no text")

    def session(self) -> Session:
        """An empty Session of this model."""
        self._check_output()
        return Session(self)


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
