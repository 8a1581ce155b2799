"""Layers with a window keep no more keys and values than their window and a rewind need, and nobody notices:
logits are those of a session that keeps all, bit for bit; a length that is gone is refused, and computed anew
by those who want it."""

from __future__ import annotations

import numpy as np
import pytest
from common import BOS, IM_END, SPECIAL, byte_tokenizer, described, go_back, place_of
from pyllm._llm import ffi, lib
from reference import FP16, INT4, INT8R, make_model, up
from test_engine import KV, Model, Session, linux, plain, some_ids
from test_large import own_memory

from pyllm import LLM, LLMError

PAGE, BATCH, CONTEXT = lib.LLM_PAGE, 16, 1000
MIXED = dict(n_layers=5, windows=(7, 0, 1, 30, 130), context=CONTEXT)
# The keys and values of layers with a window of 9 serve one of 40, others of 3 and of all before
SHARED = dict(
    n_layers=6,
    windows=(9,),
    context=CONTEXT,
    layers=[{}, {}, dict(kv_layer=0, window=40), dict(kv_layer=1, window=0), dict(kv_layer=0, window=3)],
)
SHAPES = {"mixed": MIXED, "shared": SHARED, "all with a window": dict(windows=(20, 5), context=CONTEXT)}
ALL = dict(rewind=CONTEXT)  # nothing is lost
LITTLE = dict(rewind=1, batch=BATCH)


def oldest(session: Session, seq: int = 0) -> int:
    return lib.llm_oldest(session.c, seq)


def is_gone(session: Session, length: int, seq: int = 0) -> bool:
    """Whether cutting back to a length is refused, which changes nothing."""
    before = session.length(seq)
    with pytest.raises(ValueError, match=f"sequence {seq} can be cut to 0 or to .* not to {length}"):
        session.truncate(seq, length)
    return session.length(seq) == before


# ----------------------------------------------------------------------------------------------------------
# Sessions


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("dtype", [FP16, INT8R, INT4])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_keeping_all(name, dtype, kv):
    """Two long texts in turns, in pieces of all sizes; now and then cut back as far as promised, or as
    possible, with other tokens in between."""
    rng, model, how = (
        np.random.default_rng(3),
        Model(make_model(4, dtype=dtype, **SHAPES[name])),
        dict(kv=KV[kv]),
    )
    texts = [some_ids(700, 96, seed) for seed in (1, 2)]
    whole = [model.run(ids, exact=1, **how, **ALL) for ids in texts]
    s = model.session(n_seqs=3, exact=1, **how, **LITTLE)
    at, cuts = [0, 0], 0
    while min(at) < 700:
        seq = int(at[0] >= 700 or (at[1] < 700 and rng.integers(2)))
        if at[seq] and rng.integers(4) == 0:
            s.truncate(seq, max([at[seq] - 1, oldest(s, seq)][rng.integers(2)], 1))
            at[seq], cuts = s.length(seq), cuts + 1
            if rng.integers(2):
                s.forward(some_ids(BATCH, 96, 9), [seq] * BATCH)
                s.truncate(seq, at[seq])
        n = int(rng.integers(1, [4, 90][rng.integers(2)]))
        ids = texts[seq][at[seq] : at[seq] + n]
        assert (s.forward(ids, [seq] * len(ids)) == whole[seq][at[seq] :][:n]).all(), (seq, at)
        at[seq] += len(ids)
        assert at[seq] - 1 - BATCH - 2 * PAGE <= oldest(s, seq) <= max(0, at[seq] - 1)
    assert cuts > 5


def test_what_is_gone_is_refused_and_all_of_it_can_be_dropped():
    model, ids = Model(make_model(4, **MIXED)), some_ids(500, 96)
    whole = model.run(ids, exact=1, **ALL)
    s = model.session(n_seqs=2, exact=1, **LITTLE)
    s.forward(ids)
    least = oldest(s)
    assert 0 < least <= 499 and is_gone(s, least - 1) and is_gone(s, 1)
    with pytest.raises(ValueError, match="not to 1:"):
        s.copy(0, 1, 1)
    assert s.length(1) == 0
    s.truncate(0, 499)
    assert (s.forward(ids[499:]) == whole[499:]).all()
    s.truncate(0, least)
    assert (s.forward(ids[least : least + 3]) == whole[least : least + 3]).all() and is_gone(s, least - 1)
    s.truncate(0, 0)
    assert oldest(s) == 0 and (s.forward(ids[:90]) == whole[:90]).all()
    assert lib.llm_oldest(s.c, 7) == 0


@pytest.mark.parametrize(
    ("shape", "options", "keeps_all"),
    [
        (MIXED, LITTLE, False),
        (MIXED, ALL, True),
        (MIXED, dict(rewind=2**32 - 1), True),
        (MIXED, {}, True),  # 4096
        (dict(context=CONTEXT), LITTLE, True),  # no windows
        (dict(context=CONTEXT, windows=(900,)), LITTLE, True),
        (dict(context=CONTEXT, n_layers=2, windows=(9, 0), layers=[{}, dict(kv_layer=0)]), LITTLE, True),
    ],
)
def test_rewind_says_how_much_is_kept(shape, options, keeps_all):
    s = Model(make_model(4, **shape)).session(**options)
    assert lib.llm_session_options(s.c).rewind == options.get("rewind", lib.LLM_REWIND)
    s.forward(some_ids(CONTEXT, 96), want=bytes(CONTEXT))
    assert (oldest(s) == 0) == keeps_all
    if keeps_all:
        s.truncate(0, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_copies_go_on_as_the_original_does(name):
    model, ids = Model(make_model(4, **SHAPES[name])), some_ids(600, 96)
    whole = model.run(ids, exact=1, **ALL)
    s = model.session(n_seqs=3, exact=1, **LITTLE)
    for length, cut in ((50, 50), (300, 300), (301, 300), (600, 580)):
        s.forward(ids[s.length() : length])
        s.copy(0, 2, cut)
        assert s.length(2) == cut and oldest(s, 2) == oldest(s, 0)
        assert (s.forward(ids[cut : cut + 9], [2] * len(ids[cut : cut + 9])) == whole[cut : cut + 9]).all()
    s.copy(0, 1, 0)
    assert s.length(1) == oldest(s, 1) == 0


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("name", SHAPES)
def test_states_know_what_they_lack(name, kv):
    """From a session that keeps little, or all, to such ones; for all lengths that there are, or the last."""
    data, how = make_model(4, **SHAPES[name]), dict(kv=KV[kv], exact=1)
    model, ids = Model(data), some_ids(600, 96)
    whole = model.run(ids, **how, **ALL)

    def size(length: int, least: int) -> int:
        return lib.llm_kv_size(*described(data), KV[kv], length, least)

    assert size(500, 0) == lib.llm_kv_bytes(model.c, KV[kv]) * up(500, PAGE) > size(500, 400) > size(500, 500)
    for source in (ALL, LITTLE):
        s = model.session(**how, **source)
        s.forward(ids[:520])
        for length, least in ((500, oldest(s)), (500, 500), (510, 505)):
            state = bytearray(b"\xff" * (size(length, least) + 8))
            s.check(lib.llm_state(s.c, 0, length, least, ffi.from_buffer(state), 0, s.err, 512))
            assert state[-8:] == b"\xff" * 8 and state[-16:-8] != b"\xff" * 8
            for to in (ALL, LITTLE):
                other = model.session(n_seqs=2, **how, **to)
                other.forward(some_ids(200, 96, 3), [1] * 200)
                other.check(lib.llm_state(other.c, 1, length, least, ffi.from_buffer(state), 1, s.err, 512))
                kept = oldest(other, 1)
                assert other.length(1) == length and least <= kept <= max(least, length - 1)
                assert (other.forward(ids[length:560], [1] * (560 - length)) == whole[length:560]).all()
                other.truncate(1, max(oldest(other, 1), 1))
                at = other.length(1)
                assert (other.forward(ids[at : at + 5], [1] * 5) == whole[at : at + 5]).all()
                if kept > 1:
                    assert is_gone(other, kept - 1, 1)
    for length, least, words in (
        (500, oldest(s) - 1, "cut back to"),
        (500, 501, "500 .* 501"),
        (9, 9, "not to 9"),
    ):
        with pytest.raises(ValueError, match=words):
            s.check(lib.llm_state(s.c, 0, length, least, ffi.from_buffer(state), 0, s.err, 512))
    assert s.length() == 520


def test_tokens_that_are_taken_back_leave_the_sequence_as_it_was_or_drop_it():
    """Of one batch they can always be; of more tokens than are kept for that the sequence is dropped."""
    data = bytearray(make_model(7, n_layers=2, windows=(9, 30), context=CONTEXT))
    embed = place_of(bytes(data), lib.LLM_EMBED)
    tile = np.frombuffer(data, "<u2", embed.size // 2, embed.offset).reshape(-1, embed.stride, 16)
    tile[0, :, 5] = 0x7E00  # token 5 is NaN
    model, ids = Model(bytes(data)), [i for i in some_ids(600, 96) if i != 5]
    whole = model.run(ids[:500], exact=1, **ALL)
    s = model.session(n_seqs=2, exact=1, **LITTLE)
    s.forward(ids[:400] + ids[:300], [0] * 400 + [1] * 300)
    for n in (1, BATCH):
        with pytest.raises(ValueError, match="not finite"):
            s.forward([5] * n)
        assert s.length() == 400
        s.truncate(0, 399)
        assert (s.forward(ids[399:402]) == whole[399:402]).all()
        s.truncate(0, 400)
    with pytest.raises(ValueError, match="not finite"):
        s.forward(ids[400:500] + [5], want=bytes(100) + b"\1")
    assert s.length() == oldest(s) == 0 and s.length(1) == 300
    assert (s.forward(ids[:90]) == whole[:90]).all()
    assert (s.forward(ids[300:310], [1] * 10) == whole[300:310]).all()


@linux
@plain
def test_memory_is_taken_for_what_is_kept_only():
    """Room for 448 of 3,000 positions of 16 KiB: behind those nothing is taken any more."""
    data = make_model(4, n_layers=2, n_kv_heads=4, head_dim=512, windows=(64,), context=1 << 20)
    grown = {}
    for rewind in (64, 1 << 20):
        s = Model(data).session(rewind=rewind, batch=256)
        s.forward(some_ids(500, 96), want=bytes(500))
        before = own_memory()
        s.forward(some_ids(2500, 96), want=bytes(2500))
        grown[rewind] = own_memory() - before
    assert grown[64] < 4 << 20 < 36 << 20 < grown[1 << 20] < 48 << 20


# ----------------------------------------------------------------------------------------------------------
# Python


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    sections = {
        **byte_tokenizer(lib.LLM_ADD_BOS, BOS, IM_END),
        lib.LLM_CHAT_TEMPLATE: b"{{ messages[0].content }}",
    }
    size = len(SPECIAL) + 256
    data = make_model(5, dtype=INT8R, context=3000, vocab_size=size, windows=(20, 0), sections=sections)
    file = tmp_path_factory.mktemp("windows") / "tiny.llm"
    file.write_bytes(data)
    return str(file)


@pytest.fixture
def little(path):
    with LLM(path, threads=1, rewind=1) as llm:
        yield llm


def test_prompts_that_begin_as_an_earlier_one_did_long_ago_are_computed_again(little, path):
    """A text of 1,500 tokens, then others that share its first 20 to 1,490 tokens; several at once."""
    with LLM(path, threads=1, rewind=3000) as keeps_all:
        text = "".join(chr(97 + i % 23 + i % 3) for i in range(1500))
        prompts = [text, text[:20] + "x", text[:1490] + "y", "0", text[:700], text + "z"]
        for prompt in [*prompts, *prompts[::-1], prompts]:
            assert little.generate(prompt, max_tokens=8, seed=1) == keeps_all.generate(
                prompt, max_tokens=8, seed=1
            )


def test_sessions_go_back_as_far_as_one_likes(little, tmp_path):
    ids = np.random.default_rng(1).integers(0, 256, 900).tolist()
    whole = little.logits(ids)
    go_back(little, ids, whole, tmp_path)
    size = (tmp_path / "s.kv").stat().st_size
    with LLM(little.path, threads=1).session() as s:
        s.eval(ids)
        s.save(tmp_path / "all.kv")
        assert (tmp_path / "all.kv").stat().st_size > 1.2 * size
        s.load(tmp_path / "s.kv")
        s.truncate(10)
        assert np.array_equal(s.eval(ids[10:30], all=True), whole[10:30])


def test_saved_sessions_of_version_2_lack_nothing_and_others_are_checked(path, tmp_path):
    file, ids = tmp_path / "s.kv", list(range(200))
    with LLM(path, threads=1).session() as s:
        s.eval(ids)
        s.save(file)
        data = file.read_bytes()
        for version, least, error in (
            (2, 0, None),
            (2, 1, "version 2"),
            (3, 201, "200 .* 201"),
            (3, 200, "cut short"),
        ):
            file.write_bytes(
                data[:8] + version.to_bytes(4, "little") + least.to_bytes(4, "little") + data[16:]
            )
            if error:
                with pytest.raises(LLMError, match=error):
                    s.load(file)
            else:
                s.load(file)
                assert s.tokens == ids


def test_draft_models_with_windows_go_back_too(path):
    with LLM(path, threads=1, rewind=1) as draft, LLM(path, threads=1, draft=draft, rewind=1) as drafted:
        with LLM(path, threads=1, draft=False) as plain:
            for prompt in ("a" * 900, "a" * 30, "b" * 500, "a" * 899):
                got, want = (x.generate(prompt, max_tokens=12, temperature=0) for x in (drafted, plain))
                assert got.tokens == want.tokens and got.accepted_tokens > 0


@pytest.mark.parametrize("rewind", [0, -1, 2**32, 1.5, True, "1"])
def test_rewind_is_a_number_of_tokens(path, rewind):
    with pytest.raises((TypeError, ValueError), match="rewind"):
        LLM(path, rewind=rewind)
