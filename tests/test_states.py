"""Layers that have a state in place of keys and values: short convolutions and the gated delta rule. A state
cannot be cut, so some are kept, and a sequence says which lengths it can be cut to; what lies behind is
computed again, and nobody notices: logits are those of the whole text, bit for bit."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest
from common import BOS, COMMAND, IM_END, SPECIAL, byte_tokenizer, described, go_back, place_of
from pyllm._llm import ffi, lib
from reference import (
    DELTA_RULE,
    FP16,
    INT4,
    INT8,
    INT8R,
    QKV_BIAS,
    SHORT_CONV,
    edited,
    make_model,
    up,
)
from test_drafts import QUOTED, tiny
from test_engine import KV, MODELS, Model, Session, isas, some_ids
from test_format import refusal

from pyllm import LLM, Policy

PAGE, STATES, CONTEXT = lib.LLM_PAGE, lib.LLM_STATES, 2000
DELTA = dict(
    mixer=DELTA_RULE, conv_kernel=4, delta_key_heads=2, delta_heads=4, delta_key_dim=12, delta_value_dim=20
)
CONV = dict(mixer=SHORT_CONV, conv_kernel=3)
SHAPES = {
    "convolutions": dict(n_layers=3, layers=[CONV, {}, CONV], context=CONTEXT),
    "delta rule": dict(n_layers=3, layers=[DELTA, DELTA, {}], context=CONTEXT),
    "both, and a window": dict(n_layers=3, layers=[CONV, DELTA, dict(window=30)], context=CONTEXT),
    "no attention": dict(n_layers=2, layers=[DELTA, CONV], context=CONTEXT),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def cut(session: Session, length: int, seq: int = 0) -> int:
    return lib.llm_cut(session.c, seq, length)


def lengths(session: Session, seq: int = 0) -> list[int]:
    """All that a sequence can be cut to, the longest first."""
    found = [cut(session, 1 << 40, seq)]
    while found[-1]:
        found.append(cut(session, found[-1] - 1, seq))
    return found[:-1]


def state(
    session: Session, n: int, data: bytes, kv: int, set: bytes | None = None, seq: int = 0
) -> bytearray:
    """The first n positions of a sequence moved out, or `set` moved in."""
    size = lib.llm_kv_size(*described(data), kv, n, n)
    room = bytearray(set or bytes(size))
    given = ffi.from_buffer(room)
    session.check(lib.llm_state(session.c, seq, n, n, given, set is not None, session.err, 512))
    return room


# ----------------------------------------------------------------------------------------------------------
# Sessions


@pytest.mark.parametrize("dtype", [FP16, INT8R, INT4])
@every_shape
def test_logits_are_those_of_the_whole_text_however_it_comes_and_is_cut(name, dtype):
    """Two texts in turns, in pieces of all sizes, in batches of 16; now and then cut back to one of
    the lengths that there are, or copied from there, with other tokens in between."""
    rng, model = np.random.default_rng(3), Model(make_model(4, dtype=dtype, **SHAPES[name]))
    texts = [some_ids(700, 96, seed) for seed in (1, 2)]
    whole = [model.run(ids, exact=1) for ids in texts]
    s = model.session(n_seqs=3, exact=1, batch=16)
    at, cuts = [0, 0], 0
    while min(at) < 700:
        seq = int(at[0] >= 700 or (at[1] < 700 and rng.integers(2)))
        if at[seq] and rng.integers(4) == 0:
            at[seq] = cut(s, int(rng.integers(max(0, at[seq] - 100), at[seq])), seq)
            if rng.integers(2):
                s.copy(seq, 2, at[seq])
                s.truncate(seq, 0)
                s.copy(2, seq, at[seq])
            s.truncate(seq, at[seq])
            cuts += at[seq] > 0
            if rng.integers(2):
                s.forward(some_ids(16, 96, 9), [seq] * 16)
                s.truncate(seq, at[seq])
        n = int(rng.integers(1, [4, 90][rng.integers(2)]))
        ids = texts[seq][at[seq] : at[seq] + n]
        assert (s.forward(ids, [seq] * len(ids)) == whole[seq][at[seq] :][:n]).all(), (seq, at)
        at[seq] += len(ids)
        assert s.length(seq) == at[seq] == lengths(s, seq)[0]
    assert cuts > 5


@every_shape
def test_a_call_leaves_the_state_before_it_and_one_at_the_last_page_end_in_it(name):
    model, ids = Model(make_model(4, **SHAPES[name])), some_ids(400, 96)
    whole = model.run(ids, exact=1)
    s = model.session(exact=1, rewind=1000)
    s.forward(ids[:300])
    assert lengths(s) == [300, 256] and cut(s, 299) == 256 and cut(s, 255) == 0
    s.forward(ids[300:310])
    assert lengths(s) == [310, 300, 256] and lib.llm_oldest(s.c, 0) == 256
    for refused in (309, 301, 255, 1):
        with pytest.raises(ValueError, match=f"cut to 0 or to {cut(s, refused)} positions, not to {refused}"):
            s.truncate(0, refused)
        with pytest.raises(ValueError, match=f"not to {refused}"):
            s.copy(0, 0, refused)
    assert s.length() == 310
    for length in (300, 256):
        s.truncate(0, length)
        assert (s.forward(ids[length : length + 3]) == whole[length : length + 3]).all()
    s.truncate(0, 0)
    assert lengths(s) == [] and lib.llm_oldest(s.c, 0) == 0 and cut(s, 9, 7) == 0
    assert (s.forward(ids[:70]) == whole[:70]).all(), "after a drop a sequence starts anew"


def test_states_are_kept_at_ends_of_pages_the_more_the_nearer():
    """Token by token; the last page's end is always there, the others lie apart: a cut costs no more than
    a third of the text."""
    s, ids = Model(make_model(4, **SHAPES["convolutions"])).session(), some_ids(1999, 96)
    for i, token in enumerate(ids, 1):
        s.forward([token])
        found = lengths(s)
        assert len(found) <= STATES and found[0] == i and (i == 1 or found[1] == i - 1)
        assert all(length % PAGE == 0 for length in found[2:])
        if i > PAGE + 2:
            assert i // PAGE * PAGE in found
    ends = sorted(length for length in found if length % PAGE == 0)
    gaps = np.diff([0, *ends])
    assert len(ends) == STATES - 2 and max(gaps) < len(ids) / 3 and max(gaps[2:]) < 400


def test_a_call_that_fails_or_is_taken_back_leaves_the_sequence_as_it_was():
    """Over several batches, and ends of pages."""
    for shape in SHAPES.values():
        data = bytearray(make_model(7, **shape | dict(dtypes={"embed": FP16})))
        embed = place_of(bytes(data), lib.LLM_EMBED)
        tile = np.frombuffer(data, "<u2", embed.size // 2, embed.offset).reshape(-1, embed.stride, 16)
        tile[0, :, 5] = 0x7E00  # token 5 is NaN
        model, ids = Model(bytes(data)), [i for i in some_ids(400, 96) if i != 5]
        whole = model.run(ids, exact=1)
        s = model.session(n_seqs=2, exact=1, batch=16, rewind=400)
        s.forward(ids[:100] + ids[:30], [0] * 100 + [1] * 30)
        before = lengths(s), lengths(s, 1)
        for n in (0, 10, 90):
            with pytest.raises(ValueError, match="not finite"):
                s.forward(
                    [*ids[100 : 100 + n], 5, *ids[30:40]], [0] * (n + 1) + [1] * 10, bytes(n) + b"\1" * 11
                )
            assert s.length() == 100 and s.length(1) == 30
            assert lengths(s)[0] == 100 and lengths(s, 1)[0] == 30
        assert set(lengths(s)) <= set(before[0])
        got = s.forward(ids[100:200] + ids[30:40], [0] * 100 + [1] * 10)
        assert (got[:100] == whole[100:200]).all() and (got[100:] == whole[30:40]).all()


@pytest.mark.parametrize("kv", KV)
@every_shape
def test_states_move_between_sessions_and_are_counted(name, kv):
    data, how = make_model(4, **SHAPES[name]), dict(kv=KV[kv], exact=1)
    model, ids = Model(data), some_ids(400, 96)
    whole = model.run(ids, **how)
    s, other = model.session(**how), model.session(n_seqs=2, batch=16, **how)
    s.forward(ids[:300])
    other.forward(some_ids(90, 96, 3), [1] * 90)
    for length in (300, 256):
        moved = state(s, length, data, KV[kv])
        state(other, length, data, KV[kv], moved, seq=1)
        assert lengths(other, 1) == [length] and state(other, length, data, KV[kv], seq=1) == moved
        assert (other.forward(ids[length : length + 40], [1] * 40) == whole[length : length + 40]).all()
        other.truncate(1, length)
        assert (other.forward(ids[length : length + 9], [1] * 9) == whole[length : length + 9]).all()
    with pytest.raises(ValueError, match="not to 299"):
        state(s, 299, data, KV[kv])
    counts = ffi.new("llm_counts *")
    assert lib.llm_count(*described(data), counts, s.err, 512) == 0
    numbers = 0
    for layer in SHAPES[name]["layers"]:
        channels = {SHORT_CONV: 64, DELTA_RULE: 2 * 2 * 12 + 4 * 20}.get(layer.get("mixer"), 0)
        heads = 4 * 12 * 64 if layer.get("mixer") == DELTA_RULE else 0
        numbers += up((layer.get("conv_kernel", 1) - 1) * channels + heads, 16)
    assert counts.state == 4 * numbers
    size = [lib.llm_kv_size(*described(data), KV[kv], n, 0) for n in (0, 1, 65)]
    page = PAGE * lib.llm_kv_bytes(model.c, KV[kv])
    assert size == [0, page + counts.state, 2 * page + counts.state]
    read = lib.llm_kv_read(*described(data), KV[kv], 1)
    assert read == lib.llm_kv_bytes(model.c, KV[kv]) + counts.state


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", ["gated delta rule", "short convolutions"])
def test_many_sequences_in_any_order_and_on_any_number_of_threads(name, isa):
    """Tokens of eight texts in random order, so that neighbours in a text lie apart, in calls of any size."""
    rng, model = np.random.default_rng(1), Model(make_model(3, dtype=INT8, **MODELS[name]))
    texts = [some_ids(90, 96, seed) for seed in range(8)]
    whole = [model.run(ids, isa) for ids in texts]
    for threads in (1, 3):
        s, order = (
            model.session(isa, n_seqs=8, threads=threads, batch=50),
            rng.permutation(np.repeat(range(8), 90)),
        )
        at = [0] * 8
        for part in np.split(order, np.sort(rng.integers(0, len(order), 9))):
            ids, seqs, want = [], part.tolist(), []
            for seq in seqs:
                ids.append(texts[seq][at[seq]])
                want.append(whole[seq][at[seq]])
                at[seq] += 1
            if ids:
                assert (s.forward(ids, seqs) == np.array(want)).all()


@pytest.mark.parametrize("rate", [3.0, np.nan, np.inf])
def test_a_state_that_grows_without_bound_is_an_error(rate):
    """It is multiplied by exp(rate) or more with every token: not finite in the end, and that is told."""
    data = bytearray(make_model(4, **SHAPES["delta rule"]))
    place = place_of(bytes(data), lib.LLM_DECAY)
    np.frombuffer(data, "<f4", place.cols, place.offset)[4:] = rate
    s = Model(bytes(data)).session()
    with pytest.raises(ValueError, match="not finite"):
        s.forward(some_ids(400, 96))
    assert s.length() == 0


# ----------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    ("layer", "values", "why"),
    [
        (0, dict(mixer=3), "layer 0: positions mixed by kind 3: made by a newer version"),
        (0, dict(conv_kernel=1), "layer 0: conv_kernel is 1, not 2 to 16"),
        (0, dict(conv_kernel=17), "layer 0: conv_kernel is 17, not 2 to 16"),
        (0, dict(n_heads=1), "layer 0: n_heads is 1, in a layer that has none"),
        (0, dict(window=9), "layer 0: window is 9, in a layer that has none"),
        (0, dict(delta_key_heads=1), "layer 0: delta_key_heads is 1, in a layer that has none"),
        (0, dict(attn_cap=1.0), "layer 0: attn_cap is 1, and no attention"),
        (0, dict(flags=QKV_BIAS), "layer 0: a flag of attention, in a layer that has none"),
        (1, dict(kv_layer=0), "layer 1: keys and values of layer 0, and no attention"),
        (1, dict(delta_heads=3), "layer 1: 3 value heads on 2 key heads"),
        (1, dict(delta_key_dim=0), "layer 1: delta_key_dim is 0, not 1 to 1024"),
        (1, dict(delta_value_dim=1025), "layer 1: delta_value_dim is 1025, not 1 to 1024"),
        (1, dict(delta_key_heads=0), "layer 1: delta_key_heads is 0, not 1 to 4096"),
        (1, dict(attn_scale=float("nan")), "layer 1: attn_scale is nan"),
        (2, dict(conv_kernel=3), "layer 2: conv_kernel is 3, in a layer that has none"),
        (2, dict(delta_value_dim=3), "layer 2: delta_value_dim is 3, in a layer that has none"),
        (2, dict(n_heads=0), "layer 2: n_heads is 0, not 1 to 4096"),
        (2, dict(kv_layer=1), "layer 2: its kv heads are not those of layer 1"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(layer, values, why):
    data = make_model(layers=[CONV, DELTA, {}], n_layers=3, flags=QKV_BIAS)
    assert why in refusal(edited(data, layer, **values))


# ----------------------------------------------------------------------------------------------------------
# Python, and the command


@pytest.fixture(scope="module", params=SHAPES)
def path(request, tmp_path_factory) -> str:
    sections = {
        **byte_tokenizer(lib.LLM_ADD_BOS, BOS, IM_END),
        lib.LLM_CHAT_TEMPLATE: b"{{ messages[0].content }}",
    }
    data = make_model(
        5, dtype=INT8R, vocab_size=len(SPECIAL) + 256, sections=sections, **SHAPES[request.param]
    )
    file = tmp_path_factory.mktemp("states") / "tiny.llm"
    file.write_bytes(data)
    return str(file)


def test_prompts_that_begin_alike_are_computed_from_where_there_is_a_state(path):
    """A text of 1,500 tokens, then others that share its first 20 to 1,490 tokens; several at once. Of a text
    that is the same but for its end no more than a page is computed again."""
    text = "".join(chr(97 + i % 23 + i % 3) for i in range(1500))
    prompts = [text, text[:20] + "x", text[:1490] + "y", "0", text[:700], text + "z"]

    def new(prompt: Any) -> Any:
        with LLM(path, threads=1) as llm:
            return llm.generate(prompt, max_tokens=8, temperature=0)

    alone = {prompt: new(prompt).tokens for prompt in prompts}
    with LLM(path, threads=1) as llm:
        for prompt in [*prompts, *prompts[::-1], prompts]:
            done = llm.generate(prompt, max_tokens=8, temperature=0)
            for one, given in zip(
                *([done], [prompt]) if isinstance(prompt, str) else (done, prompt), strict=True
            ):
                assert one.tokens == alone[given]
    with LLM(path, threads=1) as llm:
        llm.generate(text, max_tokens=1)
        done = llm.generate(text[:-1] + "!", max_tokens=1)
        assert 1500 - 2 * PAGE < done.cached_tokens < 1501 and done.cached_tokens % PAGE == 0


def test_sessions_go_back_as_far_as_one_likes(path, tmp_path):
    ids = np.random.default_rng(1).integers(0, 256, 900).tolist()
    with LLM(path, threads=1) as llm:
        go_back(llm, ids, llm.logits(ids), tmp_path)


def test_what_several_began_with_survives_a_restart(path, tmp_path):
    """Of a text that others began like, what they had of it is written; a new process begins with that."""
    start, known = "".join(chr(97 + i % 23 + i % 3) for i in range(500)), []
    with LLM(path, threads=1) as llm:
        alone = {end: llm.generate(start + end, max_tokens=9, temperature=0).tokens for end in "1234"}
    for ends in ("12", "34"):
        with LLM(path, threads=1, policy=Policy(folder=tmp_path / "shelf")) as llm:
            for end in ends:
                done = llm.generate(start + end, max_tokens=9, temperature=0)
                known.append(done.cached_tokens)
                assert done.tokens == alone[end]
            llm._batch().shelve()
    assert known == [0, *[500 // PAGE * PAGE] * 3]


@pytest.mark.parametrize("name", ["convolutions", "delta rule"])
def test_drafts_change_nothing(name, tmp_path):
    """Guesses that are wrong cost a state, and those before them are run again with the next token."""
    (tmp_path / "tiny.llm").write_bytes(tiny(5, layers=SHAPES[name]["layers"], n_layers=3))
    (tmp_path / "small.llm").write_bytes(tiny(7, dim=32, ffn_dim=64, n_layers=2, layers=[CONV]))
    path, n_accepted, n_wrong = tmp_path / "tiny.llm", 0, 0
    with LLM(path, threads=1, draft=False) as plain, LLM(path, threads=1) as drafting:
        for seed in range(6):
            params = dict(temperature=[0, 0.5][seed % 2], seed=seed, max_tokens=150)
            want, got = (llm.generate(QUOTED[seed:], **params) for llm in (plain, drafting))
            assert got.tokens == want.tokens and got.text == want.text
            n_accepted += got.accepted_tokens
            n_wrong += got.drafted_tokens - got.accepted_tokens
        assert n_accepted > 20 and n_wrong > 5
        with LLM(tmp_path / "small.llm", threads=1) as draft, LLM(path, threads=1, draft=draft) as by_model:
            for prompt in (QUOTED, QUOTED[:40], QUOTED + QUOTED):
                want, got = (llm.generate(prompt, temperature=0, max_tokens=60) for llm in (plain, by_model))
                assert got.tokens == want.tokens and got.drafted_tokens > 0
    if COMMAND:
        texts = [
            subprocess.run(
                [
                    COMMAND,
                    "generate",
                    "-m",
                    path,
                    "-t",
                    "0.5",
                    "--seed",
                    "1",
                    "-n",
                    "150",
                    "--draft",
                    how,
                    QUOTED,
                ],
                capture_output=True,
                check=True,
            ).stdout
            for how in ("off", "lookup", tmp_path / "small.llm")
        ]
        assert texts[0] == texts[1] == texts[2] and len(texts[0]) > len(QUOTED) + 100


def test_info_says_what_layers_have_in_place_of_attention(path):
    if not COMMAND:
        pytest.skip("no command")
    out = subprocess.run([COMMAND, "info", "-m", path], capture_output=True, text=True, check=True).stdout
    assert "with a state      gated " in out and f"for the {STATES} that are kept\n" in out
