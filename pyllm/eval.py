"""Evaluation by EleutherAI's lm-evaluation-harness, of a model in this process.

    pyllm eval -m smollm2.llm --tasks arc_easy --num_fewshot 5

    import lm_eval
    from pyllm.eval import PyllmLM
    lm_eval.simple_evaluate(model=PyllmLM("smollm2.llm"), tasks=["arc_easy"])

Tasks, prompts and metrics are the harness's; here it gets log-likelihoods and texts. Its own model
local-completions asks a server for them instead, and gets the same numbers: see PyllmLM. Needs
pip install 'pyllm[eval]'.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from queue import SimpleQueue
from typing import Any, TypeVar

from pyllm.binding import LLMError, __version__, integer
from pyllm.chat import ChatOptions
from pyllm.chat_template import TemplateError
from pyllm.engine import LLM
from pyllm.sampling import SamplingParams
from pyllm.scheduler import Request
from pyllm.scoring import Scoring

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    MISSING: ImportError | None = error
    TemplateLM = object
else:
    MISSING = None

NEEDS = "pyllm eval needs more packages: pip install 'pyllm[eval]'"
HELP = """\
usage: pyllm eval [-m FILE] [--model-args NAME=VALUE ...] --tasks TASK ... [OPTIONS]
       pyllm eval ls tasks

Evaluates a model with EleutherAI's lm-evaluation-harness.

  -m FILE       the model; default: the built-in one
  --model-args  arguments of pyllm.eval.PyllmLM and of pyllm.LLM: threads=2 kv=int8 progress=True ...

All other options are those of `lm_eval run`, with --model pyllm:
"""
RENAMED = {"repetition_penalty": "repeat_penalty"}  # transformers' names for SamplingParams' fields
PARAMS = {field.name for field in fields(SamplingParams)}

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Request)


class PyllmLM(TemplateLM):
    """A model of the harness: lm_eval.simple_evaluate(model=PyllmLM("smollm2.llm"), tasks=[...]).

    path                of the file, or an LLM; None: the built-in model
    add_bos_token       None: texts begin with BOS where the model's tokenizer adds it; True: they all do;
                        False: none does, which is what local-completions makes of any model. Nothing is added
                        to a text that begins with BOS
    prefix_token_id     what an empty context is; None: BOS, or else EOS
    max_length          tokens that a prompt may have; None: the model's context. Longer ones lose their
                        beginning. local-completions does the same with max_length=N + 2, which counts
                        differently, and cuts the prompts of generations one token later
    max_gen_toks        tokens to generate, of tasks that do not say
    seed                of tasks that sample. Each request has the same one, as over HTTP; its second repeat
                        has the next, and so on
    chat_template_args  variables of the template, such as {"enable_thinking": False}
    progress            whether to show how far it is
    options             further arguments of LLM. fp16 files are computed exactly unless told otherwise, so
                        that no number depends on what runs beside it

    batch_size, max_batch_size and device, which the harness passes, are ignored: all requests are given to
    the scheduler at once, and results do not depend on what it makes of them.
    """

    def __init__(
        self,
        path: LLM | str | os.PathLike[str] | None = None,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 1234,
        chat_template_args: Mapping[str, Any] | None = None,
        progress: bool = False,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        if MISSING is not None:
            raise ImportError(f"{NEEDS} ({MISSING})")
        super().__init__()
        self.llm = path if isinstance(path, LLM) else LLM(path, **{"exact": True, **options})
        self.llm._check_output()
        self.add_bos_token, self.custom_prefix_token_id = add_bos_token, prefix_token_id
        self.max_length = integer("max_length", max_length or self.llm.context, 1, self.llm.context)
        self.max_gen_toks, self.seed, self.progress = max_gen_toks, seed, progress
        self.chat_options = ChatOptions(template_kwargs=chat_template_args)

    # ------------------------------------------------------------------------------------------------------
    # Text and tokens

    @property
    def eot_token_id(self) -> int | None:
        """EOS."""
        return self.llm.eos_token

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is."""
        known = (self.custom_prefix_token_id, self.llm.bos_token, self.llm.eos_token)
        token = next((token for token in known if token is not None), None)
        if token is None:
            raise ValueError("the model has neither BOS nor EOS to begin a text with: give prefix_token_id")
        return token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, as HFLM.tok_encode has them."""
        if add_special_tokens is not None:
            return self.llm.encode(string, bos=None if add_special_tokens else False)
        begin = self.llm.decode([self.prefix_token_id], special=True)
        begun = bool(begin) and string.startswith(begin)
        return self.llm.encode(string, bos=False if begun else self.add_bos_token)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of that name; True: the default one. It is what apply_chat_template() applies."""
        if not chat_template:
            return None
        name = None if chat_template is True else chat_template
        self.chat_options = ChatOptions(chat_template=name, template_kwargs=self.chat_options.template_kwargs)
        return self.llm._template(self.chat_options)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation. A template that refuses a system message gets it without."""
        turn: dict[str, Any] = dict(
            add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
        )
        try:
            return self.llm.render_chat(chat_history, self.chat_options, **turn)
        except TemplateError:
            without = [message for message in chat_history if message["role"] != "system"]
            if not without or len(without) == len(chat_history):
                raise
            log.warning("the chat template refuses the messages; they are tried without those of the system")
            return self.llm.render_chat(without, self.chat_options, **turn)

    @property
    def tokenizer_name(self) -> str:
        """What tells prompts in the harness's cache apart from those of other models."""
        return self.llm.path.replace(os.sep, "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes about the model into its results."""
        llm = self.llm
        return {
            "model_name": llm.name,
            "model_num_parameters": llm.parameters,
            "model_dtype": llm.dtype,
            "pyllm_version": __version__,
        }

    # ------------------------------------------------------------------------------------------------------
    # What the harness asks for

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool | None = None
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation) the log-probability of the continuation, and whether each of its
        tokens was the most likely: what LLM.score() gives, but for contexts that are too long."""
        quiet = not self.progress if disable_tqdm is None else disable_tqdm
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=quiet)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = True, **_: Any
    ) -> list[tuple[float, bool]]:
        jobs = [self._scoring(*request) for request in requests]
        texts = {job: request[0] for job, request in zip(jobs, requests, strict=True)}
        for job in self._run(jobs, "scores", disable_tqdm):
            if (text := texts[job]) is not None:
                self.cache_hook.add_partial("loglikelihood", text, (job.logprob, job.greedy))
        return [(job.logprob, job.greedy) for job in jobs]

    def _scoring(self, text: Any, before: list[int], after: list[int]) -> Scoring:
        """The request for a score. Of what is too long, the beginning is left out."""
        before = before or [self.prefix_token_id]  # a context of white space alone, which has moved
        if not after:
            raise ValueError(f"{text!r:.200}: the continuation has no tokens to score")
        if len(after) > self.max_length:
            raise ValueError(f"{text!r:.200}: the continuation has more than {self.max_length} tokens")
        room = self.max_length + 1 - len(after)  # the last token is only predicted
        if len(before) > room:
            log.warning("a context of %s tokens is cut to its last %s", len(before), room)
        return Scoring(self.llm.vocab_size, before[-room:], after)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool | None = None) -> list[float]:
        """The log-probability of each text, in windows of max_length tokens."""
        quiet = not self.progress if disable_tqdm is None else disable_tqdm
        texts = [request.args[0] for request in requests]
        windows = [self._windows(text) for text in texts]
        scores = iter(self._loglikelihood_tokens([each for own in windows for each in own], quiet))
        sums: list[float] = []
        for text, own in zip(texts, windows, strict=True):
            sums.append(sum(next(scores)[0] for _ in own))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), sums[-1])
        return sums

    def _windows(self, text: str) -> list[tuple[None, list[int], list[int]]]:
        """The parts of a text that are scored, each behind as much of it as there is room for."""
        ids = self.tok_encode(text)
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
        return [(None, *make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool | None = None) -> list[str]:
        """The continuation of each context, by the task's generation_kwargs."""
        quiet = not self.progress if disable_tqdm is None else disable_tqdm
        repeats = Counter[int]()
        prompts, params = [], []
        for request in requests:
            each = self._params(request.args[1], repeats[id(request)])
            repeats[id(request)] += 1
            prompts.append(self._prompt(request.args[0], each.max_tokens or 0))
            params.append(each)
        jobs = self.llm._prepare(prompts, params, {})
        given = {job: request.args for job, request in zip(jobs, requests, strict=True)}
        for job in self._run(jobs, "texts", quiet):
            self.cache_hook.add_partial("generate_until", given[job], job.completion().text)
        return [job.completion().text for job in jobs]

    def _params(self, given: Mapping[str, Any], repeat: int) -> SamplingParams:
        """What generation_kwargs come to. What they do not say is as a server has it."""
        kwargs = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        eos = None if self.eot_token_id is None else self.llm.decode([self.eot_token_id], special=True)
        stops = handle_stop_sequences(kwargs.pop("until"), eos)
        kwargs.pop("do_sample")
        own = {"temperature": 0.0, "top_p": 1.0, "seed": self.seed, "max_tokens": kwargs.pop("max_gen_toks")}
        own |= {str(RENAMED.get(name, name)): value for name, value in kwargs.items()}
        if unknown := sorted(own.keys() - PARAMS):
            raise ValueError(f"generation_kwargs: pyllm has no {', '.join(unknown)}")
        own["seed"] = (own["seed"] + repeat) % 2**64
        return SamplingParams(**own, stop=[stop for stop in stops if stop])

    def _prompt(self, context: str, tokens: int) -> list[int]:
        """The ids of a context, behind which there is room for so many tokens."""
        if (room := self.max_length - tokens) < 1:
            raise ValueError(f"max_gen_toks is {tokens}: of {self.max_length} that leaves none for a prompt")
        ids = self.tok_encode(context) or [self.prefix_token_id]
        if len(ids) > room:
            log.warning("a prompt of %s tokens is cut to its last %s", len(ids), room)
        return ids[-room:]

    def _run(self, jobs: Sequence[R], title: str, quiet: bool) -> Iterator[R]:
        """Runs requests, all of them as one batch, and yields each when it has ended."""
        scheduler, ends = self.llm._batch(), SimpleQueue[Any]()
        for job in jobs:
            job.updates = ends
        try:
            if jobs:
                scheduler.add(*jobs)
            for waiting in tqdm(jobs, desc=title, disable=quiet):
                ended = scheduler.get(waiting)
                if ended.error is not None:
                    raise ended.error
                yield ended
        finally:
            for job in jobs:
                scheduler.cancel(job)


if MISSING is None:
    register_model("pyllm")(PyllmLM)


def arguments(given: Sequence[str]) -> list[str]:
    """What lm_eval is told: its own options as they are given, the model as PyllmLM takes it."""
    if given[:1] in (["ls"], ["validate"]):  # its commands that need no model
        return list(given)
    parser = argparse.ArgumentParser(prog="pyllm eval", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--model", metavar="FILE")
    options, rest = parser.parse_known_args(given[given[:1] == ["run"] :])
    chosen = [] if options.model is None else ["--model_args", json.dumps({"path": options.model})]
    return ["run", "--model", "pyllm", *chosen, *map(with_underscores, rest)]


def with_underscores(argument: str) -> str:
    """An option as lm_eval spells it: --model_args for --model-args."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 1 when it cannot evaluate; wrong usage exits with 2."""
    given = sys.argv[1:] if argv is None else list(argv)
    if MISSING is not None:
        print(f"{NEEDS} ({MISSING})", file=sys.stderr)
        return 1
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        given = ["--help"]
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["pyllm-eval", *arguments(given)]  # where lm_eval finds them
    try:
        cli_evaluate()
    except (LLMError, TemplateError) as error:
        print(f"pyllm eval: {error}", file=sys.stderr)
        return 1
    return 0
