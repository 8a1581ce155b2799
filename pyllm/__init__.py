"""Language models from one flat file: see LLM."""

from pyllm.binding import LLMError, __version__
from pyllm.chat import Reasoning
from pyllm.chat_template import TemplateError
from pyllm.engine import LLM, Score
from pyllm.sampling import Completion, Logprob, SamplingParams
from pyllm.session import Session

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
