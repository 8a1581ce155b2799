"""Train the built-in model from nothing: stories -> byte-level BPE -> a small Llama -> a Hugging Face folder.

    python -m tools.stories.train --work build --minutes 35

Needs torch, numpy, tokenizers and safetensors; the text is made by generate.py, nothing is downloaded.
Every step is skipped when its file is already in the work folder, and training goes on from the last
checkpoint, so that a run can be stopped at any minute.  The learning rate follows the share of --minutes
spent, so a slower machine sees fewer tokens and still ends its schedule.

It does not tune anything, does not use a GPU, and does not write the flat file: that is the converter's work.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.stories import generate

BOS, EOS = 0, 1
BOS_TOKEN, EOS_TOKEN = "<|begin|>", "<|end|>"
QUERY_BLOCK = 128
HELD_OUT_SEED = 1_000_003
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "description": "stories: 3.5 M parameters, trained from scratch on synthetic children's stories made by "
                   "tools/stories; it knows nothing about the world",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "num_attention_heads": 6,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 2048,
}


# The model, with the parameter names of transformers' LlamaForCausalLM.


class Attention(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        dim, self.size = c["hidden_size"], c["head_dim"]
        self.q_proj = nn.Linear(dim, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(dim, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(dim, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, dim, bias=False)

    @torch.no_grad()
    def copy_start(self, gain: float) -> None:
        """Make each head pass on some of what it looks at, so that looking at the right name pays at once."""
        group = self.heads // self.kv_heads
        for head, weight in enumerate(self.o_proj.weight.split(self.size, 1)):
            weight += gain * torch.linalg.pinv(self.v_proj.weight.split(self.size)[head // group])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.size).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.size).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Written out, a block of queries at a time: on a CPU this and torch.compile take half the time of
        # F.scaled_dot_product_attention, whose backward is slow for small heads.
        q, parts = q * self.size**-0.5, []
        for first in range(0, length, QUERY_BLOCK):
            end = min(length, first + QUERY_BLOCK)
            scores = q[:, :, first:end] @ k[:, :, :end].transpose(-1, -2) + mask[first:end, :end]
            parts.append(scores.softmax(-1) @ v[:, :, :end])
        return self.o_proj(torch.cat(parts, 2).transpose(1, 2).reshape(batch, length, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, the rotate_half convention: pairs are (i, i + size / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim, hidden = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Mlp(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Llama(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocabulary); the head is the embedding."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.model = Body(c)
        size = c["head_dim"]
        rate = c["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angle = torch.arange(c["max_position_embeddings"], dtype=torch.float32)[:, None] * rate
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        mask = torch.full((c["max_position_embeddings"],) * 2, float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * c["num_hidden_layers"]) if deep else 0.02)
        # A name must stay readable in the residual stream above the first layers, or the model never learns
        # to repeat it: the embedding starts large, and the last norm small so that the logits stay moderate.
        nn.init.normal_(self.model.embed_tokens.weight, std=0.5)
        nn.init.constant_(self.model.norm.weight, 0.1)
        for layer in self.model.layers[2:-1]:
            layer.self_attn.copy_start(0.3)

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin, self.mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


# Text, tokenizer, token array.


def story_texts(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split(f"\n{generate.SEPARATOR}\n")[:-1]


def make_text(path: Path, count: int, seed: int) -> None:
    if not path.exists():
        print(f"writing {count} stories to {path}", flush=True)
        generate.main(["--stories", str(count), "--seed", str(seed), "--out", str(path) + ".part"])
        Path(str(path) + ".part").rename(path)


def make_tokenizer(path: Path, texts: list[str]) -> Any:
    """A byte-level BPE of 2,048 tokens (GPT-2 split) that puts <|begin|> in front; trained once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"], special_tokens=[BOS_TOKEN, EOS_TOKEN], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A $B", special_tokens=[(BOS_TOKEN, BOS)])
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def make_tokens(path: Path, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """One flat uint16 array: <|begin|> story <|end|>, one story after the other."""
    if not path.exists():
        chunks = []
        for at in range(0, len(texts), 10_000):
            for encoding in tokenizer.encode_batch(texts[at : at + 10_000]):
                chunks.append(np.array([*encoding.ids, EOS], dtype=np.uint16))
        np.save(path, np.concatenate(chunks))
    return np.asarray(np.load(path))


def story_bounds(tokens: np.ndarray, length: int) -> np.ndarray:
    """Where each story of at most `length` + 1 tokens begins and ends."""
    begins = np.flatnonzero(tokens == BOS)
    bounds = np.stack([begins, np.append(begins[1:], len(tokens))], 1)
    return np.compress(bounds[:, 1] - bounds[:, 0] <= length + 1, bounds, axis=0)


def story_rows(tokens: np.ndarray, bounds: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """One story a row: token ids, padded, and the tokens to predict, -100 where there is nothing to learn."""
    ids, targets = np.full((len(bounds), length), EOS), np.full((len(bounds), length), -100)
    for row, (begin, end) in enumerate(bounds):
        ids[row, : end - begin - 1] = tokens[begin : end - 1]
        targets[row, : end - begin - 1] = tokens[begin + 1 : end]
    return torch.from_numpy(ids), torch.from_numpy(targets)


# Training.


def loss_of(model: nn.Module, ids: Tensor, targets: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(ids)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def share(model: nn.Module, extra: list[float], workers: int) -> list[float]:
    """Average the gradients and some numbers over the workers, in place; gives back the numbers."""
    if workers == 1:
        return extra
    weights = list(model.parameters())
    flat = torch.cat([*(w.grad.flatten() for w in weights), torch.tensor(extra)])
    dist.all_reduce(flat)
    flat /= workers
    parts = flat.split([*(w.numel() for w in weights), len(extra)])
    for weight, part in zip(weights, parts, strict=False):
        weight.grad.copy_(part.view_as(weight))
    sums: list[float] = parts[-1].tolist()
    return sums


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: np.ndarray, limit: int) -> tuple[float, int]:
    """Mean loss in nats a token, each story on its own after <|begin|>, and the tokens counted."""
    begins = [*np.flatnonzero(tokens == BOS)[:limit], len(tokens)]
    total, count = 0.0, 0
    for first, end in zip(begins, begins[1:], strict=False):
        ids = torch.from_numpy(tokens[first:end].astype(np.int64))[None, :513]
        total += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count, count


def export(folder: Path, model: Llama, work: Path) -> None:
    """Write what transformers.LlamaForCausalLM.from_pretrained and the project's converter read."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    documents = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN,
            "clean_up_tokenization_spaces": False, "model_max_length": CONFIG["max_position_embeddings"],
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Make the text, the tokenizer and the token arrays that are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    make_text(work / "train.txt", args.stories, args.seed)
    make_text(work / "held.txt", 2000, HELD_OUT_SEED)
    if all((work / name).exists() for name in ("tokenizer.json", "train.npy", "held.npy")):
        return
    texts = story_texts(work / "train.txt")
    tokenizer = make_tokenizer(work / "tokenizer.json", texts[:30_000])
    make_tokens(work / "train.npy", tokenizer, texts)
    make_tokens(work / "held.npy", tokenizer, story_texts(work / "held.txt"))


def train(rank: int, args: argparse.Namespace) -> None:
    """One worker of --workers: the same weights in each, its own stories, gradients averaged every step."""
    work, workers = Path(args.work), args.workers
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if workers > 1:
        meeting = f"file://{(work / 'meeting').resolve()}"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=workers)
    tokens, held = np.load(work / "train.npy", mmap_mode="r"), np.load(work / "held.npy")
    bounds = story_bounds(tokens, args.length)
    np.random.default_rng(args.seed).shuffle(bounds)

    model = Llama(CONFIG)
    count = sum(w.numel() for w in model.parameters())
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name]
    others = [w for name, w in model.named_parameters() if w.dim() != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    step, seen, story, spent, checkpoint = 0, 0.0, 0, 0.0, work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, story, spent = (state[key] for key in ("step", "seen", "story", "spent"))
    if rank == 0:
        print(f"{count:,} parameters; {len(tokens):,} tokens in {len(bounds):,} stories of up to "
              f"{args.length + 1}; held out {len(held):,} tokens", flush=True)
    run = torch.compile(model) if args.compile else model
    budget, last, saved, shown = args.minutes * 60, time.monotonic(), spent, 0.0
    while spent < budget:
        rate = min(1.0, (step + 1) / 200) * (0.02 + 0.49 * (1 + math.cos(math.pi * spent / budget))) * args.lr
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = (story + rank * args.batch + np.arange(args.batch)) % len(bounds)
        ids, targets = story_rows(tokens, bounds[picked], args.length)
        loss = loss_of(run, ids, targets, args.bf16)
        loss.backward()
        counted = (targets >= 0).sum().item()
        now = time.monotonic()
        value, counted, spent = share(model, [loss.item(), counted, spent + now - last], workers)
        last = now
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, story, seen = step + 1, story + args.batch * workers, seen + counted * workers
        shown = 0.98 * shown + 0.02 * value if shown else value
        if rank == 0 and step % 100 == 0:
            print(f"step {step}  {spent / 60:.1f} min  {seen / 1e6:.2f} M tokens  {seen / spent:.0f} "
                  f"tokens/s  lr {rate:.2e}  loss {shown:.4f}", flush=True)
        if spent - saved > args.save_minutes * 60 or spent >= budget:
            saved = spent
            if rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                         "seen": seen, "story": story, "spent": spent}
                torch.save(state, str(checkpoint) + ".part")
                Path(str(checkpoint) + ".part").rename(checkpoint)
                export(work / "hf_early", model, work)
                early = held_out_loss(model, held, 50)[0]
                print(f"saved; held-out loss {early:.4f} on 50 stories", flush=True)

    if rank == 0:
        export(work / "hf", model, work)
        texts = story_texts(work / "held.txt")
        loss, count = held_out_loss(model, held, len(texts))
        size = sum(len(text) for text in texts)
        bits = loss * count / size / math.log(2)
        print(f"held-out loss {loss:.4f} nats a token, {bits:.4f} bits a byte ({count:,} tokens, {size:,} "
              f"bytes, seed {HELD_OUT_SEED}); wrote {work / 'hf'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in story model.")
    parser.add_argument("--work", default="build", help="folder for text, tokens, checkpoint and result")
    parser.add_argument("--minutes", type=float, default=35.0, help="training time (default 35)")
    parser.add_argument("--stories", type=int, default=100_000, help="training stories (default 100000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="stories a step and worker")
    parser.add_argument("--length", type=int, default=352, help="tokens a row; longer stories are left out")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1, help="threads a worker")
    parser.add_argument("--workers", type=int, default=2, help="processes that share each step (default 2)")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="minutes between checkpoints")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True,
        help="bfloat16 autocast")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
        help="torch.compile")
    args = parser.parse_args()
    work = Path(args.work)
    prepare(args, work)
    (work / "meeting").unlink(missing_ok=True)
    if args.workers == 1:
        train(0, args)
    else:
        torch.multiprocessing.spawn(train, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
