"""Language models from one flat file: see LLM."""

import sys

from pyllm._checkout import become_installed, is_compiled

__all__ = [
    "LLM",
    "Completion",
    "LLMError",
    "Logprob",
    "Reasoning",
    "SamplingParams",
    "Score",
    "Session",
    "TemplateError",
    "__version__",
]

if is_compiled(__path__):
    from pyllm.binding import LLMError, __version__
    from pyllm.chat import Reasoning
    from pyllm.chat_template import TemplateError
    from pyllm.engine import LLM, Score
    from pyllm.sampling import Completion, Logprob, SamplingParams
    from pyllm.session import Session
else:
    become_installed(sys.modules[__name__])
