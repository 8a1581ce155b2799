"""Chat templates: rendered as transformers renders them, and reduced to the pieces of text around the
messages."""
# ruff: noqa: E501 (templates as their models have them)

import json
import sys

import pytest

pytest.importorskip("jinja2")

from pyllm.tools.chat_parts import LATER, assemble, derive  # noqa: E402

from pyllm.chat_template import TemplateError, render  # noqa: E402

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("tool calls are left out of this test") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Llama 3.2 differs from 3.1 in taking the date from the clock
LLAMA32 = LLAMA31.replace(
    '{%- set date_string = "26 Jul 2024" %}', '{%- set date_string = strftime_now("%d %b %Y") %}'
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

# Later Mistral models put the system message before the last user message
MISTRAL_LAST = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

ALL = {
    "ChatML": CHATML,
    "SmolLM2": SMOLLM2,
    "Llama 2": LLAMA2,
    "Llama 3.1": LLAMA31,
    "Llama 3.2": LLAMA32,
    "Mistral": MISTRAL,
    "Mistral, system last": MISTRAL_LAST,
    "Gemma": GEMMA,
    "Qwen2.5": QWEN25,
    "Qwen3": QWEN3,
}

TALK = [
    {"role": "user", "content": " Hi <b>there</b> "},
    {"role": "assistant", "content": "Hello & welcome\n"},
    {"role": "user", "content": "Bye \u00e9\u4e2d\U0001f600"},
]
IM = "<|im_start|>"


# ---------------------------------------------------------------------------------------------------------
# Rendering


@pytest.mark.parametrize("name", ALL)
def test_render_equals_transformers(name):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **TOKENS)
    system = [{"role": "system", "content": " Be brief. "}]
    tool = [{"type": "function", "function": {"name": "f", "description": "<x> \u00e9", "parameters": {}}}]
    thought = [TALK[0], {"role": "assistant", "content": "yes", "reasoning": "because"}]
    cases = [
        (TALK[:1], {}),
        (TALK, {}),
        (TALK, {"add_generation_prompt": False}),
        (system + TALK, {}),
        (TALK, {"tools": tool}),
        (TALK, {"enable_thinking": False}),
        (TALK, {"date_string": "1 Jan 2000"}),
        (thought, {"add_generation_prompt": False}),
    ]
    rendered = 0
    for messages, options in cases:
        options = {"add_generation_prompt": True, **options}
        try:
            expected = reference.apply_chat_template(
                messages, chat_template=ALL[name], tokenize=False, **options
            )
        except Exception:
            with pytest.raises(TemplateError):
                render(ALL[name], messages, **options, **TOKENS)
            continue
        assert render(ALL[name], messages, **options, **TOKENS) == expected
        rendered += 1
    assert rendered >= 4


def test_render_knows_transformers_extensions():
    assert (
        render("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", []) == "01"
    )
    assert (
        render(
            "{% generation %}a{{ messages[0].content }}{% endgeneration %}",
            [{"role": "user", "content": "b"}],
        )
        == "ab"
    )
    assert render("{{ x | tojson }}", [], x={"k": "<\u00e9>"}) == json.dumps(
        {"k": "<\u00e9>"}, ensure_ascii=False
    )
    assert render("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(b=3).b }}", []) == "23"
    assert len(render("{{ strftime_now('%Y') }}", [])) == 4


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(__class__=1) %}",
        "{{ cycler.__init__.__globals__.os.popen('true') }}",
    ],
)
def test_render_refuses_to_leave_the_sandbox(template):
    try:
        text = render(template, [])
    except TemplateError:
        return
    assert text == ""  # an undefined name


def test_render_reports_what_the_template_says():
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(GEMMA, [TALK[0], TALK[0]], **TOKENS)
    with pytest.raises(TemplateError, match="line 2"):
        render("\n{% if %}", [])
    with pytest.raises(TypeError, match="a message is a dict"):
        render(CHATML, ["hi"])


# ---------------------------------------------------------------------------------------------------------
# Reducing


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "ChatML",
            [
                f"{IM}system\n",
                f"<|im_end|>\n{IM}user\n",
                f"{IM}user\n",
                f"<|im_end|>\n{IM}assistant\n",
                f"<|im_end|>\n{IM}user\n",
                "",
            ],
        ),
        (
            "SmolLM2",
            [
                f"{IM}system\n",
                f"<|im_end|>\n{IM}user\n",
                f"{IM}system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{IM}user\n",
                f"<|im_end|>\n{IM}assistant\n",
                f"<|im_end|>\n{IM}user\n",
                "",
            ],
        ),
        (
            "Llama 3.1",
            [
                "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
                "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
                "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
                "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
                "trim",
            ],
        ),
        (
            "Qwen2.5",
            [
                f"{IM}system\n",
                f"<|im_end|>\n{IM}user\n",
                f"{IM}system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{IM}user\n",
                f"<|im_end|>\n{IM}assistant\n",
                f"<|im_end|>\n{IM}user\n",
                "",
            ],
        ),
        (
            "Qwen3",
            [
                f"{IM}system\n",
                f"<|im_end|>\n{IM}user\n",
                f"{IM}user\n",
                f"<|im_end|>\n{IM}assistant\n",
                f"<|im_end|>\n{IM}user\n",
                "think lines",
            ],
        ),
        ("Mistral", ["", "", "<s>[INST] ", " [/INST]", "</s>[INST] ", ""]),
        (
            "Gemma",
            [
                "",
                "",
                "<s><start_of_turn>user\n",
                "<end_of_turn>\n<start_of_turn>model\n",
                "<end_of_turn>\n<start_of_turn>user\n",
                "trim",
            ],
        ),
        (
            "Llama 2",
            ["<s>[INST] <<SYS>>\n", "\n<</SYS>>\n\n", "<s>[INST] ", " [/INST]", " </s><s>[INST] ", "trim"],
        ),
        ("Mistral, system last", ["", "\n\n", "<s>[INST] ", "[/INST]", "</s>[INST] ", "last"]),
    ],
)
def test_parts_of_known_templates(name, parts):
    assert derive(ALL[name], TOKENS)[0] == parts


@pytest.mark.parametrize("name", ALL)
def test_parts_make_the_templates_own_text(name):
    parts, why = derive(ALL[name], TOKENS)
    if parts is None:
        assert why
        return
    for system in (None, "Be brief.") if parts[0] or parts[1] else (None,):
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": m["role"], "content": m["content"].strip()} for m in TALK]
        contents = [m["content"] for m in messages if m["role"] != "system"]
        lead = (
            " " if name in ("Llama 2", "Mistral, system last") else ""
        )  # the space that these models write themselves
        assert assemble(parts, system, contents[::2], contents[1::2], lead, LATER) == render(
            ALL[name], messages, strftime_now=LATER.strftime, **TOKENS
        )


def test_parts_have_the_pattern_where_the_template_has_the_date():
    parts, why = derive(LLAMA32, TOKENS)
    assert parts[0] == parts[2].split("<|eot_id|>")[0] and not why
    assert "\nToday Date: \1%d %b %Y\1\n" in parts[0]
    assert "\nToday Date: 30 Nov 2022\n" in assemble(parts, None, ["Hi"], [], now=LATER)


def test_parts_are_missing_without_jinja2(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    parts, why = derive(CHATML, TOKENS)
    assert parts is None and "jinja2" in why
    with pytest.raises(ImportError, match="pip install jinja2"):
        render(CHATML, TALK)


def test_parts_without_a_system_message_where_the_template_has_none():
    parts, remark = derive(GEMMA, TOKENS)
    assert parts[:2] == ["", ""] and "no place for a system message" in remark
    every = CHATML.replace(
        "{% for", "{% for m in messages if m.role == 'system' %}!{{ m.content }}{% endfor %}{% for"
    )
    parts, remark = derive(every, TOKENS)  # it writes the system message twice
    assert parts[:2] == ["", ""] and "simply at the start or before the last user message" in remark


def test_parts_take_the_reasoning_out_of_earlier_replies_as_the_template_does():
    users, reply = ["a", "b"], "<think>\nHm.\n</think>\n\nYes"
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "b"},
    ]
    for change, words, kept in (
        ("", "", reply),
        (".split('</think>')[-1]", "think", "\n\nYes"),
        (".split('</think>')[-1].lstrip('\n')", "trim think lines", "Yes"),
        (".strip('\n').split('</think>')[0]", None, None),
    ):
        template = PLAIN.replace("{{ m.content }}\n", f"{{{{ m.content{change} }}}}\n")
        parts, remark = derive(template, TOKENS)
        if words is None:
            assert (
                parts[5] == "trim"
                and "the chat template changes earlier replies that have reasoning" in remark
            )
            continue
        assert parts[5] == words and "replies" not in remark
        assert assemble(parts, None, users, [reply]) == f"[a]{kept}\n[b]" == render(template, talk)


def test_parts_come_with_a_remark_on_words_that_change_the_template():
    remark = derive(PLAIN + "{% if '/quiet' in messages[-1].content %}!{% endif %}", TOKENS)[1]
    assert remark == "the chat template treats messages with /quiet in its own way"


def test_parts_begin_a_reply_where_the_template_begins_its_reasoning():
    parts, why = derive(THINKING, TOKENS)
    assert (
        parts[3:] == [f"<|im_end|>\n{IM}assistant\n", f"<|im_end|>\n{IM}user\n", "", "<think>\n"] and not why
    )


def test_parts_begin_earlier_replies_as_the_template_does():
    parts, why = derive(THINKING.replace("message['content']", "'*' + message['content']"), TOKENS)
    assert parts[5:] == ["answer", "<think>\n", "*"], (parts, why)
    kept = assemble(parts, None, ["a", "b"], ["Hm</think>\n\nYes"]).partition("*a<|im_end|>")[2]
    assert f"{IM}assistant\n*Yes<|im_end|>\n{IM}user\n*b" in kept


THINKING = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
PLAIN = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content }}\n{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "line 1"),
        ("{{ raise_exception('never') }}", "never"),
        ("nothing of the messages", "leaves out"),
        (PLAIN.replace("m.content", "m.content * 2"), "repeats"),
        (PLAIN.replace("m.content", "m.content | upper"), "leaves out"),
        (PLAIN.replace("m.content", "m.content | e"), "changes messages"),
        (PLAIN.replace("m.content", "m.content | replace('  ', ' ')"), "changes messages"),
        (PLAIN.replace("]", "]{{ loop.index if loop.index > 3 }}"), "depends on more"),
        ("{{ messages | length }}" + PLAIN, "depends on more"),
        (PLAIN.replace("]", "\0]"), "NUL"),
        (PLAIN.replace("]", "{{ strftime_now('%d') | int + 1 }}]"), "computes with the current date"),
        (PLAIN.replace("]", "{{ strftime_now('%d') | upper }}]"), "computes with the current date"),
        (PLAIN.replace("]", "{{ strftime_now('%c') }}]"), "asks for the date as '%c'"),
    ],
)
def test_parts_are_refused_with_a_reason(template, reason):
    parts, why = derive(template, TOKENS)
    assert parts is None
    assert reason in why
