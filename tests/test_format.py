"""The flat file, format 4: what a version does not know is refused, with a sentence that says so; layers that
contradict themselves or each other; checksums; and files that must open for ever (tests/data)."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from common import C_FLAGS, COMMAND, CSRC, ENGINE, described
from pyllm._llm import ffi, lib
from reference import (
    CHECKSUMS,
    CHUNKED,
    EXPERTS,
    GELU,
    HAS_CHECKSUMS,
    HEADER,
    IDS,
    INPUT_NORM,
    INT8,
    LAYER,
    LAYER_NORM,
    LAYER_SCALED,
    NO_PRE_NORM,
    NORM_BIAS,
    ONE_NORM,
    OUT_GATE,
    OUT_GATE_HEAD,
    OUT_GATE_SOFTPLUS,
    OUTPUT_BIAS,
    PARALLEL,
    POSITION_TABLE,
    POST_NORM,
    QK_NORM,
    QK_NORM_EACH,
    QK_NORM_LATE,
    QK_NORM_WHOLE,
    ROUTER_BEST,
    ROUTER_BIAS,
    ROUTER_NORMALIZE,
    ROUTER_SCALED,
    SHARED_GATE,
    SHARED_NORMS,
    TIED,
    V_IS_K,
    V_NORM,
    Reference,
    Rounding,
    edited,
    layer_shapes,
    make_model,
    once_shapes,
    tensor_bytes,
    up,
)
from test_engine import Model, every_dtype, some_ids

import pyllm

NEWER = "made by a newer version of pyllm"
# Layers of every kind: dense, with experts, of other head sizes, with the keys of another one
MIXED = dict(
    n_layers=4,
    n_experts=4,
    n_active=2,
    shared_dim=24,
    flags=ROUTER_NORMALIZE | QK_NORM,
    sections={1: b"name", 2: b"about"},
    layers=[
        dict(n_experts=0),
        dict(head_dim=24, n_heads=2),
        dict(kv_layer=0),
        dict(flags=POST_NORM | SHARED_GATE),
    ],
)


def refusal(data: bytes) -> str:
    """Why a file does not open; "" when it does."""
    try:
        Model(data)
    except ValueError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------------------------------
# What is not known


def test_every_unknown_feature_is_refused_and_says_so():
    """Required bits of the header, and flags of a layer that the header requires as well."""
    data = make_model(**MIXED)
    assert not refusal(data)
    h, flags = Reference(data).h, Reference(data).about[1]["flags"]
    known = {bit for bit in range(64) if 1 << bit in ffi.typeof("enum llm_feature").elements}
    assert known == set(range(35))
    for bit in set(range(64)) - known:
        more = edited(data, required=h["required"] | 1 << bit)
        assert f"header: it needs feature {bit}, which is not known here: {NEWER}" in refusal(more)
        why = refusal(edited(data, 1, flags=flags | 1 << bit))
        assert f"layer 1: it needs feature {bit}, which is not known here: {NEWER}" in why


def test_every_optional_bit_is_passed_over():
    data = make_model(**MIXED)
    want = Model(data).run(ids := some_ids(10, 96))
    for optional in [*(1 << bit for bit in range(64)), 2**64 - 1]:
        assert (Model(edited(data, optional=optional)).run(ids) == want).all()


def test_every_reserved_byte_is_refused_and_says_so():
    data = make_model(**MIXED)
    for at in range(136):
        reserved = bytes(at) + b"\1" + bytes(135 - at)
        assert f"header: a reserved byte is set: {NEWER}" in refusal(edited(data, reserved=reserved))
    for layer in range(4):
        for at in range(52):
            reserved = bytes(at) + b"\x80" + bytes(51 - at)
            why = refusal(edited(data, layer, reserved=reserved))
            assert f"layer {layer}: a reserved byte is set: {NEWER}" in why
    for section, at in ((1, 256), (2, 256 + 32)):
        for byte in range(4):
            bad = bytearray(data)
            bad[at + 4 + byte] = 1
            assert f"section {section}: a reserved field is set: {NEWER}" in refusal(bytes(bad))


def test_every_unknown_dtype_is_refused_and_says_so():
    """Of each matrix; and any dtype where no matrix is: of vectors, of tensors that are not there, of ids
    that no tensor has."""
    data = make_model(**MIXED)
    model = Reference(data)
    names = {number: name for name, number in IDS.items()}
    once = {item[0] for item in once_shapes(model.h) if item[3] != 2}
    layer = {item[0] for item in layer_shapes(model.h, model.about[1], 1) if item[3] != 2}
    assert once == {"embed", "output"} and "router" in layer and "shared_down" in layer
    for first, count, matrices, old, number in (
        (0, 16, once, model.h["dtype"], None),
        (16, 48, layer, model.about[1]["dtype"], 1),
    ):
        for at in range(count):
            name = names.get(first + at, "unknown")
            for dtype in (2, 5, 6, 128, 255) if name in matrices else (1, 2, 3, 4, 5, 255):
                bad = old[:at] + bytes([dtype]) + old[at + 1 :]
                why = refusal(edited(data, number, dtype=bad))
                assert f"layer {number or 0}: dtype {dtype} for tensor {first + at} ({name}): {NEWER}" in why


def test_every_unknown_kind_is_refused_and_says_so():
    data = make_model(**MIXED)
    for kind in [2, 3, 255, 256, 2**31, 2**32 - 1]:
        why = refusal(edited(data, 2, ffn=kind))
        assert f"layer 2: a feed-forward block of kind {kind}: {NEWER}" in why
        kind = max(kind, 5)
        why = refusal(edited(data, 2, activation=kind))
        assert f"layer 2: an activation of kind {kind}: {NEWER}" in why


def test_formats_from_before_the_first_release_are_to_be_converted_again():
    data = make_model()
    for version in range(4):
        why = refusal(edited(data, version=version))
        assert f"its format is {version}" in why and "convert the model again, for format 4" in why
    for version in (5, 6, 2**32 - 1):
        why = refusal(edited(data, version=version))
        assert f"its format is {version}, and this reads format 4: {NEWER}" in why
    for version in (3, 5):  # other layouts have other checksums: the version is looked at first
        assert f"its format is {version}" in refusal(data[:8] + struct.pack("<I", version) + data[12:])


# ---------------------------------------------------------------------------------------------------------
# Layers that contradict themselves, the header, or each other


@pytest.mark.parametrize(
    ("layer", "change", "why"),
    [
        (0, dict(kv_layer=1), "layer 0: kv_layer 1 is not one before it"),
        (1, dict(kv_layer=3), "layer 1: kv_layer 3 is not one before it"),
        (3, dict(kv_layer=2**32 - 1), "layer 3: kv_layer 4294967295 is not one before it"),
        (3, dict(kv_layer=2), "layer 3: layer 2 has no keys of its own"),
        (2, dict(kv_layer=1), "layer 2: its kv heads are not those of layer 1"),
        (2, dict(n_kv_heads=1), "layer 2: its kv heads are not those of layer 0"),
        (2, dict(head_dim=24), "layer 2: its kv heads are not those of layer 0"),
        (0, dict(head_dim=26), "layer 0: head_dim 26, and rotary tables of 24"),
        (0, dict(head_dim=15), "layer 0: head_dim 15 is odd"),
        (0, dict(head_dim=0), "layer 0: head_dim is 0, not 2 to 1024"),
        (0, dict(n_heads=3), "layer 0: 3 heads on 2 kv heads"),
        (0, dict(n_kv_heads=0), "layer 0: n_kv_heads is 0, not 1 to 4096"),
        (0, dict(rope=1), "layer 0: there is no rotary table 1"),
        (0, dict(flags=ROUTER_BIAS), "layer 0: a flag that the header does not require"),
        (0, dict(flags=ROUTER_NORMALIZE), "layer 0: a router without experts"),
        (0, dict(n_active=1), "layer 0: a router without experts"),
        (0, dict(shared_dim=8), "layer 0: a router without experts"),
        (0, dict(ffn=EXPERTS), "layer 0: 0 of 0 experts are active"),
        (1, dict(n_active=0), "layer 1: 0 of 4 experts are active"),
        (1, dict(n_active=5), "layer 1: 5 of 4 experts are active"),
        (1, dict(n_experts=1025), "layer 1: n_experts is 1025, not 0 to 1024"),
        (3, dict(shared_dim=0), "layer 3: a gate without a shared expert"),
        (3, dict(ffn_dim=0), "layer 3: ffn_dim is 0, not 1 to 1048576"),
        (3, dict(attn_scale=float("nan")), "layer 3: attn_scale is nan"),
        (3, dict(attn_cap=float("inf")), "layer 3: attn_cap is inf"),
        (3, dict(expert_scale=-2e6), "layer 3: expert_scale is -2e+06"),
        (0, dict(value_dim=1025), "layer 0: value_dim is 1025, not 0 to 1024"),
        (2, dict(value_dim=8), "layer 2: its kv heads are not those of layer 0"),
        (0, dict(n_groups=2), "layer 0: a router without experts"),
        (1, dict(n_groups=3, n_active_groups=1), "layer 1: 4 experts in 3 groups"),
        (1, dict(n_groups=2, n_active_groups=3), "layer 1: 3 of 2 groups of experts are active"),
        (1, dict(n_groups=2), "layer 1: 0 of 2 groups of experts are active"),
        (
            1,
            dict(n_groups=4, n_active_groups=1),
            "layer 1: 2 experts are active, and their groups have 1",
        ),
        (1, dict(n_active_groups=1), "layer 1: active groups of experts, and no groups"),
        (1, dict(query_growth=0.5), "layer 1: queries that grow, and no query_span"),
        (1, dict(query_shift=1), "layer 1: queries that grow, and no query_span"),
        (1, dict(query_span=5, query_growth=float("nan")), "layer 1: query_growth is nan"),
        (1, dict(gate_slope=1.0, activation=GELU), "layer 1: a gate_slope, and not SiLU"),
        (1, dict(gate_limit=-1.0), "layer 1: gate_limit is -1"),
        (1, dict(up_shift=float("inf")), "layer 1: up_shift is inf"),
        (0, dict(qkv_clip=float("nan")), "layer 0: qkv_clip is nan"),
    ],
)
def test_a_layer_that_contradicts_is_refused(layer, change, why):
    assert why in refusal(edited(make_model(**MIXED), layer, **change))


@pytest.mark.parametrize(
    ("layer", "flags", "why"),
    [
        (2, V_NORM, "layer 2: it has no values of its own"),
        (2, V_IS_K, "layer 2: it has no values of its own"),
        (0, ROUTER_SCALED, "layer 0: a router without experts"),
        (0, SHARED_NORMS, "layer 0: a router without experts"),
        (1, SHARED_NORMS, "layer 1: norms without a shared expert"),
        (3, SHARED_NORMS | SHARED_GATE, "layer 3: the shared expert has a gate and norms of its own"),
    ],
)
def test_flags_that_fit_nothing_in_a_layer_are_refused(layer, flags, why):
    data = edited(make_model(**MIXED), 1, shared_dim=0)
    whole = edited(data, required=Reference(make_model(**MIXED)).h["required"] | flags)
    assert why in refusal(edited(whole, layer, flags=flags))


def test_streams_that_the_header_does_not_describe_are_refused():
    data = make_model(n_streams=3, ple_dim=24, extra=dict(low_rank=8))
    assert not refusal(data)
    assert "header: n_streams is 9, not 0 to 8" in refusal(edited(data, n_streams=9))
    assert re.search(r"it has \d+ bytes, not \d+", refusal(edited(data, n_streams=2)))
    assert "layer 1: low_rank is 65537, not 0 to 65536" in refusal(edited(data, 1, low_rank=65537))
    assert "layer 0: gate_cut is nan" in refusal(edited(data, 0, gate_cut=float("nan")))
    scaled = edited(data, required=Reference(data).h["required"] | LAYER_SCALED)
    assert "layer 0: a scale of one stream of several" in refusal(edited(scaled, 0, flags=LAYER_SCALED))


def test_embeddings_by_layer_that_the_header_does_not_describe_are_refused():
    data = make_model(ple_dim=24, ple_scale=2.0)
    assert not refusal(data)
    assert "header: ple_dim is 65537, not 0 to 65536" in refusal(edited(data, ple_dim=65537))
    assert "header: ple_scale is nan" in refusal(edited(data, ple_scale=float("nan")))
    plain = make_model()
    assert "header: a scale of embeddings that layers do not have" in refusal(edited(plain, ple_scale=1.0))
    assert re.search(r"it has \d+ bytes, not \d+", refusal(edited(plain, ple_dim=24)))


LATENTS = dict(
    n_layers=2,
    n_kv_heads=1,
    head_dim=24,
    extra=dict(latent_dim=40, turn_dim=8, q_rank=20, value_dim=12, latent_eps=1e-6),
    layers=[dict(n_heads=3), dict(latent_dim=0, turn_dim=0, q_rank=0, latent_eps=0.0)],
)


@pytest.mark.parametrize(
    ("layer", "change", "why"),
    [
        (0, dict(latent_dim=0), "layer 0: what goes with a latent, and no latent_dim"),
        (1, dict(turn_dim=8), "layer 1: what goes with a latent, and no latent_dim"),
        (1, dict(q_rank=8), "layer 1: what goes with a latent, and no latent_dim"),
        (1, dict(latent_eps=1e-6), "layer 1: what goes with a latent, and no latent_dim"),
        (0, dict(turn_dim=0), "layer 0: turn_dim is 0, of a head_dim of 24"),
        (0, dict(turn_dim=7), "layer 0: turn_dim is 7, of a head_dim of 24"),
        (0, dict(turn_dim=24), "layer 0: turn_dim is 24, of a head_dim of 24"),
        (0, dict(latent_dim=1020), "layer 0: a key of 1020 + 8 numbers"),
        (0, dict(latent_dim=1025), "layer 0: latent_dim is 1025, not 0 to 1024"),
        (0, dict(q_rank=(1 << 20) + 1), "layer 0: q_rank is 1048577, not 0 to 1048576"),
        (0, dict(n_kv_heads=3), "layer 0: a latent for 3 kv heads"),
        (0, dict(latent_eps=1.0), "layer 0: latent_eps is 1"),
        (0, dict(latent_eps=float("nan")), "layer 0: latent_eps is nan"),
        (1, dict(latent_dim=40, turn_dim=8, kv_layer=0), "layer 1: a latent of layer 0"),
        (1, dict(kv_layer=0), "layer 1: its kv heads are not those of layer 0"),
    ],
)
def test_a_latent_that_contradicts_is_refused(layer, change, why):
    assert why in refusal(edited(make_model(**LATENTS), layer, **change))


def test_a_latent_has_no_norm_of_heads_and_no_gate():
    data = make_model(**LATENTS)
    for flag in (QK_NORM, OUT_GATE, V_NORM):
        more = edited(data, required=flag)
        assert "layer 0: a latent, and norms of heads, gates or" in refusal(edited(more, 0, flags=flag))


def test_all_matrices_of_heads_are_read_for_a_token():
    """Not as experts are, of which some are: numbers of a layer, and those that a token goes through."""
    data = make_model(**LATENTS | dict(n_experts=3, n_active=2))
    counts, err = ffi.new("llm_counts *"), ffi.new("char[256]")
    assert lib.llm_count(*described(data), counts, err, 256) == 0
    model = Reference(data)
    items = [item for i, about in enumerate(model.about) for item in layer_shapes(model.h, about, i)]
    idle = sum(rows * cols for name, rows, cols, _, _ in items if name in ("gate_up", "down"))
    assert counts.parameters - counts.active == idle  # of one expert of three
    latent, other = 48 + 48, 32 + 16  # numbers of a key and of a value, padded to 16
    assert counts.kv == 2 * (latent + other)


def test_flags_that_only_a_header_or_a_pair_may_have_are_refused():
    data = make_model(**MIXED | dict(flags=ROUTER_NORMALIZE | QK_NORM | TIED))
    assert "layer 0: a flag that is the header's" in refusal(edited(data, 0, flags=TIED | QK_NORM))
    whole = edited(data, required=Reference(data).h["required"] | QK_NORM_WHOLE)
    assert "layer 0: no q and k norm to be whole" in refusal(edited(whole, 0, flags=QK_NORM_WHOLE))
    for flags, why in (
        (QK_NORM_LATE, "no q and k norm to be whole or late"),
        (QK_NORM | QK_NORM_LATE | QK_NORM_WHOLE, "a late q and k norm is of each head"),
        (OUT_GATE_HEAD, "a kind of gate, and no gate"),
        (OUT_GATE_SOFTPLUS, "a kind of gate, and no gate"),
        (CHUNKED, "chunks of no positions"),
        (ROUTER_BEST, "a router without experts"),
    ):
        more = edited(data, required=Reference(data).h["required"] | flags)
        assert f"layer 0: {why}" in refusal(edited(more, 0, flags=flags))
    for flag in (POSITION_TABLE, OUTPUT_BIAS, INPUT_NORM):
        more = edited(data, required=Reference(data).h["required"] | flag)
        assert "layer 0: a flag that is the header's" in refusal(edited(more, 0, flags=flag))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (NORM_BIAS, "biases of norms that are not LayerNorm"),
        (QK_NORM_EACH, "no q and k norm to be of each head"),
        (QK_NORM | QK_NORM_WHOLE | QK_NORM_EACH, "a q and k norm that is whole and of each head"),
        (ONE_NORM, "one norm, and no blocks side by side"),
        (PARALLEL | NO_PRE_NORM, "blocks side by side without norms before them"),
    ],
)
def test_flags_of_norms_that_contradict_each_other_are_refused(flags, why):
    """Of a layer; biases also where the header has them for the norms that occur once."""
    data = make_model(**MIXED)
    more = edited(data, required=Reference(data).h["required"] | flags | LAYER_NORM)
    assert f"layer 1: {why}" in refusal(edited(more, 1, flags=flags))
    if flags == NORM_BIAS:
        assert f"header: {why}" in refusal(edited(data, required=Reference(data).h["required"] | flags))


@pytest.mark.parametrize("flags", [0, LAYER_NORM])
def test_a_session_is_no_longer_than_learned_positions(flags):
    data = make_model(flags=flags | POSITION_TABLE, context=40)
    assert Model(data).run(some_ids(40, 96)).shape == (40, 96)
    with pytest.raises(ValueError, match="a context of 41, and the model has a row for each of 40 positions"):
        Model(data).session(context=41)


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (0, dict(window=3)),
        (0, dict(rope=1)),
        (1, dict(activation=GELU)),
        (2, dict(attn_scale=0.1)),
        (2, dict(attn_cap=1.0)),
        (1, dict(n_active=3)),
        (1, dict(expert_scale=0.5)),
        (2, dict(flags=QK_NORM)),
        (4, dict(kv_layer=3)),
    ],
)
def test_each_layer_is_run_as_it_describes_itself(layer, change):
    """A field of one layer alone: the engine follows it as the reference does, and it matters."""
    kind = MIXED | dict(
        n_layers=5, n_rope=2, layers=[*MIXED["layers"][:3], dict(head_dim=16), dict(kv_layer=0)]
    )
    data = make_model(2, **kind)
    data = edited(data, 1, rope=0)
    other = edited(data, layer, **change)
    ids = some_ids(40, 96)
    got, before = (Model(file).run(ids, exact=1) for file in (other, data))
    want = Reference(other, Rounding()).logits(ids)
    error = abs(got - want) / want.std()
    assert error.max() < 0.003 and np.median(error) < 1e-4  # float32, and halves that it moves by a step
    assert abs(got - before).max() > 0.05 * want.std()


# ---------------------------------------------------------------------------------------------------------
# Checksums


@pytest.fixture(scope="module")
def xxh64(tmp_path_factory):
    """The XXH64 of verify.c, which is not in its interface."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    source = tmp_path_factory.mktemp("xxh64") / "xxh64.c"
    source.write_text(
        '#include "verify.c"\n'
        "uint64_t hash(const uint8_t *data, size_t size) { return xxh64(data, size, 0); }\n"
    )
    library = source.with_suffix(".so")
    others = [str(CSRC / name) for name in ENGINE if name != "verify.c"]
    flags = [*C_FLAGS, "-O1", "-fopenmp", "-shared", "-fPIC", f"-I{CSRC}"]
    subprocess.run(["gcc", *flags, str(source), *others, "-lm", "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).hash
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return lambda data: function(data, len(data))


def test_xxh64_gives_the_published_values(xxh64):
    """The first two are in the tests of LLVM's port (unittests/Support/xxhashTest.cpp), the others in the
    README of the package xxhash."""
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"a") == 0xD24EC4F1A98C6E5B
    assert xxh64(b"xxhash") == 0x32DD38952C4BC720
    assert xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1


def test_xxh64_is_that_of_the_package_xxhash(xxh64):
    """At all lengths around its stripes, and over several of the pieces in which a file is read."""
    xxhash = pytest.importorskip("xxhash")
    data = np.random.default_rng(1).integers(0, 256, 300, np.uint8).tobytes()
    for n in range(300):
        assert xxh64(data[:n]) == xxhash.xxh64(data[:n]).intdigest(), n
    for n in ((1 << 24) - 1, (1 << 24) + 32, (5 << 23) + 45):
        data = np.arange(n, dtype=np.uint32).view(np.uint8)[:n].tobytes()
        assert xxh64(data) == xxhash.xxh64(data).intdigest(), n


def parts(data: bytes) -> list[tuple[str, int, int]]:
    """What has a checksum: its name in errors, and where it begins and ends."""
    model = Reference(data)
    layers = HEADER.size + model.h["text_size"]
    angles = layers + LAYER.size * model.h["n_layers"]
    at = angles + 4 * model.h["n_rope"] * model.h["rope_dim"]
    own = data.rindex(struct.pack("<II", CHECKSUMS, 0), 0, layers)
    found = [("the sections", HEADER.size, own), ("the layers or rotary tables", layers, at)]
    at = up(at)
    items = [(f"tensor {item[0]}", item) for item in once_shapes(model.h)]
    for i, about in enumerate(model.about):
        items += [(f"tensor {item[0]} of layer {i}", item) for item in layer_shapes(model.h, about, i)]
    for name, (_, rows, cols, dtype, count) in items:
        for expert in range(count):
            size = tensor_bytes(rows, cols, dtype)
            found.append((f"{name}, expert {expert}" if count > 1 else name, at, at + size))
            at = up(at + size)
    return found


def verify(model: Model) -> str:
    """What llm_verify finds wrong; "" for nothing."""
    model.err[0] = b"\0"
    failed = lib.llm_verify(model.c, model.err, 512)
    found = ffi.string(model.err).decode()
    assert bool(failed) == bool(found)
    return found


VERIFIED = MIXED | dict(checksums=True, dim=32, ffn_dim=16, vocab_size=40, shared_dim=16, n_heads=2)


@every_dtype
def test_every_flipped_byte_of_a_tensor_is_found_and_named(dtype):
    data = make_model(1, dtype=dtype, **VERIFIED)
    model, found = Model(data), 0
    assert verify(model) == ""
    for name, start, end in parts(data)[2:]:
        for at in range(start, end, 7 if end - start > 3000 else 1):
            model.data[at] ^= 1 << at % 8
            assert verify(model) == f"{name}: the checksum is wrong: the file is damaged"
            model.data[at] ^= 1 << at % 8
            found += 1
    assert found > 5000 and verify(model) == ""


def test_every_flipped_byte_of_sections_layers_and_rotary_tables_is_found():
    """Opening refuses it, or --verify names where it is; in the checksums themselves, what they are of, or
    that they are lost."""
    data = make_model(1, **VERIFIED)
    (_, start, own), (_, layers, end) = parts(data)[:2]
    named = 0
    for at in [*range(start, own + 16 + 8 * len(parts(data))), *range(layers, end)]:
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        why = refusal(bytes(bad))
        if not why:
            why = verify(Model(bytes(bad)))
            where = "the sections" if at < own else "the layers or rotary tables"
            named += (
                at < own or at >= layers
            ) and why == f"{where}: the checksum is wrong: the file is damaged"
        assert why, at
    assert named > 150


def test_each_checksum_is_that_of_its_part():
    xxhash = pytest.importorskip("xxhash")
    data = make_model(1, dtype=INT8, **VERIFIED)
    want = [xxhash.xxh64(data[start:end]).intdigest() for _, start, end in parts(data)]
    model = Model(data)
    assert lib.llm_checksums(model.c, ffi.NULL, 0) == len(want)
    sums = ffi.new("uint64_t[]", [7] * (len(want) + 1))
    assert lib.llm_checksums(model.c, sums, 3) == len(want) and list(sums)[:4] == [*want[:3], 7]
    assert lib.llm_checksums(model.c, sums, len(want) + 1) == len(want) and list(sums) == [*want, 7]


def test_a_file_without_checksums_says_so_and_one_that_lost_them_too():
    plain = make_model(**MIXED)
    assert verify(Model(plain)) == "the file has no checksums to verify it with"
    lost = edited(plain, optional=HAS_CHECKSUMS)
    assert verify(Model(lost)) == "the section of checksums is not there: the file is damaged"
    data = bytearray(make_model(**VERIFIED))
    own = parts(bytes(data))[0][2]
    size = struct.unpack_from("<Q", data, own + 8)[0]
    struct.pack_into(
        "<Q", data, own + 8, size + 8 if size % 16 else size - 8
    )  # up to the same multiple of 16
    assert re.fullmatch(r"\d+ bytes of checksums, not of \d+ parts", verify(Model(bytes(data))))


def test_a_section_behind_the_checksums_is_refused():
    sums = make_model(sections={CHECKSUMS: bytes(24), 1: b"name"})
    assert "section 1 lies behind the checksums, which do not cover it" in refusal(sums)


def test_python_and_the_command_verify_on_request(tmp_path):
    data = make_model(**VERIFIED)
    bad = bytearray(data)
    name, start, _ = parts(data)[-1]
    bad[start] ^= 1
    good, damaged, without = (tmp_path / f"{name}.llm" for name in ("good", "damaged", "without"))
    good.write_bytes(data)
    damaged.write_bytes(bad)
    without.write_bytes(make_model())
    with pyllm.LLM(good, verify=True) as llm, pyllm.LLM(damaged) as other:
        assert llm.logits([1, 2]).shape == other.logits([1, 2]).shape
    for path, why in ((damaged, name), (without, "has no checksums")):
        with pytest.raises(pyllm.LLMError, match=f"{re.escape(str(path))}: .*{why}"):
            pyllm.LLM(path, verify=True)
    for path, why in ((good, ""), (damaged, name), (without, "no checksums")) if COMMAND else ():
        done = subprocess.run([COMMAND, "info", "-m", str(path), "--verify"], capture_output=True, text=True)
        assert done.returncode == (1 if why else 0) and why in done.stderr


# ---------------------------------------------------------------------------------------------------------
# Files that must open for ever


SAMPLES = Path(__file__).parent / "data" / "format4"
RECORDED = json.loads((SAMPLES / "recorded.json").read_text())


def test_every_sample_is_recorded():
    assert sorted(path.stem for path in SAMPLES.glob("*.llm")) == sorted(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_files_of_format_4_open_for_ever(name):
    """tests/data/format4/README.md: these files stay as they are. What a released version wrote opens in
    later ones, verifies, and gives the logits that the NumPy reference gave when they were made: to 1 % of
    their spread; where activations have 8 bits, and the reference rounds them alike, to 1e-5. (That a sum in
    another order may move one of them by a step, which is 4 %, is no reason to allow it: these files were
    chosen so that none is near a border.)"""
    kept = RECORDED[name]
    with pyllm.LLM(SAMPLES / f"{name}.llm", verify=True) as llm:
        assert llm.dtype == kept["dtype"] and llm.parameters == kept["parameters"]
        got, want = llm.logits(kept["tokens"])[-1], np.array(kept["logits"])
        assert abs(got - want).max() < (1e-5 if "rounded" in kept else 0.01) * want.std()
        if "text" in kept:
            assert llm.encode(kept["text"]) == kept["tokens"]
            made = llm.generate(kept["text"], temperature=0, max_tokens=len(kept["next"]))
            assert made.tokens == kept["next"]
    model = Reference((SAMPLES / f"{name}.llm").read_bytes(), Rounding() if "rounded" in kept else None)
    assert abs(model.logits(kept["tokens"])[-1] - want).max() < 1e-4
