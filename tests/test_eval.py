"""EleutherAI's lm-evaluation-harness gets the same numbers of a model in this process and over HTTP, to the
last bit, in all forms of a task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from served import write_model
from tasks import data

TASKS = Path(__file__).resolve().parent / "tasks"
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")
pytest.importorskip("starlette")

from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from pyllm import LLM  # noqa: E402
from pyllm.eval import PyllmLM, arguments, main, with_underscores  # noqa: E402
from pyllm.testing import Server, running_server  # noqa: E402

FORMS = ["arithmetic_text", "arithmetic_choice", "arithmetic_likelihood"]
CONTEXT = 400
PAIRS = [
    ("Hello", " there"),
    ("Hello ", "there"),  # white space moves
    ("", "Hello"),  # BOS stands before it
    ("<s>Hello", " there"),  # and is not added twice
    ("<|im_start|>user:Hi<|im_end|>", "Hello"),
    ("ü", "ber"),
]
LONG = "It was a dark and stormy night. " * 20


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("eval"), context=CONTEXT)


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    with LLM(path, threads=1, exact=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Server]:
    with running_server(path, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def tasks() -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False)


def over_http(served: Server, **options: Any) -> LocalCompletionsAPI:
    options = {"tokenizer_backend": "auto", "max_length": CONTEXT, **options}
    return LocalCompletionsAPI(base_url=f"{served.base_url}/completions", model="tiny", **options)


def asked(*arguments: Any) -> Any:
    """A request as the harness makes it."""
    return SimpleNamespace(args=arguments)


def samples_of(model: Any, tasks: TaskManager, **options: Any) -> dict[str, Any]:
    """What came of each row, by form and row."""
    results = lm_eval.simple_evaluate(
        model=model, tasks=FORMS, task_manager=tasks, bootstrap_iters=0, **options
    )
    return {form: sorted(results["samples"][form], key=lambda row: row["doc_id"]) for form in FORMS}


def same(one: Any, other: Any, rows: int = len(data.made())) -> None:
    """The same prompts, the same texts, and the same floats, exactly."""
    assert set(one) == set(other) == set(FORMS)
    for form in FORMS:
        assert len(one[form]) == len(other[form]) == rows
        for row, twin in zip(one[form], other[form], strict=True):
            assert plain(row) == plain(twin)


def plain(row: dict[str, Any]) -> Any:
    """A row with lists for tuples and arrays, as JSON has it."""
    return json.loads(json.dumps(row, default=lambda array: array.tolist()))


# ----------------------------------------------------------------------------------------------------------
# The same numbers


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 8}, {"batch_size": 5}])
def test_http_gives_the_same_floats(
    path: str, served: Server, tasks: TaskManager, options: dict[str, Any]
) -> None:
    here = samples_of(PyllmLM(path, threads=2, add_bos_token=False), tasks, limit=12)
    there = samples_of(over_http(served, **options), tasks, limit=12)
    same(here, there, 12)
    scores = [score for row in here["arithmetic_choice"] for ((score, _),) in row["resps"]]
    assert len(set(scores)) == 48 and all(-100 < score < 0 for score in scores)


def test_the_commands_write_the_same_samples(path: str, served: Server, tmp_path: Path) -> None:
    own = ["-m", path, "--model-args", "threads=1", "add_bos_token=False"]
    model_args = f"base_url={served.base_url}/completions,model=tiny,tokenizer_backend=remote"
    theirs = ["--model=local-completions", f"--model_args={model_args}"]
    here = start(tmp_path / "here", "from pyllm.eval import main; sys.exit(main())", *own)
    there = start(tmp_path / "there", "from lm_eval.__main__ import cli_evaluate; cli_evaluate()", *theirs)
    same(written(here, tmp_path / "here"), written(there, tmp_path / "there"))


def start(out: Path, code: str, *options: str) -> subprocess.Popen[str]:
    """A command that evaluates all forms."""
    shared = ["--include_path", str(TASKS), "--tasks", *FORMS, "--log_samples", "--output_path", str(out)]
    command = [sys.executable, "-c", f"import sys; {code}", *options, *shared]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def written(command: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    """The samples that it writes, by form and row."""
    shown, _ = command.communicate()
    assert command.returncode == 0 and "exact_match" in shown, shown
    found = {}
    for form in FORMS:
        (file,) = out.rglob(f"samples_{form}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[form] = sorted(rows, key=lambda row: row["doc_id"])
    return found


def test_scores_are_those_of_llm_score_and_of_the_logits(llm: LLM) -> None:
    scores = PyllmLM(llm).loglikelihood([asked(*pair) for pair in PAIRS])
    assert scores == [tuple(llm.score(*pair)) for pair in PAIRS]
    for (logprob, greedy), pair in zip(scores, PAIRS, strict=True):
        before, after = llm._encode_pair(*pair, None)
        logits = llm.logits(before + after)[len(before) - 1 : -1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        # each is rounded to float32 before they are added
        assert logprob == pytest.approx(logprobs[np.arange(len(after)), after].sum(), rel=1e-6)
        assert greedy == (logits.argmax(1) == after).all()


def test_a_context_of_white_space_is_an_empty_one(llm: LLM) -> None:
    (score,) = PyllmLM(llm, add_bos_token=False).loglikelihood([asked(" ", "there")])
    assert score == tuple(llm.score(" ", "there", bos=False)) == tuple(llm.score("", " there"))


def test_texts_longer_than_the_context_are_the_same_over_http(llm: LLM, served: Server) -> None:
    """max_length counts differently there, see PyllmLM."""
    assert len(LONG) > CONTEXT
    here = PyllmLM(llm, add_bos_token=False, max_length=100)
    there = over_http(served, max_length=102)
    texts = [asked(LONG), asked("Hello"), asked("ü" * 100), asked(LONG[:100]), asked(LONG[:101])]
    assert here.loglikelihood_rolling(texts) == there.loglikelihood_rolling(texts)
    pairs = [
        asked(LONG, " Then"),
        asked(LONG[:95], " Then"),
        asked(LONG[:96], " Then"),
        asked("", LONG[:100]),
    ]
    assert here.loglikelihood(pairs) == there.loglikelihood(pairs)
    kwargs = {"until": ["\n"], "max_gen_toks": 20}
    here.max_length = 101
    prompts = [asked(LONG, kwargs), asked(LONG[:80], kwargs), asked(LONG[:82], kwargs)]
    assert here.generate_until(prompts) == there.generate_until(prompts)


def test_a_rolling_score_predicts_each_token_once(llm: LLM) -> None:
    model = PyllmLM(llm, add_bos_token=False)
    ids = llm.encode("Hello there", bos=False)
    (whole,) = model.loglikelihood_rolling([asked("Hello there")])
    assert whole == llm.score([llm.bos_token], ids).logprob
    model.max_length = 4
    parts = [([llm.bos_token], ids[:4]), (ids[3:4], ids[4:8]), (ids[6:8], ids[8:])]
    (windows,) = model.loglikelihood_rolling([asked("Hello there")])
    assert windows == sum(llm.score(*part).logprob for part in parts) != whole


# ----------------------------------------------------------------------------------------------------------
# Generating


def test_sampled_texts_are_the_same_over_http_and_repeats_differ(llm: LLM, served: Server) -> None:
    here, there = PyllmLM(llm, add_bos_token=False), over_http(served, seed=1234)
    kwargs = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 0.8, "top_k": 40}
    texts = [asked("Once", kwargs), asked("One day", kwargs | {"top_p": 0.9}), asked("Once", kwargs)]
    found = here.generate_until(texts)
    assert found == there.generate_until(texts)
    assert found[0] == found[2]
    again = here.generate_until([texts[0]] * 3)
    assert again[0] == found[0] and len(set(again)) == 3


def test_sampling_follows_do_sample(llm: LLM) -> None:
    model = PyllmLM(llm)
    greedy, sampled = {"max_gen_toks": 16, "do_sample": False}, {"max_gen_toks": 16, "temperature": 2.0}
    first, second, third = model.generate_until(
        [asked("Once", each) for each in (greedy, greedy | sampled, sampled)]
    )
    assert first == second != third
    assert first == llm.generate("Once", temperature=0, max_tokens=16).text


def test_generations_stop_at_texts_and_at_eos(llm: LLM) -> None:
    model = PyllmLM(llm)
    (text,) = model.generate_until([asked("Once", {"max_gen_toks": 40})])
    stop = text[10:12]
    assert model.generate_until([asked("Once", {"max_gen_toks": 40, "until": stop})]) == [
        text[: text.find(stop)]
    ]
    (params,) = [model._params({"until": ["", "x"]}, 0)]
    assert params.stop == ("x", "<|im_end|>") and params.max_tokens == 256


def test_what_cannot_be_done_is_an_error(llm: LLM) -> None:
    with pytest.raises(ValueError, match=f"max_length must be from 1 to {CONTEXT}"):
        PyllmLM(llm, max_length=CONTEXT + 1)
    model = PyllmLM(llm, max_length=50)
    with pytest.raises(ValueError, match="generation_kwargs: pyllm has no num_beams"):
        model.generate_until([asked("Once", {"num_beams": 4})])
    with pytest.raises(ValueError, match="max_gen_toks is 50: of 50 that leaves none for a prompt"):
        model.generate_until([asked("Once", {"max_gen_toks": 50})])
    with pytest.raises(ValueError, match="the continuation has no tokens"):
        model.loglikelihood([asked("Hello", "")])
    with pytest.raises(ValueError, match="more than 50 tokens"):
        model.loglikelihood([asked("Hello", LONG)])


def test_nothing_asked_is_nothing_answered(llm: LLM) -> None:
    model = PyllmLM(llm)
    assert model.loglikelihood([]) == model.loglikelihood_rolling([]) == model.generate_until([]) == []
    assert PyllmLM(llm, add_bos_token=False).loglikelihood_rolling([asked("")]) == [0]


def test_progress_is_shown_only_if_asked(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    PyllmLM(llm).loglikelihood([asked("Hello", " there")])
    assert capsys.readouterr() == ("", "")
    PyllmLM(llm, progress=True).loglikelihood([asked("Hello", " there")])
    assert "scores: 100%" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------
# Chats


def test_chat_templates_are_applied(llm: LLM, tasks: TaskManager) -> None:
    model = PyllmLM(llm)
    found = samples_of(model, tasks, apply_chat_template=True, limit=2, fewshot_as_multiturn=True)
    prompt = found["arithmetic_text"][0]["arguments"][0][0]
    assert prompt.startswith("<|im_start|>user:Q:") and prompt.endswith("<|im_end|><|im_start|>assistant:")
    assert model.chat_template(True) == model.chat_template("default") == llm.chat_template
    assert model.chat_template(False) is None
    assert "/" not in model.tokenizer_name and model.tokenizer_name.endswith("tiny.llm")


def test_a_template_without_system_messages_gets_none(tmp_path: Path) -> None:
    refuses = b"{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    file = write_model(tmp_path, template=refuses + b"{{ m.role }}:{{ m.content }}{{ x }};{% endfor %}")
    user = {"role": "user", "content": "Hi"}
    with LLM(file, threads=1) as llm:
        model = PyllmLM(llm, chat_template_args={"x": "!"})
        assert model.apply_chat_template([{"role": "system", "content": "Be"}, user]) == "user:Hi!;"
        with pytest.raises(ValueError, match="no"):
            model.apply_chat_template([{"role": "system", "content": "Be"}])


# ----------------------------------------------------------------------------------------------------------
# The command, and the files of the task


def test_arguments_are_those_of_lm_eval() -> None:
    start = ["run", "--model", "pyllm"]
    assert arguments([]) == start
    assert arguments(["--tasks", "a", "b", "-m", "x y,z=1.llm", "--limit=2"]) == [
        *start, "--model_args", '{"path": "x y,z=1.llm"}', "--tasks", "a", "b", "--limit=2",
    ]  # fmt: skip
    assert arguments(["run", "--model-args", "threads=1", "--num-fewshot", "5"])[3:] == [
        "--model_args", "threads=1", "--num_fewshot", "5",
    ]  # fmt: skip
    assert arguments(["ls", "tasks"]) == ["ls", "tasks"]
    assert with_underscores("--a-b-c=d-e") == "--a_b_c=d-e" and with_underscores("a-b") == "a-b"


def test_a_file_that_is_not_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: PyllmLM(json.loads(sys.argv[-1])["path"]))
    assert main(["-m", "nowhere.llm"]) == 1
    assert capsys.readouterr().err.startswith("pyllm eval: ")


def test_without_lm_eval_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from pyllm.eval import PyllmLM, main\n"
        "try: PyllmLM()\nexcept ImportError as error: print(error)\n"
        "sys.exit(main(['--tasks', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'pyllm[eval]'" in done.stdout and "pip install 'pyllm[eval]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_pyllm_imports_none_of_it() -> None:
    code = "import sys, pyllm; print([m for m in ('lm_eval', 'datasets', 'tqdm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_rows_are_those_that_the_script_makes() -> None:
    rows = [json.loads(line) for line in data.FILE.read_text().splitlines()]
    assert rows == data.made() and len(rows) == 36
    for row in rows:
        a, b = (int(word.strip("?")) for word in row["question"].split() if word.strip("?").isdigit())
        assert row["choices"][row["gold"]] == str(a + b) and len(set(row["choices"])) == 4
