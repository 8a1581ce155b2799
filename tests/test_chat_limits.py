"""Chat templates are untrusted: whatever one does, rendering it ends soon, in a text or a TemplateError, and
takes little memory; the process that renders it is there when it is needed, and nowhere else."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("jinja2")

from pyllm._llm import lib  # noqa: E402
from pyllm.tools import chat_parts, convert  # noqa: E402

from pyllm import chat_template  # noqa: E402
from pyllm.chat_template import WORKERS, TemplateError, render  # noqa: E402

TALK = [{"role": "user", "content": "Hi"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
PLAIN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}\n"
    "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)
MEGABYTE = 1 << 20


@pytest.fixture
def process(monkeypatch):
    """A process with lower limits, for tests that reach them."""
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    monkeypatch.setattr(WORKERS, "memory", 64 * MEGABYTE)
    if WORKERS.idle and str(64 * MEGABYTE) not in WORKERS.idle.program.args:
        WORKERS.end_all()


def pid() -> int:
    """Of the process that waits for the next template."""
    return WORKERS.idle.program.pid


def is_running(number: int) -> bool:
    """Whether this process exists, and is no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(number: int, seconds: float) -> bool:
    """Whether the process ends in that time."""
    end = time.monotonic() + seconds
    while is_running(number) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_running(number)


# ----------------------------------------------------------------------------------------------------------
# What a template may cost

HOSTILE = {
    "nested loops": LOOPS,
    "a loop over a call": "{% for a in range(99999) %}{% set b = range(99999) | sum %}{% endfor %}",
    "a loop over dates": "{% for a in range(99999) %}{% for b in range(99) %}{{ strftime_now('%A' * 400) }}"
    "{% endfor %}{% endfor %}",
    "a cycler in loops": "{% set c = cycler(1) %}"
    + LOOPS.replace("%}{% endfor", "%}{% set x = c.next() %}{% endfor", 1),
    "macros that call twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a loop that calls itself": "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "a list in itself": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}"
    "{% endfor %}{{ n.x }}",
    "a constant text": "{{ 'a' * 10**10 }}",
    "a text": "{% set n = 10**10 %}{{ messages[0].role * n }}",
    "a constant power": "{{ 10 ** (10 ** 8) }}",
    "a power": "{% set n = messages | length * 10 %}{{ n ** (n ** 8) }}",
    "digits": "{{ (10 ** 4000000) | string }}",
    "more digits": "{{ " + "9" * 10**6 + " }}",
    "a list": "{{ [1] * 10**9 }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "%d": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format as a filter": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "indent": "{{ 'a\\nb' | indent(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9) }}",
    "translate": "{{ 'a'.translate({97: 'b' * 10**9}) }}",
    "replace": "{% set a = 'a' * 10**5 %}{{ a | replace('', a) }}",
    "join": "{{ (['a' * 10**6] * 10**6) | join('b' * 10**6) }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "tojson": "{{ [1] | tojson(indent=10**9) }}",
    "wordwrap": "{{ ('a ' * 10**7) | wordwrap(1) }}",
    "title": "{{ ('a' * 10**8) | title }}",
    "a pattern of a date": "{{ strftime_now('%A' * 10**7) }}",
    "text without end": "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "a long text": "{{ 'a' * (17 * 2**20) }}",
    "a long message": "{{ raise_exception('a' * 10**8) }}",
    "100 MB of template": "x" * (100 * MEGABYTE),
    "many expressions": "{{a}}" * 200000,
    "a long sum": "{{ 1" + "+a" * 200000 + " }}",
    "many filters": "{{ 1" + "|e" * 200000 + " }}",
    "many attributes": "{{ a" + ".a" * 200000 + " }}",
    "many signs": "{{ " + "-" * 500000 + "1 }}",
    "many parentheses": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}",
    "many brackets": "{{ " + "[" * 100000 + "]" * 100000 + " }}",
    "many ifs": "{% if 1 %}" * 20000 + "{% endif %}" * 20000,
    "many fors": "{% for a in [1] %}" * 300 + "{% endfor %}" * 300,
    "an open string": "{{ '" + "\\" * 900000,
    "open comments": "{#" * 500000,
    "white space": "\n \t" * 300000 + "{%-",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_template_costs_more_than_its_limits(process, name):
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(TemplateError) as error:
        render(HOSTILE[name], TALK)
    assert time.monotonic() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert 10 < len(str(error.value)) < 3000
    for one in WORKERS.running:
        status = Path(f"/proc/{one.program.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 200 << 10  # KiB
    assert render("{{ messages[0].content }}", TALK) == "Hi"


def test_a_template_is_told_which_limit_it_exceeds(process, monkeypatch):
    with pytest.raises(TemplateError, match="^the chat template takes more than 0.2 s$"):
        render(LOOPS, TALK)
    monkeypatch.setattr(chat_template, "SECONDS", 30)
    for template, words in (
        ("{{ 'a' * 10**9 }}", "the chat template takes more than 64 MiB of memory"),
        (
            "{{ 'a' * (messages | length * 17 * 2**20) }}",
            "the chat template makes a text of more than 16 MiB",
        ),
        ("x" * (MEGABYTE + 1), "the chat template has 1048577 characters, more than 1048576"),
    ):
        with pytest.raises(TemplateError) as error:
            render(template, TALK)
        assert str(error.value) == words
    with pytest.raises(TemplateError, match="the conversation has more than 16 MiB"):
        render(PLAIN, [{"role": "user", "content": "x" * (21 * MEGABYTE)}])


def test_memory_that_is_short_is_tried_again_in_a_new_process(process):
    """What earlier templates have left may be in the way."""
    render(PLAIN, TALK)
    first = pid()
    with pytest.raises(TemplateError, match="MiB of memory"):
        render("{{ 'a' * 10**9 }}", TALK)
    assert pid() != first and not is_running(first)


def test_long_texts_within_the_limits_are_rendered():
    WORKERS.end_all()  # one with lower limits
    texts = ["a" * (15 * MEGABYTE), "\u4e2d" * (5 * MEGABYTE), "\U0001f600" * (3 * MEGABYTE), "\0" * MEGABYTE]
    for text in texts:
        assert render(PLAIN, [{"role": "user", "content": text}]) == f"[{text}]"


# ----------------------------------------------------------------------------------------------------------
# What goes there and comes back


def test_values_reach_the_template_as_they_are():
    values = [
        (1, (2,), None),
        {1: "a", None: True, (1, 2): 0.1, 1.5: "b"},
        "\ud83d\ude00 \ud800 \0\r\n\u2028",  # halves of a character, which are not one
        10**400,
        float("inf"),
        -0.0,
        [],
    ]
    for value in values:
        assert render("{{ x }}", TALK, x=value) == str(value)
        assert render("{{ x is sequence }}", TALK, x=value) == str(
            isinstance(value, (tuple, dict, str, list))
        )
    assert render("{{ x != x }}", TALK, x=float("nan")) == "True"
    deep: list = []
    for _ in range(100):
        deep = [deep]
    assert render("{{ x }}", TALK, x=deep) == str(deep)


def test_the_date_is_asked_of_the_caller():
    asked = []

    def date(pattern: str) -> str:
        asked.append(pattern)
        return f"<{pattern}>"

    template = "{{ strftime_now('%d') }}{{ strftime_now(format='\ud800') }}{{ strftime_now is defined }}"
    assert render(template, TALK, strftime_now=date) == "<%d><\ud800>True" and asked == ["%d", "\ud800"]
    assert render("{{ strftime_now('%d') + 1 }}", TALK, strftime_now=lambda pattern: 41) == "42"
    assert render("{{ strftime_now('%Y') }}", TALK) == time.strftime("%Y")
    assert render("{{ strftime_now }}", TALK, strftime_now="a text") == "a text"


def test_what_the_callers_date_raises_is_raised():
    def fail(error: BaseException) -> None:
        raise error

    for error in (
        ZeroDivisionError("no"),
        ValueError("no"),
        TimeoutError("no"),
        EOFError("no"),
        KeyboardInterrupt(),
    ):
        expected = TemplateError if isinstance(error, (ArithmeticError, ValueError)) else type(error)
        with pytest.raises(expected, match="no" if error.args else "^$"):
            render("{{ strftime_now('%d') }}", TALK, strftime_now=lambda pattern, error=error: fail(error))
        assert render("{{ messages[0].content }}", TALK) == "Hi"


def test_the_callers_date_may_render_another_template():
    inner = lambda pattern: render("<{{ x }}>", TALK, x=pattern)  # noqa: E731
    assert render("{{ strftime_now('a') }}{{ strftime_now('b') }}", TALK, strftime_now=inner) == "<a><b>"
    assert len(WORKERS.running) == 1


# ----------------------------------------------------------------------------------------------------------
# The process


def test_all_threads_use_one_process():
    render(PLAIN, TALK)
    first = pid()
    talks = [[{"role": "user", "content": f"{i} " * (i % 7 * 1000)}] for i in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda talk: render(PLAIN, talk), talks))
    assert found == [f"[{talk[0]['content']}]" for talk in talks]
    assert pid() == first and len(WORKERS.running) == 1


def test_a_forked_child_starts_its_own_process():
    render(PLAIN, TALK)
    first = pid()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            right = not WORKERS.running and render(PLAIN, TALK) == "[Hi]" and pid() != first
            os.write(write, str(pid()).encode())
            WORKERS.end_all()
            status = 0 if right and is_running(first) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not is_running(int(os.read(read, 99)))
    os.close(read)
    os.close(write)
    assert render(PLAIN, TALK) == "[Hi]" and pid() == first


def test_a_child_forked_while_others_render_can_render():
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            assert render(PLAIN, TALK) == "[Hi]"

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    statuses = []
    try:
        for _ in range(5):
            if (child := os.fork()) == 0:
                status = 1
                try:
                    signal.alarm(30)
                    status = 0 if render(PLAIN, TALK) == "[Hi]" else 2
                    WORKERS.end_all()
                finally:
                    os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == [0] * 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_process_is_replaced(number):
    render(PLAIN, TALK)
    first = pid()
    os.kill(first, number)
    assert render(PLAIN, TALK) == "[Hi]"
    assert pid() != first and not is_running(first)


def test_a_process_that_is_killed_each_time_is_an_error():
    def kill(pattern: str) -> str:
        for one in WORKERS.running:
            os.kill(one.program.pid, signal.SIGKILL)
        return pattern

    with pytest.raises(TemplateError, match=r"process .* has ended twice \(Killed\)"):
        render("{{ strftime_now('%d') }}", TALK, strftime_now=kill)
    assert render(PLAIN, TALK) == "[Hi]"


def test_a_stopped_process_is_an_error(process):
    render(PLAIN, TALK)
    os.kill(pid(), signal.SIGSTOP)
    with pytest.raises(TemplateError, match="takes more than 0.2 s"):
        render(PLAIN, [{"role": "user", "content": "x" * MEGABYTE}])
    assert render(PLAIN, TALK) == "[Hi]"


def test_ctrl_c_interrupts_a_template_and_the_next_answer_is_its_own():
    render(PLAIN, TALK)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        render(LOOPS, TALK)
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert render("{{ messages[0].content }}!", TALK) == "Hi!"
    os.kill(pid(), signal.SIGINT)  # it takes no notice
    first = pid()
    assert render(PLAIN, TALK) == "[Hi]" and pid() == first


@pytest.mark.parametrize("executable", ["", None, "/no/such/python", "/bin/false", "/bin/\0"])
def test_without_a_python_to_start_there_is_an_error(monkeypatch, executable):
    WORKERS.end_all()
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(RuntimeError, match="process that renders chat templates cannot be started: "):
        render(PLAIN, TALK)
    parts, why = chat_parts.derive(PLAIN, {})
    assert parts is None and "cannot be started" in why
    assert not WORKERS.running


def test_without_a_jinja2_that_is_new_enough_no_process_is_started(monkeypatch):
    WORKERS.end_all()
    for name, value, words in (
        ("jinja2", None, "need the library jinja2: pip install"),
        ("markupsafe", None, "need the library jinja2: pip install"),
        ("jinja2", SimpleNamespace(__version__="3.1.5"), "3.1.6 or newer, not 3.1.5"),
    ):
        monkeypatch.setitem(sys.modules, name, value)
        with pytest.raises(ImportError, match=words):
            render(PLAIN, TALK)
        monkeypatch.undo()
    assert not WORKERS.running


def test_without_a_descriptor_or_a_process_to_spare_there_is_an_error(monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    for name in ("socket.socketpair", "subprocess.Popen"):
        WORKERS.end_all()
        monkeypatch.setattr(f"pyllm.workers.{name}", fail)
        with pytest.raises(RuntimeError, match="cannot be started: .*temporarily unavailable"):
            render(PLAIN, TALK)
        monkeypatch.undo()
        assert render(PLAIN, TALK) == "[Hi]"


def test_the_process_has_no_files_of_this_one(tmp_path):
    WORKERS.end_all()
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        render(PLAIN, TALK)
        names = {os.readlink(link) for link in Path(f"/proc/{pid()}/fd").iterdir()}
    assert not any("file" in name for name in names) and len(names) <= 2
    assert os.readlink(f"/proc/{pid()}/cwd") == "/"


def run(code: str, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    """The code in a Python that has pyllm."""
    more.setdefault("cwd", os.sep)  # not the checkout, whose pyllm/ is not built
    code = textwrap.dedent(f"""
        import os, signal, sys, time
        from pyllm import chat_template
        from pyllm.chat_template import WORKERS, render
        TALK = [{{"role": "user", "content": "Hi"}}]
        LOOPS = {LOOPS!r}
        pid = lambda: WORKERS.idle.program.pid
    """) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60, **more
    )


def test_the_process_ends_with_this_one_and_says_nothing():
    done = run("print(render('{{ messages[0].content }}', TALK), pid())", "-X", "dev", "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    text, number = done.stdout.split()
    assert text == "Hi" and not is_running(int(number))


def test_the_process_ends_when_this_one_is_killed():
    done = run("render('x', TALK); print(pid(), flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    assert wait_for_end(int(done.stdout), 10)


def test_a_template_ends_when_this_process_is_killed_meanwhile():
    done = run("""
        chat_template.SECONDS = 0.5
        render('x', TALK)
        print(pid(), flush=True)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        render(LOOPS, TALK)
    """)
    assert done.returncode == -signal.SIGKILL
    assert wait_for_end(int(done.stdout), 20)


def test_the_process_finds_its_libraries_and_nothing_else(tmp_path):
    for name in ("json", "socket", "jinja2", "sitecustomize", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    code = "print(render('{{ messages[0].content }}', TALK))"
    done = run(code, "-I", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("Hi\n", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = run(
        code, "-S", cwd=tmp_path, env={**environment, "PYTHONSAFEPATH": "1"} | {"PYTHONWARNINGS": "error"}
    )
    if sys.version_info >= (3, 11):  # PYTHONSAFEPATH
        assert (done.stdout, done.stderr) == ("Hi\n", "")
    done = run(code, "-I", cwd=tmp_path, env={**os.environ, "PYTHONHOME": str(tmp_path), "LD_PRELOAD": ""})
    assert (done.stdout, done.stderr) == ("Hi\n", "")


# ----------------------------------------------------------------------------------------------------------
# Conversion

# A template that is honest but for what it does with some conversation
TRAPS = {
    "at once": "{% if true %}TRAP{% endif %}",
    "with a system message": "{% if messages[0].role == 'system' %}TRAP{% endif %}",
    "with a word": "{% if '/word' in messages[-1].content %}TRAP{% endif %}",
    "with a reply that has reasoning": "{% if '</think>' in messages | map(attribute='content') | join %}"
    "TRAP{% endif %}",
    "without thinking": "{% if enable_thinking is defined %}TRAP{% endif %}",
}


@pytest.mark.parametrize(
    "cost", [LOOPS, "{{ 'a' * 10**10 }}", "{{ 'a' * 2**21 }}"], ids=["time", "memory", "text"]
)
@pytest.mark.parametrize("trap", TRAPS)
def test_a_conversion_stops_at_the_first_limit(process, monkeypatch, trap, cost):
    rendered, ask = [], WORKERS.ask
    monkeypatch.setattr(WORKERS, "ask", lambda *args: rendered.append(ask(*args)) or rendered[-1])
    notes: list[str] = []
    cost = cost.replace("10**10", "(messages | length * 10**10)")  # not when it is compiled
    begun = time.monotonic()
    sections = convert.make_chat({"default": TRAPS[trap].replace("TRAP", cost) + PLAIN}, {}, notes)
    assert time.monotonic() - begun < 10
    words = ("takes more than 0.2 s", "MiB of memory", "makes a long text of a short conversation")
    assert any(word in "; ".join(notes) for word in words)
    assert (lib.LLM_CHAT_WHY in sections) == (trap != "without thinking")
    assert lib.LLM_CHAT_NO_THINKING not in sections


def test_a_conversion_takes_limited_time_in_all(process, monkeypatch):
    monkeypatch.setattr(chat_parts, "SECONDS", 0.5)
    slow = "{% for a in range(3000) %}{% for b in range(100) %}{% endfor %}{% endfor %}"
    words = "".join(f"{{% if '{i}' == 0 %}}{{% endif %}}" for i in range(20000))
    for template in (PLAIN + slow, PLAIN + words):
        begun = time.monotonic()
        parts, why = chat_parts.derive(template, {})
        assert parts is None and "takes more than" in why
        assert time.monotonic() - begun < 10


def test_a_conversion_keeps_limited_text(process, monkeypatch):
    monkeypatch.setattr(chat_parts, "MAX_TEXTS", 1 << 20)
    parts, why = chat_parts.derive(PLAIN + "a" * 200000, {})
    assert parts is None and "makes a long text" in why


def test_dates_are_such_as_the_command_writes():
    for pattern, fits in (
        ("%A, %d %B %Y at %H:%M", True),
        ("%-d" * 21, True),
        ("%-d" * 22, False),  # more than 63 bytes
        ("%A" * 28, True),
        ("%A" * 29, False),  # "Wednesday" 29 times is more than 255 bytes
    ):
        parts, why = chat_parts.derive(f"{{{{ strftime_now('{pattern}') }}}}" + PLAIN, {})
        assert (parts is not None) == fits and fits != ("asks for the date" in why)


def test_the_mark_of_dates_is_refused_in_a_template():
    for text in ("\1%010000000d\1", "\1%c\1", "\1", "\1\1\1", "\1\xe9\1", "{{ '%c' % 1 }}"):
        parts, why = chat_parts.derive(text + PLAIN, {})
        assert parts is None and "U+0001" in why
    for text in ("\1%d\1", "\1\1", "\1[\1"):
        assert chat_parts.derive(text + PLAIN, {})[0] is None


def test_what_a_template_says_at_a_conversion_is_safe_to_print_and_to_store():
    for template, parts_found in (
        (PLAIN + "{% if '\\x1b[2J' in messages[-1].content %}!{% endif %}", True),
        (PLAIN + "{% if '\\ud800' in messages[-1].content %}!{% endif %}", True),
        (PLAIN + "{{ raise_exception('\\x1b[2J \\ud800 ' + 'long ' * 10000) }}", False),
        (PLAIN + "{{ '\\ud800' }}", False),
    ):
        notes: list[str] = []
        sections = convert.make_chat({"default": template}, {}, notes)
        assert (lib.LLM_CHAT_PARTS in sections) == parts_found
        assert notes and all(note.isprintable() and len(note.encode()) < 2000 for note in notes)
    with pytest.raises(convert.ConvertError, match="the chat template cannot be written as UTF-8"):
        convert.make_chat({"default": PLAIN + "\ud800"}, {}, [])
