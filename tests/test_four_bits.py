"""int4 files: what is rounded by a text, what is taken as it is, and what is left behind when it fails.

The models are random and tiny; what a file holds is read by tests/reference.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyllm._llm import ffi, lib
from pyllm.tools import calibrate, flatfile, four_bits, gguf_header, gguf_tensors, int4, sources
from pyllm.tools import convert as command
from pyllm.tools.convert import convert
from pyllm.tools.sources import ConvertError
from reference import FP16, INT4, INT8R, Reference, make_model
from test_convert import CONFIGS, LLAMA, expected, make_tensors, save, save_gguf
from test_engine import Model, Session, some_ids
from test_quantized import LLAMA as QUANTIZED
from test_quantized import Stored, check_grid, checkpoints, gptq, modules

from pyllm import LLM

TEXT = "A text about nothing. It says so twice: nothing. " * 12
LAYER = ("qkv", "attn_out", "gate_up", "down")


def add_tokenizer(folder: Path) -> Path:
    """Bytes, and <s> before each text: 257 tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<s>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    core = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([tokenizers.AddedToken("<s>", normalized=False, special=True)])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    return folder


def make(tmp_path: Path, kind: str = "llama odd rows", **change: Any) -> tuple[Path, dict, dict]:
    """A model with that tokenizer: its directory, configuration and tensors. Embeddings are sums of four
    vectors and a little noise, so that the inputs of products are correlated."""
    config = CONFIGS[kind] | {"vocab_size": 257} | change
    tensors, rng = make_tensors(kind, config), np.random.default_rng(9)
    embedding = rng.normal(size=(257, 4)) @ rng.normal(size=(4, config["hidden_size"]))
    noise = 0.1 * rng.normal(size=embedding.shape)
    tensors["model.embed_tokens.weight"] = (embedding + noise).astype(np.float16).astype(np.float32)
    return add_tokenizer(save(tmp_path / "src" / "tiny", config, tensors)), config, tensors


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 tokens of the text that ships."""
    monkeypatch.setattr(calibrate, "TOKENS", 500)


def matrices(path: Path, dtype: int = INT4) -> dict[tuple[str, int, int], np.ndarray]:
    """The layers' matrices of a dtype in a file, float64 (rows, cols), by name, layer and expert."""
    file = Reference(path.read_bytes())
    return {
        (name, layer, expert): matrix.w
        for layer, tensors in enumerate(file.layers)
        for name in LAYER
        for expert, matrix in enumerate(tensors[name])
        if matrix.dtype == dtype
    }


def sources_of(kind: str, config: dict, tensors: dict) -> dict[tuple[str, int, int], np.ndarray]:
    """What these matrices are in the source."""
    return {
        (name.removeprefix("LLM_").lower(), layer, expert): w
        for (name, layer, expert), w in expected(kind, config, tensors).items()
    }


def opens(path: Path) -> None:
    """Checks the file against its checksums."""
    LLM(path, verify=True).close()


# ---------------------------------------------------------------------------------------------------------
# What is in the file


@pytest.mark.parametrize("job", [flatfile.JOB, 64 * 16 * 3])
@pytest.mark.parametrize("by", ["shipped", "text", "none"])
@pytest.mark.parametrize("kind", ["llama odd rows", "mixtral"])
def test_the_file_holds_what_was_rounded(tmp_path, few_tokens, text, monkeypatch, kind, by, job):
    """Rows and columns that are no multiples of 16 and 64, in one piece and in several."""
    source, config, tensors = make(tmp_path, kind)
    rounded: dict[bytes, np.ndarray] = {}
    real = int4.Rounder.rows

    def rows(self: int4.Rounder, weights: np.ndarray) -> int4.Int4:
        matrix = real(self, weights)
        assert bool(self.feedback) == (by != "none")
        rounded.update(
            {row.tobytes(): found for row, found in zip(weights, int4.decode(matrix), strict=True)}
        )
        return matrix

    monkeypatch.setattr(int4.Rounder, "rows", rows)
    monkeypatch.setattr(flatfile, "JOB", job)
    out = tmp_path / "out.llm"
    given = {"shipped": None, "text": text, "none": "none"}[by]
    report = convert(source, out, dtype="int4", calibrate=given)
    opens(out)
    found, want = matrices(out), sources_of(kind, config, tensors)
    assert len(found) == 2 * (2 + 2 * (3 if kind == "mixtral" else 1))
    file = Reference(out.read_bytes())
    found_too = {(name, 0, 0): file.once[name][0].w for name in ("embed", "output")}
    for key, w in found.items():
        assert np.array_equal(w, [rounded[row.tobytes()] for row in want[key]]), key
    largest = max(np.abs(w - want[key]).max() for key, w in (found | found_too).items())
    assert report.max_error == pytest.approx(largest, rel=1e-4)
    assert {file.once["embed"][0].dtype, file.once["output"][0].dtype} == {INT8R}
    assert all(t["router"][0].dtype == FP16 for t in file.layers if "router" in t)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.llm", "src", "text.txt"]


@pytest.mark.parametrize(("layers", "first"), [(2, 0), (12, 1), (24, 2)])
def test_the_down_projections_of_the_first_layers_have_8_bits(tmp_path, layers, first):
    source, _, _ = make(tmp_path, "llama", num_hidden_layers=layers)
    convert(source, tmp_path / "out.llm", dtype="int4", calibrate="none")
    file = Reference((tmp_path / "out.llm").read_bytes())
    for i, tensors in enumerate(file.layers):
        dtypes = dict.fromkeys(LAYER, INT4) | {"down": INT8R if i < first else INT4}
        assert {name: tensors[name][0].dtype for name in LAYER} == dtypes, i


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_calibrated_products_are_closer(tmp_path, text, kind):
    """On the inputs that the products see of the text."""
    source, config, tensors = make(tmp_path, kind)
    seen: dict[tuple[str, int, int], np.ndarray] = {}

    def see(tensor: int, layer: int, expert: int, x: np.ndarray) -> None:
        seen[ffi.string(lib.llm_tensor_name(tensor)).decode(), layer, expert] = x.copy()

    convert(source, tmp_path / "int8.llm", dtype="int8")
    four_bits.run(tmp_path / "int8.llm", TEXT, see)
    error = {}
    for by in ("none", text):
        convert(source, tmp_path / "out.llm", dtype="int4", calibrate=by)
        error[by] = {
            key: np.square((w - want) @ seen[key].T).sum()
            for (key, w), want in zip(
                matrices(tmp_path / "out.llm").items(),
                (sources_of(kind, config, tensors)[key] for key in matrices(tmp_path / "out.llm")),
                strict=True,
            )
        }
    share = {key: error[text][key] / error["none"][key] for key in error[text]}
    assert max(share.values()) < 0.9, share
    assert share["qkv", 0, 0] < 0.3, share


def test_experts_that_no_token_reaches(tmp_path, text):
    """Their first matrix is rounded by what the layer sees; of the second nothing is known, even where an
    expert has as many neurons as the layer has columns."""

    source, config, tensors = make(
        tmp_path, "mixtral", num_experts_per_tok=1, intermediate_size=48, num_hidden_layers=1
    )
    router = tensors["model.layers.0.block_sparse_moe.gate.weight"]
    router[1], router[2] = -router[0], 0  # of a, -a and 0 the last is never the largest
    save(source, config, tensors)
    inputs: dict[tuple[int, int], np.ndarray] = {}
    convert(source, tmp_path / "int8.llm", dtype="int8")
    four_bits.run(tmp_path / "int8.llm", TEXT, lambda t, layer, e, x: inputs.update({(t, e): x.copy()}))
    assert (lib.LLM_GATE_UP, 0) in inputs and (lib.LLM_GATE_UP, 2) not in inputs
    found = {}
    for by in ("none", text):
        convert(source, tmp_path / "out.llm", dtype="int4", calibrate=by)
        opens(tmp_path / "out.llm")
        found[by] = matrices(tmp_path / "out.llm")
    key = ("gate_up", 0, 2)
    want = sources_of("mixtral", config, tensors)[key]
    error = [np.square((found[by][key] - want) @ inputs[lib.LLM_ROUTER, 0].T).sum() for by in ("none", text)]
    assert error[1] < 0.5 * error[0]
    key = ("down", 0, 2)
    assert np.array_equal(found["none"][key], found[text][key])
    key = ("down", 0, 0)
    assert not np.array_equal(found["none"][key], found[text][key])


@pytest.mark.parametrize("by", ["text", "none"])
def test_q4_0_goes_in_without_loss(tmp_path, text, by):
    """Rows of queries and keys are in another order there."""
    gguf = pytest.importorskip("gguf")
    config = LLAMA | {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 257}
    tensors, kind = make_tensors("llama", config), gguf.GGMLQuantizationType.Q4_0
    source = save_gguf(tmp_path / "q.gguf", "llama", config, tensors, quantize=kind)
    given = dict(calibrate=text, tokenizer=add_tokenizer(tmp_path / "tokenizer"))
    given = given if by == "text" else dict(calibrate="none", tokenizer=False)
    report = convert(source, tmp_path / "out.llm", dtype="int4", **given)
    opens(tmp_path / "out.llm")
    want = sources_of("llama", config, tensors)
    for key, w in (found := matrices(tmp_path / "out.llm")).items():
        assert np.array_equal(w, gguf.quants.dequantize(gguf.quants.quantize(want[key], kind), kind)), key
    assert len(found) == 8 and report.max_error_tensor in ("token_embd.weight", "output.weight")


@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_NL"])
def test_gguf_types_of_four_bits_have_a_grid(tmp_path, kind):
    """Any bytes mean what the gguf library makes of them; their scales may be negative."""
    gguf = pytest.importorskip("gguf")
    raw = np.random.default_rng(2).integers(0, 256, (20, 3, 18), dtype=np.uint8)
    raw[..., 1] = raw[..., 1] & 0x83 | 0x2C  # an exponent of a finite scale
    raw = raw.reshape(20, 54)
    (tmp_path / "raw").write_bytes(raw.tobytes())
    number = gguf.GGMLQuantizationType[kind]
    file = sources.File(tmp_path / "raw")
    tensor = gguf_tensors.read_tensor(gguf_header.Info("w", (20, 96), int(number), 0), file)
    check_grid(tensor)
    assert np.array_equal(tensor.read(0, 20), gguf.quants.dequantize(raw, number))
    file.close()


@pytest.mark.parametrize(("powers", "fits"), [((104, 144), True), ((100, 104), False), ((0, 256), False)])
def test_mxfp4_in_gguf_has_a_grid_where_fp16_holds_its_scales(tmp_path, powers, fits):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (20, 3, 17), dtype=np.uint8)
    raw[..., 0] = rng.integers(*powers, (20, 3)) % 255  # 255 is no number
    raw = raw.reshape(20, 51)
    (tmp_path / "raw").write_bytes(raw.tobytes())
    number = gguf.GGMLQuantizationType.MXFP4
    file = sources.File(tmp_path / "raw")
    tensor = gguf_tensors.read_tensor(gguf_header.Info("w", (20, 96), int(number), 0), file)
    assert np.array_equal(tensor.read(0, 20), gguf.quants.dequantize(raw, number))
    if fits:
        check_grid(tensor)
    else:
        assert tensor.grid() is None
    file.close()


@pytest.mark.parametrize("job", [flatfile.JOB, 64 * 16 * 3])
def test_gptq_goes_in_without_loss(tmp_path, monkeypatch, job):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    there, plain = checkpoints(tmp_path, gptq(4, 32))
    monkeypatch.setattr(flatfile, "JOB", job)
    convert(there, tmp_path / "out.llm", dtype="int4", tokenizer=False)
    opens(tmp_path / "out.llm")
    want = sources_of("llama", QUANTIZED, load_file(plain / "model.safetensors"))
    for key, w in (found := matrices(tmp_path / "out.llm")).items():
        assert np.array_equal(w, want[key]), key
    assert len(found) == 8


def test_a_matrix_of_which_a_part_has_no_grid_is_rounded(tmp_path):
    """Queries of four bits beside keys of sixteen."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    keys = {f"model.layers.{i}.self_attn.k_proj": (32, 64) for i in (0, 1)}
    rng = np.random.default_rng(4)
    more = {f"{k}.weight": Stored("F16", rng.normal(size=shape)) for k, shape in keys.items()}
    rest = {name: shape for name, shape in modules(QUANTIZED).items() if name not in keys}
    there, plain = checkpoints(tmp_path, gptq(4, 32), matrices=rest, more=more)
    convert(there, tmp_path / "out.llm", dtype="int4", tokenizer=False)
    want = sources_of("llama", QUANTIZED, load_file(plain / "model.safetensors"))
    for key, w in matrices(tmp_path / "out.llm").items():
        assert np.array_equal(w, want[key]) == (key[0] != "qkv"), key
        assert np.square(w - want[key]).sum() < 0.02 * np.square(want[key]).sum()


@pytest.mark.parametrize(("dtype", "kind"), [("int8", INT8R), ("int4", INT4)])
def test_without_a_tokenizer_there_is_no_data(tmp_path, dtype, kind):
    source, _, _ = make(tmp_path)
    one = convert(source, tmp_path / "a.llm", dtype=dtype, tokenizer=False)
    other = convert(source, tmp_path / "b.llm", dtype=dtype, tokenizer=False, calibrate="none")
    assert [n for n in one.notes if n not in other.notes] == [
        "weights are rounded without data: without a tokenizer there is no text to calibrate with"
    ]
    assert (tmp_path / "a.llm").read_bytes() == (tmp_path / "b.llm").read_bytes()
    file = Reference((tmp_path / "a.llm").read_bytes())
    assert all(tensors[name][0].dtype == kind for tensors in file.layers for name in LAYER)


def test_a_text_that_was_asked_for_needs_a_tokenizer(tmp_path, text, monkeypatch):
    source, _, _ = make(tmp_path)
    monkeypatch.setattr(flatfile, "write", None)  # nothing is written
    with pytest.raises(ConvertError, match=r"text\.txt cannot be calibrated with: .* no tokenizer"):
        convert(source, tmp_path / "out.llm", dtype="int4", tokenizer=False, calibrate=text)


@pytest.mark.parametrize("length", [30, calibrate.FEW - 1, calibrate.FEW])
def test_a_short_text_gets_a_note(tmp_path, text, length):
    source, _, _ = make(tmp_path)  # a token for each byte
    text.write_text((TEXT * 10)[:length])
    notes = convert(source, tmp_path / "out.llm", dtype="int4", calibrate=text).notes
    found = [note for note in notes if note.startswith("the text to calibrate with")]
    assert [note.split(":")[0] for note in found] == (
        [f"the text to calibrate with has only {length} tokens"] if length < calibrate.FEW else []
    )


def test_a_conversion_gives_the_same_bytes_again(tmp_path, text):
    source, _, _ = make(tmp_path)
    for name in ("a.llm", "b.llm"):
        convert(source, tmp_path / name, dtype="int4", calibrate=text)
    assert (tmp_path / "a.llm").read_bytes() == (tmp_path / "b.llm").read_bytes()


# ---------------------------------------------------------------------------------------------------------
# What is refused, and what is left behind


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "text.txt: .*empty"), (b"caf\xe9", "text.txt: not UTF-8"), (None, "text.txt")],
)
def test_texts_that_cannot_be_read_are_refused_first(tmp_path, monkeypatch, content, message):
    source, _, _ = make(tmp_path)
    monkeypatch.setattr(flatfile, "write", None)  # nothing is written
    path, folder = tmp_path / "text.txt", tmp_path / "folder"
    folder.mkdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConvertError if content is not None else FileNotFoundError, match=message):
        convert(source, folder / "out.llm", dtype="int4", calibrate=path)
    assert os.listdir(folder) == []


def test_calibrate_is_not_for_fp16(tmp_path, text, capsys):
    source, _, _ = make(tmp_path)
    with pytest.raises(ConvertError, match="calibrate is for int8 and int4, not for fp16"):
        convert(source, tmp_path / "out.llm", dtype="fp16", calibrate=text)
    with pytest.raises(SystemExit) as stopped:
        command.main([str(source), str(tmp_path / "out.llm"), "--dtype", "fp16", "--calibrate", str(text)])
    assert stopped.value.code == 2 and "--calibrate is for --dtype int8 and int4" in capsys.readouterr().err
    assert not (tmp_path / "out.llm").exists()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_command_calibrates(tmp_path, text, capsys, dtype):
    source, _, _ = make(tmp_path)
    convert(source, tmp_path / "want.llm", dtype=dtype, calibrate=text)
    line = [str(source), str(tmp_path / "out.llm"), "--dtype", dtype, "--calibrate", str(text)]
    assert command.main(line) == 0
    assert (tmp_path / "out.llm").read_bytes() == (tmp_path / "want.llm").read_bytes()
    assert "largest error" in capsys.readouterr().out
    assert command.main([*line[:-1], str(tmp_path / "absent.txt")]) == 1
    assert "absent.txt" in capsys.readouterr().err
    assert (tmp_path / "out.llm").read_bytes() == (tmp_path / "want.llm").read_bytes()


def test_the_plan_has_int4(tmp_path, capsys):
    source, _, _ = make(tmp_path)
    assert command.main(["--plan", str(source)]) == 0
    assert "int4" in capsys.readouterr().out.split()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")]
)
def test_an_error_while_the_model_runs_leaves_nothing(tmp_path, text, monkeypatch, dtype, error):
    source, _, _ = make(tmp_path)
    calls = []

    def failing(self: calibrate.Calibration, *about: Any) -> calibrate.Encoder:
        calls.append(about)
        if len(calls) == 3:
            raise error
        return calibrate.Encoder(about[3].shape[1])

    monkeypatch.setattr(calibrate.Calibration, "observe", failing)
    folder = tmp_path / "folder"
    folder.mkdir()
    expected = ConvertError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(expected):
        convert(source, folder / "out.llm", dtype=dtype, calibrate=text)
    assert len(calls) == 3 and os.listdir(folder) == []


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_inputs_too_large_are_an_error(tmp_path, text, dtype):
    """Activations that overflow while the model runs; each weight is finite."""
    source, config, tensors = make(tmp_path)
    tensors["model.layers.0.input_layernorm.weight"][:] = 3e38
    save(source, config, tensors)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConvertError, match="not finite|too large"):
        convert(source, folder / "out.llm", dtype=dtype, calibrate=text)
    assert os.listdir(folder) == []


SLOWLY = """
import sys, time
from pyllm.tools import calibrate, convert
real = calibrate.Calibration.observe
def slow(self, *about):
    print(flush=True)
    time.sleep(0.5)
    return real(self, *about)
calibrate.Calibration.observe = slow
sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("name", "dtype"), [("SIGINT", "int4"), ("SIGTERM", "int8")])
def test_a_signal_while_the_model_runs_leaves_nothing(tmp_path, text, name, dtype):
    source, _, _ = make(tmp_path)
    folder, number = tmp_path / "folder", getattr(signal, name)
    folder.mkdir()
    line = [sys.executable, "-c", SLOWLY, source, folder / "out.llm", "--dtype", dtype, "--calibrate", text]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([str(word) for word in line], cwd="/", **pipes)
    assert process.stdout is not None and process.stdout.readline() == "\n"  # it has begun
    assert {path.name[:7] for path in folder.iterdir()} == {".pyllm-"}
    start = time.monotonic()
    process.send_signal(number)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and os.listdir(folder) == []
    assert time.monotonic() - start < 30


LONG_PASS = """
import sys
from pyllm.tools import calibrate, convert
calibrate.TOKENS = calibrate.LENGTH = 8000
real = calibrate.Calibration.observe
def observe(self, *about):
    print(flush=True)
    return real(self, *about)
calibrate.Calibration.observe = observe
sys.exit(convert.main(sys.argv[1:]))
"""


def test_ctrl_c_does_not_wait_for_the_engine(tmp_path):
    """Attention over 8,000 positions, of 40 heads in 11 layers, takes a minute; the signal comes before."""
    source, _, _ = make(tmp_path, num_hidden_layers=11, num_attention_heads=40, max_position_embeddings=8192)
    folder = tmp_path / "folder"
    folder.mkdir()
    line = [sys.executable, "-c", LONG_PASS, source, folder / "out.llm", "--dtype", "int4"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([str(word) for word in line], cwd="/", **pipes)
    assert process.stdout is not None and process.stdout.readline() == "\n"  # it has begun
    time.sleep(0.2)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT and os.listdir(folder) == []
    assert time.monotonic() - start < 30


# ---------------------------------------------------------------------------------------------------------
# llm_observe


def observed(session: Session, ids: list[int], **options: Any) -> tuple[np.ndarray, list[tuple]]:
    """The logits, and what is shown: name, layer, expert, x."""
    shown: list[tuple] = []
    observer = four_bits.Observer(
        lambda t, layer, expert, x: shown.append(
            (ffi.string(lib.llm_tensor_name(t)).decode(), layer, expert, x.copy())
        ),
        session.c,
    )
    handle = ffi.new_handle(observer)
    lib.llm_observe(session.c, lib.pyllm_observer, handle)
    logits = session.forward(ids, **options)
    lib.llm_observe(session.c, ffi.NULL, ffi.NULL)
    assert observer.error is None
    return logits, shown


@pytest.mark.parametrize("dtype", [FP16, INT8R, INT4])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_product_is_shown_once_in_order(dtype, threads):
    model, ids = Model(data := make_model(3, dtype=dtype, dim=72, ffn_dim=100)), some_ids(20, 96)
    session = model.session(threads=threads)
    logits, shown = observed(session, ids)
    order = [(name, layer, 0) for layer in (0, 1) for name in LAYER] + [("output", 0, 0)]
    assert [item[:3] for item in shown] == order
    cols = {"qkv": 72, "attn_out": 64, "gate_up": 72, "down": 100, "output": 72}
    assert [item[3].shape for item in shown] == [(20, cols[name]) for name, _, _ in order]
    reference = Reference(data)
    x = reference.once["embed"][0].w[ids]
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
    x *= reference.layers[0]["attn_norm"][0][:, :72]
    np.testing.assert_allclose(shown[0][3], x, rtol=1e-4, atol=1e-5)
    product = shown[-1][3].astype(np.float64) @ reference.once["output"][0].w.T
    assert np.abs(product - logits).max() < 0.03 * logits.std()
    assert np.array_equal(model.run(ids, threads=threads), logits)  # a look changes nothing


@pytest.mark.parametrize("threads", [1, 3])
def test_each_head_of_a_latent_is_shown(threads):
    extra = dict(latent_dim=40, turn_dim=8, q_rank=20, value_dim=12, latent_eps=1e-6)
    data = make_model(3, dtype=INT8R, n_heads=3, n_kv_heads=1, head_dim=24, n_layers=1, extra=extra)
    _, shown = observed(Model(data).session(threads=threads), some_ids(20, 96))
    heads = [(name, 0, head) for name in ("k_up", "v_up") for head in range(3)]
    begins = [("qkv", 0, 0), ("q_up", 0, 0), *heads, ("attn_out", 0, 0)]
    assert [item[:3] for item in shown][:9] == begins
    cols = {"qkv": 64, "q_up": 20, "k_up": 16, "v_up": 40, "attn_out": 36}
    assert [item[3].shape for item in shown[:9]] == [(20, cols[name]) for name, _, _ in begins]
    layer, seen = Reference(data).layers[0], {item[:3]: item[3] for item in shown}
    made = [seen["v_up", 0, head] @ layer["v_up"][head].w.T for head in range(3)]
    got = seen["attn_out", 0, 0]
    assert abs(np.concatenate(made, 1) - got).max() < 0.03 * got.std()
    queries = seen["q_up", 0, 0] @ layer["q_up"][0].w.T
    for head in range(3):
        want = queries[:, 24 * head : 24 * head + 16]
        assert abs(seen["k_up", 0, head] - want).max() < 0.05 * want.std()


def test_experts_see_the_tokens_that_come_to_them():
    model = Model(make_model(4, n_experts=4, n_active=2))
    _, shown = observed(model.session(), some_ids(30, 96))
    for layer in (0, 1):
        names = [item[0] for item in shown if item[1] == layer and item[0] != "output"]
        assert names[:3] == ["qkv", "attn_out", "router"]
        assert names[3:] == ["gate_up", "down"] * (len(names[3:]) // 2)
        x = next(item[3] for item in shown if item[:2] == ("router", layer))
        own = {item[2]: item[3] for item in shown if item[:2] == ("gate_up", layer)}
        assert x.shape == (30, 64) and sum(map(len, own.values())) == 60
        assert len(own) == names.count("gate_up")  # each once
        rows = {row.tobytes() for row in x}
        assert all(row.tobytes() in rows for some in own.values() for row in some)


def test_batches_are_shown_one_after_the_other_and_to_nobody_at_the_end():
    session = Model(make_model()).session(batch=8)
    shown = observed(session, some_ids(20, 96), want=bytes(19) + b"\1")[1]
    assert [len(x) for name, layer, _, x in shown if (name, layer) == ("down", 1)] == [8, 8, 4]
    assert [len(x) for name, _, _, x in shown if name == "output" and len(x)] == [1]
    before = len(shown)
    session.forward(some_ids(3, 96))
    assert len(shown) == before


def test_a_session_that_is_stopped_computes_nothing_more():
    session = Model(make_model()).session()
    session.forward(some_ids(4, 96))
    lib.llm_stop(session.c)
    for _ in range(2):
        with pytest.raises(ValueError, match="the session was stopped"):
            session.forward(some_ids(3, 96))
    assert session.length() == 4


def test_an_exception_of_the_observer_is_kept_and_nothing_is_shown_after_it():
    calls = []

    def see(*about: Any) -> None:
        calls.append(about)
        raise KeyboardInterrupt

    session = Model(make_model()).session()
    observer = four_bits.Observer(see, session.c)
    handle = ffi.new_handle(observer)
    lib.llm_observe(session.c, lib.pyllm_observer, handle)
    with pytest.raises(ValueError, match="the session was stopped"):
        session.forward(some_ids(3, 96))
    assert isinstance(observer.error, KeyboardInterrupt) and len(calls) == 1
