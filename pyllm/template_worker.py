"""The program that renders chat templates, which are untrusted: in a process of its own, whose memory and
processor time are limited, so that no template can cost more than this process.

workers.py starts it, with the most memory it may take and the folders that jinja2 and what it needs are in as
arguments, and talks to it over a socket that is its standard input. The body of a message to it is made by
marshal:

    (b"T", template, variables, seconds, most)   wants the template's text
    (b"C", template, None, seconds, most)        wants the words in quotes in the template
    any value                                    what the template's strftime_now returns

seconds is how long the answer may take, most how many bytes it may have. The letters of messages from it:

    R  the program is ready
    D  a pattern: what is the date?
    T  the template's text, or a list of words as JSON
    E  why the template cannot be rendered
    L  which limit it exceeds

It is not imported by the package, and imports nothing of it."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[:] = [*sys.path[1:], *sys.argv[2:]]  # not the folder that this file is in

import io  # noqa: E402
import json  # noqa: E402
import marshal  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import time  # noqa: E402
from functools import lru_cache  # noqa: E402
from typing import Any  # noqa: E402

import jinja2  # noqa: E402
import jinja2.ext  # noqa: E402
import jinja2.nodes  # noqa: E402
import jinja2.parser  # noqa: E402
import jinja2.utils  # noqa: E402
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

MESSAGE = 2000  # characters of an error's message that are passed on
PATTERN = 1000  # characters that a date's pattern may have: strftime takes up to 256 bytes for each


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks replies for training; the text inside is passed on."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Any) -> Any:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            check(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        check(name)
        super().__setitem__(name, value)


class Dict:
    """The constructor `dict`, without the class's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have an attribute {name!r}")


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> None:
    raise TemplateError(message)


class Renderer:
    """Answers the messages of one connection."""

    def __init__(self, stream: io.BufferedRWPair) -> None:
        self.stream = stream
        self.compiled = lru_cache(maxsize=8)(self.compile)

    def send(self, kind: bytes, text: bytes = b"") -> None:
        self.stream.write(kind + len(text).to_bytes(8, "little") + text)
        self.stream.flush()

    def receive(self) -> Any:
        """The next message; EOFError when the other side is gone."""
        size = int.from_bytes(self.read(8), "little")
        return marshal.loads(self.read(size))

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def strftime_now(self, format: str) -> Any:
        """The date, as whoever wants the text has it."""
        if not isinstance(format, str):
            raise TypeError(f"strftime() argument 1 must be str, not {type(format).__name__}")
        if len(format) > PATTERN:
            raise ValueError(f"strftime_now() takes a pattern of up to {PATTERN} characters")
        self.send(b"D", format.encode("utf-8", "surrogatepass"))
        return self.receive()

    def compile(self, template: str) -> jinja2.Template:
        """The compiled template, in the environment that transformers' _compile_jinja_template sets up."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": self.strftime_now,
            "dict": Dict(),
            "namespace": Namespace,
        }
        return environment.from_string(template)

    def text(self, template: str, variables: dict[str, Any]) -> str:
        return self.compiled(template).render(variables)

    def constants(self, template: str) -> str:
        tree = self.compiled(template).environment.parse(template)
        texts = [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
        return json.dumps(sorted({text for text in texts if text.strip() == text != ""}))

    def answer(self, what: bytes, template: str, variables: Any, most: int) -> tuple[bytes, bytes]:
        """The letter and the text of an answer; MemoryError when there is not enough for it."""
        try:
            found = self.text(template, variables) if what == b"T" else self.constants(template)
        except MemoryError:
            raise
        except TemplateSyntaxError as error:
            kind = b"E"
            found = f"the chat template is wrong in line {error.lineno}: {error.message}"[:MESSAGE]
        except Exception as error:
            kind, found = b"E", f"the chat template refuses this conversation: {error}"[:MESSAGE]
        else:
            kind = b"T"
        text = found.encode("utf-8", "surrogatepass") if len(found) <= most else b""
        if len(found) > most or len(text) > most:
            return b"L", b"the chat template makes a text of more than %d MiB" % (most >> 20)
        return kind, text

    def run(self, memory: int) -> None:
        """Answers until the other side is gone."""
        self.send(b"R")
        first = True
        while True:
            what, template, variables, seconds, most = self.receive()
            # should nobody be left to end this process
            limit(resource.RLIMIT_CPU, int(time.process_time() + seconds) + 2)
            try:
                kind, text = self.answer(what, template, variables, most)
            except MemoryError:
                if not first:  # what earlier templates have left may be in the way: a new process will see
                    return
                kind, text = b"L", b"the chat template takes more than %d MiB of memory" % (memory >> 20)
            self.send(kind, text)
            first = False


def limit(resource_id: int, most: int) -> None:
    """Limits what this process may have of a resource, as far as the system does that."""
    hard = resource.getrlimit(resource_id)[1]
    try:
        resource.setrlimit(resource_id, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (OSError, ValueError):
        pass


def mapped() -> int:
    """The bytes of address space that this process has, 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> None:
    memory = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, mapped() + memory)
    try:
        Renderer(socket.socket(fileno=0).makefile("rwb")).run(memory)
    except (EOFError, OSError):
        pass


if __name__ == "__main__":
    main()
