"""The program that compiles grammars on trial, since one of few lines may take for ever, or all memory, or
end its process. It says nothing about a grammar but that it has come through it.

grammar_trial.py starts it, with the bytes of memory that it may take and the folder of llguidance as
arguments. A question is a line of JSON: a grammar, its limits, and the seconds that it may take; the answer
is a byte. One comes before all questions, when the program is ready.

It is not imported by the package, and imports nothing of it."""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading

STACK = 512 << 20  # as grammar.py has it


def serve() -> None:
    """Answers questions until there are no more."""
    from llguidance import LLMatcher, LLParserLimits

    sys.stdout.write(".")
    sys.stdout.flush()
    for line in sys.stdin:
        grammar, limits, seconds = json.loads(line)
        signal.alarm(seconds)  # ends this process, also when there is nobody any more who would
        LLMatcher.validate_grammar_with_warnings(grammar, None, limits=LLParserLimits(**limits))
        signal.alarm(0)
        sys.stdout.write(".")
        sys.stdout.flush()


def main() -> None:
    memory, folder = int(sys.argv[1]), sys.argv[2]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = [*sys.path[1:], folder]  # not the folder that this file is in
    threading.stack_size(STACK)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
