"""How keys and values are kept, and whether fp16 files are computed exactly: kv= and exact= of LLM, --kv and
--exact of the command."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from common import BOS, COMMAND, IM_END, SPECIAL, byte_tokenizer
from pyllm._llm import lib
from reference import FP16, INT4, INT8R, log_softmax, make_model
from test_engine import KV, Model, some_ids

from pyllm import LLM, LLMError

VOCAB = 256 + len(SPECIAL)
IDS = some_ids(80, 256)


def tiny(dtype: int) -> bytes:
    sections = byte_tokenizer(lib.LLM_ADD_BOS, BOS, IM_END)
    return make_model(5, dtype=dtype, vocab_size=VOCAB, context=700, sections=sections)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    found = {dtype: folder / f"{dtype}.llm" for dtype in (FP16, INT8R, INT4)}
    for dtype, path in found.items():
        path.write_bytes(tiny(dtype))
    return found


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kv", ["fp16", "int8"])
@pytest.mark.parametrize("dtype", [FP16, INT8R, INT4])
def test_logits_are_those_of_a_session_opened_so(files, dtype, kv, exact):
    model = Model(files[dtype].read_bytes())
    options = dict(kv=KV[kv], exact=int(exact))
    want = model.run(IDS, **options)
    llm = LLM(files[dtype], kv=kv, exact=exact)
    assert np.array_equal(llm.logits(IDS), want)
    with llm.session() as session:
        last = model.session(**options).forward(IDS, want=bytes(79) + b"\1")
        assert np.array_equal(session.eval(IDS), last[0])
    default = "fp16" if dtype == FP16 else "int8"
    usual = LLM(files[dtype], exact=exact).logits(IDS)
    assert np.array_equal(usual, want) == (kv == default)


def test_kinds_that_are_none_are_refused_by_name(files):
    for bad in ("int4", "FP16", "", 1, True, [], b"fp16"):
        with pytest.raises(
            ValueError, match=f'kv must be None, "fp16" or "int8", not {re.escape(repr(bad))}'
        ):
            LLM(files[INT8R], kv=bad)


def test_pickling_keeps_both(files):
    for dtype, options in ((INT8R, dict(kv="fp16")), (FP16, dict(kv="int8", exact=True))):
        llm = LLM(files[dtype], **options)
        want = llm.logits(IDS)
        assert np.array_equal(pickle.loads(pickle.dumps(llm)).logits(IDS), want)
        assert not np.array_equal(LLM(files[dtype]).logits(IDS), want)


def test_exact_prompts_are_the_same_alone_and_in_a_batch(files):
    """40 tokens alone and beside others, that come at the same time, bit for bit."""
    texts = [some_ids(40, 256, seed) for seed in range(6)]
    llm = LLM(files[FP16], exact=True)
    alone = [LLM(files[FP16], exact=True).logits(ids) for ids in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        for got, want in zip(pool.map(llm.logits, texts), alone, strict=True):
            assert np.array_equal(got, want)
    one_by_one = Model(files[FP16].read_bytes()).session(exact=1)  # few tokens never are rounded
    assert np.array_equal(np.concatenate([one_by_one.forward([i]) for i in texts[0]]), alone[0])
    together = Model(files[FP16].read_bytes()).session(n_seqs=6, exact=1)
    seqs = [i for i, ids in enumerate(texts) for _ in ids]
    assert np.array_equal(together.forward(sum(texts, []), seqs), np.concatenate(alone))


@pytest.mark.parametrize("dtype", [FP16, INT8R])
def test_saved_sessions_of_another_kind_are_refused(files, tmp_path, dtype):
    path = tmp_path / "s.kv"
    for kv, other in (("fp16", "int8"), ("int8", "fp16")):
        llm, different = LLM(files[dtype], kv=kv), LLM(files[dtype], kv=other)
        with llm.session() as session, llm.session() as again, different.session() as refusing:
            session.eval(IDS)
            session.save(path)
            again.load(path)
            assert np.array_equal(again.eval([7]), session.eval([7]))
            refusing.eval([1, 2])
            message = f"s.kv: its keys and values are {kv}, not {other} as in this session"
            with pytest.raises(LLMError, match=message):
                refusing.load(path)
            assert refusing.tokens == [1, 2]


# ---------------------------------------------------------------------------------------------------------
# The command


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    if not COMMAND:
        pytest.skip("the command pyllm is not installed, and PYLLM_BINARY does not name one")
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, errors="surrogateescape", timeout=60
    )


same_build = pytest.mark.skipif(
    bool(os.environ.get("PYLLM_EMULATED")), reason="the program is built for another processor"
)
TEXT = "The quick brown fox jumps over the lazy dog, twice."


@same_build
@pytest.mark.parametrize(
    ("dtype", "flags", "options"),
    [
        (INT8R, ["--kv", "fp16"], dict(kv="fp16")),
        (INT8R, ["--kv=int8"], dict(kv="int8")),
        (FP16, ["--kv", "int8"], dict(kv="int8")),
        (FP16, ["--exact"], dict(exact=True)),
        (INT8R, [], {}),
        (FP16, [], {}),
    ],
)
def test_the_command_measures_what_python_computes(files, tmp_path, dtype, flags, options):
    """A loss printed with 5 decimals tells how keys were kept: that of another kind is further away."""
    (tmp_path / "text").write_text(TEXT)
    done = run("perplexity", "-m", files[dtype], tmp_path / "text", "--context", 128, *flags)
    assert done.returncode == 0 and done.stderr == ""
    got = float(re.findall(r"\d+\.\d+", done.stdout)[0])

    def loss(**options) -> float:
        llm = LLM(files[dtype], **options)
        ids = llm.encode(TEXT)
        logprobs = log_softmax(llm.logits(ids).astype(np.float64))
        return -float(np.mean([logprobs[i - 1, ids[i]] for i in range(1, len(ids))]))

    own = abs(got - loss(**options))
    assert own < (1e-4 if "PYLLM_BINARY" in os.environ else 2e-5)  # another build may sum in another order
    if "kv" in options:
        other = {"fp16": "int8", "int8": "fp16"}[options["kv"]]
        assert own < 0.5 * abs(got - loss(kv=other))


@same_build
def test_the_command_generates_what_python_does(files):
    made = {}
    for kv in ("fp16", "int8"):
        flags = ["--kv", kv, "--seed", 1, "--no-echo"]
        done = run("generate", "-m", files[INT8R], TEXT, "-n", 60, *flags)
        assert done.returncode == 0, done.stderr
        made[kv] = done.stdout.encode(errors="surrogateescape").decode(errors="replace").rstrip("\n")
        text = LLM(files[INT8R], kv=kv).generate(TEXT, max_tokens=60, seed=1).text
        assert made[kv] == text.rstrip("\n")
    assert made["fp16"] != made["int8"]


@pytest.mark.parametrize("command", ["generate", "chat", "next", "perplexity", "bench"])
def test_the_command_refuses_other_kinds_by_name(files, tmp_path, command):
    (tmp_path / "text").write_text(TEXT)
    text = {"generate": [TEXT], "next": [TEXT], "perplexity": [tmp_path / "text"]}.get(command, [])
    for bad in ("int4", "FP16", "default", ""):
        done = run(command, "-m", files[INT8R], *text, "--kv", bad)
        assert done.returncode == 2 and done.stdout == ""
        assert "--kv" in done.stderr and (bad == "" or f"'{bad}'" in done.stderr), done.stderr
