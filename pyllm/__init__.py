"""Language models from one flat file: see LLM."""

import sys

from pyllm._checkout import become_installed, is_compiled

__all__ = [
    "LLM",
    "ChatOptions",
    "Completion",
    "ContextError",
    "Explanation",
    "GrammarError",
    "LLMError",
    "Logprob",
    "Policy",
    "Reasoning",
    "SamplingParams",
    "Score",
    "Session",
    "StreamEvent",
    "TemplateError",
    "Usage",
    "__version__",
]

if is_compiled(__path__):
    from pyllm.binding import ContextError, LLMError, __version__
    from pyllm.chat import ChatOptions, Reasoning
    from pyllm.chat_template import TemplateError
    from pyllm.engine import LLM
    from pyllm.grammar import GrammarError
    from pyllm.sampling import Completion, Explanation, Logprob, SamplingParams, StreamEvent, Usage
    from pyllm.scheduler import Policy
    from pyllm.scoring import Score
    from pyllm.session import Session
else:
    become_installed(sys.modules[__name__])
