"""pyllm-convert --plan: the published numbers of published models from their configurations, and those of a
converted file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from common import COMMAND, described
from pyllm.tools import convert as command
from pyllm.tools import plan
from pyllm.tools.sources import ConvertError
from reference import up
from safetensors.numpy import save_file

from tools.checkpoints import finish, gguf_writer

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
CONFIGS = {  # what of config.json on the hub says how large the model is
    "Llama-2-7b": LLAMA,
    "Llama-2-70b": LLAMA
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
    },
    "Llama-3.1-8B": LLAMA
    | {
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    },
    "Mixtral-8x7B": LLAMA
    | {
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "Qwen3-30B-A3B": LLAMA
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "SmolLM2-135M": LLAMA
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
}


@pytest.mark.parametrize(
    "name, parameters, active, kv",
    [
        ("Llama-2-7b", 6_738_415_616, 6_738_415_616, 32 * 2 * 32 * 128 * 2),
        ("Llama-2-70b", 68_976_648_192, 68_976_648_192, 80 * 2 * 8 * 128 * 2),
        ("Llama-3.1-8B", 8_030_261_248, 8_030_261_248, 32 * 2 * 8 * 128 * 2),
        ("Mixtral-8x7B", 46_702_792_704, 12_879_925_248, 32 * 2 * 8 * 128 * 2),
        ("Qwen3-30B-A3B", 30_532_122_624, 3_353_032_704, 48 * 2 * 4 * 128 * 2),
        ("SmolLM2-135M", 134_515_008, 134_515_008, 30 * 2 * 3 * 64 * 2),
    ],
)
def test_parameters_are_those_that_were_published(name, parameters, active, kv):
    """The hub counts them; of a token Mixtral's paper says "13B" and Qwen3's "3.3B". Keys and values: layers,
    two, heads, their width, two bytes."""
    found = plan.make(CONFIGS[name])
    assert (found.parameters, found.active, found.needs["fp16"].kv) == (parameters, active, kv)
    assert found.context == CONFIGS[name]["max_position_embeddings"]
    assert found.needs["fp16"].file == pytest.approx(2 * parameters, rel=1e-3)
    assert found.needs["int8"].file == pytest.approx(parameters * 66 / 64, rel=1e-3)
    config = CONFIGS[name]
    once = config["vocab_size"] * config["hidden_size"] * (1 if config["tie_word_embeddings"] else 2)
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    down = config.get("num_local_experts", config.get("num_experts", 1)) * width * config["hidden_size"]
    eight = once + down * (config["num_hidden_layers"] // 12)  # of int4 files these have 8 bits
    assert found.needs["int4"].file == pytest.approx(
        eight * 66 / 64 + (parameters - eight) * 36 / 64, rel=2e-3
    )


PUBLISHED = json.loads((Path(__file__).parent / "data" / "configs.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_family_has_the_parameters_that_were_published(name):
    """Configurations of published models, without what is not about mathematics; the counts are the hub's, or
    of what transformers makes of them (without layers that predict further tokens, with biases of choices).
    Added are vectors of ones, which the file has and the checkpoint has not."""
    found = plan.make(PUBLISHED[name]["config"])
    assert found.parameters - PUBLISHED[name].get("added", 0) == PUBLISHED[name]["parameters"]
    assert not [note for note in found.notes if "not known here" in note]


def test_the_latent_is_what_is_kept_of_latent_attention():
    """DeepSeek-V2-Lite: in each of 27 layers 512 numbers and 64 that turn for a key, 512 for a value, two
    bytes each; of 16 heads they would be 192 and 128 a head. Of 64 experts in 26 layers a token takes 6."""
    found = plan.make(PUBLISHED["DeepSeek-V2-Lite"]["config"])
    assert found.needs["fp16"].kv == 27 * (512 + 64 + 512) * 2
    assert found.parameters - found.active == 26 * 58 * 3 * 2048 * 1408


GEMMA4: dict = {
    "model_type": "gemma4_text",
    "global_head_dim": 512,
    "head_dim": 256,
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
    "vocab_size": 262144,
}
GEMMA4_31B = GEMMA4 | {
    "attention_k_eq_v": True,
    "hidden_size": 5376,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_global_key_value_heads": 4,
    "num_hidden_layers": 60,
    "num_key_value_heads": 16,
}
GEMMA4_26B = GEMMA4_31B | {
    "enable_moe_block": True,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "moe_intermediate_size": 704,
    "num_attention_heads": 16,
    "num_experts": 128,
    "num_global_key_value_heads": 2,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "top_k_experts": 8,
}
GEMMA4_E2B = GEMMA4 | {
    "hidden_size": 1536,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 6144,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "sliding_window": 512,
    "use_double_wide_mlp": True,
}


def test_the_parameters_of_gemma_4_are_those_of_its_card():
    """It says 30.7B; 25.2B, 3.8B active; and of E2B 2.3B effective: without the embeddings by layer."""
    kind = "Gemma4ForConditionalGeneration"
    dense, mixture, small = (
        plan.make({"architectures": [kind], "text_config": text})
        for text in (GEMMA4_31B, GEMMA4_26B, GEMMA4_E2B)
    )
    assert round(dense.parameters / 1e9, 1) == 30.7
    assert (round(mixture.parameters / 1e9, 1), round(mixture.active / 1e9, 1)) == (25.2, 3.8)
    table = 262144 * 35 * 256
    assert round((small.parameters - table) / 1e9, 1) == 2.3
    assert small.needs["int8"].read == pytest.approx((small.parameters - table) * 66 / 64, rel=1e-3)
    # 12 layers with a window and 3 without make keys and values, one head of each
    assert small.needs["fp16"].kv == 2 * 2 * (12 * 256 + 3 * 512)
    assert small.needs["fp16"].seen == 2 * 2 * (28 * 512 * 256 + 7 * 131072 * 512)
    assert not any("not known here" in note for found in (dense, mixture, small) for note in found.notes)


def test_learned_positions_are_read_a_row_a_token():
    config = PUBLISHED["gpt2"]["config"]
    found = plan.make(config)
    rows = (config["n_positions"] - 1) * config["n_embd"]
    assert found.parameters == PUBLISHED["gpt2"]["parameters"]
    matrices = 12 * config["n_layer"] * config["n_embd"] ** 2 + config["vocab_size"] * config["n_embd"]
    vectors = found.parameters - rows - config["n_embd"] - matrices
    # the embedding is read as the output; its rows are padded to a multiple of 16
    padding = -config["vocab_size"] % 16 * config["n_embd"]
    assert found.needs["fp16"].read == 2 * (matrices + padding + config["n_embd"]) + 4 * vectors


def test_layers_with_a_window_read_no_more_than_that():
    """gemma-3-1b: of 26 layers every sixth sees all of the context, the others 512 positions; one head of 256
    for keys and one for values, two bytes a number."""
    found = plan.make(PUBLISHED["gemma-3-1b"]["config"], context=4096)
    assert found.needs["fp16"].kv == 26 * 2 * 256 * 2
    assert found.needs["fp16"].seen == (4 * 4096 + 22 * 512) * 2 * 256 * 2
    head = 256 + 4 * 2 + 256 + 4  # a key with an fp16 scale for 64 numbers, a value with a float32 one
    assert found.needs["int8"].kv == 26 * head
    assert found.needs["int8"].seen == (4 * 4096 + 22 * 512) * head


def test_states_are_counted_whatever_the_context():
    """LFM2-1.2B: 10 layers keep two positions of 2,048 numbers, in float32. Qwen3-Next: 36 keep three
    positions of 16 query and key heads and 32 value heads of 128, and 32 matrices of 128 by 128; the other 12
    have two heads of 256 for keys and for values."""
    states = {"LFM2-1.2B": 10 * 2 * 2048, "Qwen3-Next-80B-A3B": 36 * (3 * 64 * 128 + 32 * 128 * 128)}
    kv = {"LFM2-1.2B": 6 * 2 * 8 * 64 * 2, "Qwen3-Next-80B-A3B": 12 * 2 * 2 * 256 * 2}
    for name, numbers in states.items():
        found = plan.make(PUBLISHED[name]["config"], context=4096).needs["fp16"]
        assert (found.state, found.kv) == (6 * 4 * numbers, kv[name])
        assert found.kept == found.state + 4096 * kv[name]
        assert found.seen == 4 * numbers + 4096 * kv[name]
        text = plan.report(plan.make(PUBLISHED[name]["config"]), 1e11, 4)
        assert re.search(r"\nstates +[\d.]+ [KM]iB .* of a text, 6 that are kept\n", text)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("LFM2-1.2B", {"conv_bias": True}, "conv_bias is True; of LFM2 only None or False"),
        ("LFM2-1.2B", {"block_use_swiglu": False}, "block_use_swiglu is False; of LFM2 only"),
        ("LFM2-1.2B", {"conv_L_cache": 1}, "conv_kernel is 1, not 2 to 16"),
        ("LFM2-1.2B", {"full_attn_idxs": 3}, "full_attn_idxs is 3, not a list of layers"),
        ("LFM2-1.2B", {"layer_types": ["conv"] * 15 + ["mamba"]}, "layer_types has 'mamba'"),
        ("Qwen3-Next-80B-A3B", {"attention_bias": True}, "attention_bias is True; of Qwen3-Next only"),
        ("Qwen3-Next-80B-A3B", {"attn_output_gate": False}, "attn_output_gate is False; of Qwen3-Next only"),
        ("Qwen3-Next-80B-A3B", {"linear_num_key_heads": 5}, "32 value heads on 5 key heads"),
        ("Llama-3.2-1B", {"layer_types": ["conv"] * 16}, "layer_types has 'conv'"),
    ],
)
def test_variants_of_layers_with_a_state_are_refused_by_name(name, change, why):
    known = {"layer_types": None}
    if name == "Llama-3.2-1B":
        change = change | {"architectures": ["Exaone4ForCausalLM"]}  # which reads them
    with pytest.raises(ConvertError, match=re.escape(why)):
        plan.make(known | PUBLISHED[name]["config"] | change)


def test_a_token_reads_all_but_the_other_rows_of_the_embedding_and_the_other_experts():
    dim, norms = 4096, 65 * 4096  # of 32 layers and the output, in fp32
    llama = plan.make(CONFIGS["Llama-3.1-8B"])
    matrices = llama.parameters - norms - 128256 * dim
    assert llama.needs["fp16"].read == 2 * (matrices + dim) + 4 * norms
    assert llama.needs["int8"].read == (matrices + dim) * 66 // 64 + 4 * norms

    mixtral = plan.make(CONFIGS["Mixtral-8x7B"])
    routers = 32 * dim  # a row of each; there are 8, and 16 are stored
    matrices = mixtral.active - norms - 32000 * dim + 8 * routers
    assert mixtral.needs["fp16"].read == 2 * (matrices + dim) + 4 * norms
    assert mixtral.needs["int8"].read == (matrices - 16 * routers + dim) * 66 // 64 + 4 * norms + 32 * routers

    tied = plan.make(CONFIGS["SmolLM2-135M"])
    assert tied.needs["fp16"].read == 2 * tied.parameters + 2 * 61 * 576


def tiny(folder: Path, **change: object) -> Path:
    """A directory with a Llama model of zeros."""
    config = LLAMA | {
        "hidden_size": 72,
        "intermediate_size": 40,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    }
    shapes = {"model.embed_tokens": (50, 72), "model.norm": (72,), "lm_head": (50, 72)}
    for layer in ("model.layers.0.", "model.layers.1."):
        for part in ("q", "k", "v", "o"):
            shapes[f"{layer}self_attn.{part}_proj"] = (72 if part in "qo" else 24, 72)
        for part in ("gate", "up", "down"):
            shapes[f"{layer}mlp.{part}_proj"] = (72, 40) if part == "down" else (40, 72)
        for part in ("input", "post_attention"):
            shapes[f"{layer}{part}_layernorm"] = (72,)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | change))
    tensors = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_converted_file_has_what_was_planned(tmp_path):
    """The file, but for its texts, and what `pyllm info` says of it, in both precisions."""
    source, path = tiny(tmp_path / "tiny"), tmp_path / "tiny.llm"
    planned = plan.make(json.loads((source / "config.json").read_text()))
    for dtype, need in planned.needs.items():
        report = command.convert(source, path, dtype=dtype, tokenizer=False)
        assert report.parameters == planned.parameters == planned.active
        header, _ = described(path.read_bytes())
        sums = 16 + 8 * (2 + 3 + 2 * 6)  # of the sections, the layers, and so many tensors
        assert path.stat().st_size - header.text_size == need.file - up(sums)
        if COMMAND:
            done = subprocess.run([COMMAND, "info", "-m", str(path)], capture_output=True, text=True)
            assert f"parameters        {planned.parameters}\n" in done.stdout
            assert f"keys and values   {need.kv} bytes a token, " in done.stdout
            assert f"decode reads      {plan.size_text(need.read)} of weights a token" in done.stdout


def test_the_table_names_sizes_and_speed():
    """Sums by hand, for a machine that reads 100 GB/s."""
    lines = plan.report(plan.make(CONFIGS["Mixtral-8x7B"]), 1e11, 4).splitlines()
    rows = {line[:18].strip(): line[18:].split("  ") for line in lines if line[:18].strip()}
    rows = {label: [cell.strip() for cell in cells if cell.strip()] for label, cells in rows.items()}
    assert rows["family"] == ["Mixtral (MixtralForCausalLM)"]
    assert rows["parameters"] == ["46,702,792,704, 12,879,925,248 of them for each token"]
    heads = 32 * 8 * (128 + 2 * 2 + 128 + 4)  # in int8: two fp16 scales of a key, a float32 one of a value
    assert rows["keys and values"] == ["131,072", f"{heads:,}", f"{heads:,}", "bytes a token"]
    assert rows["file"][:3] == ["87.0 GiB", "44.9 GiB", "25.0 GiB"]
    assert rows["memory"][:3] == ["91.0 GiB", "46.9 GiB", "27.1 GiB"]
    assert rows["decode reads"][:3] == ["23.7 GiB", "12.2 GiB", "6.8 GiB"]
    assert rows["tokens/s"] == ["3.9", "7.6", "13.6", "at most, with 100.00 GB/s on 4 threads"]
    after = next(line for line in lines if line.endswith("at the end of that context"))
    assert after.split()[:3] == ["3.4", "6.5", "10.5"]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_speed_of_memory_is_one_that_machines_have(threads):
    assert 1e7 < plan.read_speed(threads) < 1e13


def test_a_shorter_context_needs_less_memory():
    config = CONFIGS["Llama-2-7b"]
    # in int8 128 + 4 and 128 + 4 bytes for 512
    held = r"512\.0 MiB +264\.0 MiB +264\.0 MiB +at a context of 1024\n"
    assert re.search(held, plan.tell(config, 1024))
    with pytest.raises(ConvertError, match="context 4097 is not between 1 and the model's 4096"):
        plan.make(config, 4097)


def test_an_architecture_that_is_not_known_is_refused_as_in_converting():
    with pytest.raises(ConvertError, match="MambaForCausalLM cannot be converted"):
        plan.make(LLAMA | {"architectures": ["MambaForCausalLM"]})


def run(*arguments: object) -> int:
    return command.main(["--plan", *map(str, arguments)])


def test_the_command_reads_a_configuration_and_writes_nothing(tmp_path, capsys, monkeypatch):
    source = tiny(tmp_path / "tiny")
    (source / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    for path in (source, source / "config.json"):
        assert run(path, "--context", 100) == 0
        out, err = capsys.readouterr()
        assert "Llama (LlamaForCausalLM)" in out and "at a context of 100\n" in out and err == ""
    assert list(tmp_path.iterdir()) == [source]
    assert run(tmp_path) == 1 and "there is no config.json in it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run(source, "out.llm")
    assert caught.value.code == 2 and "--plan writes no file" in capsys.readouterr().err


def test_of_a_model_on_the_hub_only_the_configuration_is_downloaded(tmp_path, capsys, monkeypatch):
    source, asked = tiny(tmp_path / "tiny"), []
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(source)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert run("someone/tiny") == 0 and "Llama" in capsys.readouterr().out
    assert asked == [("someone/tiny", ["config.json"])]


def test_the_configuration_of_a_gguf_file_is_in_it(tmp_path, capsys):
    pytest.importorskip("gguf")
    config = json.loads((tiny(tmp_path / "tiny", rope_theta=10000.0) / "config.json").read_text())
    writer = gguf_writer(tmp_path / "tiny.gguf", "llama", "tiny", config)
    writer.add_tensor("token_embd.weight", np.zeros((50, 72), np.float32))
    writer.add_tensor("output.weight", np.zeros((50, 72), np.float32))
    finish(writer)
    assert run(tmp_path / "tiny.gguf") == 0
    planned = plan.make(config)
    assert f"{planned.parameters:,}\n" in capsys.readouterr().out


def test_numbers_beyond_the_format_are_refused_before_they_cost_memory(tmp_path):
    tracemalloc.start()
    try:
        for key, value, message in (
            ("num_hidden_layers", 4_000_000_000, "n_layers is 4000000000"),
            ("head_dim", 4_000_000_000, "head_dim is 4000000000"),
            ("vocab_size", 4_000_000_000, "vocab_size is 4000000000"),
            ("max_position_embeddings", 2**62, "max_position_embeddings is"),
            ("num_attention_heads", 10**400, "num_attention_heads is a number of more than 64 bits"),
            ("rms_norm_eps", 10**400, "rms_norm_eps is a number of more than 64 bits"),
        ):
            for family in ("LlamaForCausalLM", "SmolLM3ForCausalLM", "Qwen3ForCausalLM"):
                with pytest.raises(ConvertError, match=message):
                    plan.make(LLAMA | {"architectures": [family], key: value})
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_switches_that_are_no_truth_values_are_refused():
    for key in ("attention_bias", "tie_word_embeddings"):
        with pytest.raises(ConvertError, match=f"{key} is 'false', not true or false"):
            plan.make(LLAMA | {key: "false"})
