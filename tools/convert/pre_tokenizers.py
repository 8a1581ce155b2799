"""How the BPE tokenizers of GGUF files split a text: tokenizer.ggml.pre names one of llama.cpp's
(src/llama-vocab.cpp, llm_tokenizer_bpe and llama_vocab::impl::load), and the file says nothing more.

Where llama.cpp has rewritten an expression for its own matcher, this is the original of tokenizer.json. What
else llama.cpp does by the name is here too. It never normalises; the tokenizers of NFC do, and are followed.
"""

from __future__ import annotations

from . import pattern

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+TAIL"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*TAIL"
    r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = CASED.replace("TAIL", "").replace("DIGITS", "")
GPT4O = CASED.replace("TAIL", f"{CONTRACTIONS}?").replace("DIGITS", "{1,3}")
# The letters with case of Unicode 11, as the DeepSeek LLM tokenizer lists them.
DEEPSEEK_LETTERS = (
    r"A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373\u0376"
    r"\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F"
    r"\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77"
    r"\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D"
    r"\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4"
    r"\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139"
    r"\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D"
    r"\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A"
    r"\uFF41-\uFF5A\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
CJK = r"[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+"
KANA = r"[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Kimi's, of its tokenization_kimi.py: o200k's with Han apart
KIMI = r"[\p{Han}]+|" + GPT4O.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace(r"[\r\n/]*", r"[\r\n]*")
# Digits in threes from the right: Cohere's; and as llama.cpp has Trinity's
THREES = r"\d{1,3}(?=(?:\d{3})*\b)"
ALL_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
ASIAN = (
    r"[\u4E00-\u9FFF\u3400-\u4DBF\u8C48-\uFAFF\u3040-\u309F\u30A0-\u30FF\uFF65-\uFF9F\u2F00-\u2FDF"
    r"\u0E40-\u0E7F\u0E80-\u0EFF\u1780-\u17FF\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF"
    r"\u1100-\u11FF]+"
)
BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]+"
LINES = r"\n+"
SPACES = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"

# The values of tokenizer.ggml.pre, and the expressions that split the text, one after the other.
PRE_TOKENIZERS: dict[str, list[str]] = {}
for _names, _expressions in {
    "gpt-2 phi-2 mpt olmo jais jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe "
    "gigachat a.x-4.0 mellum modern-bert trillion granite-docling exaone4": [pattern.GPT2],
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe "
    "chatglm-bpe glm4 glm5": [LLAMA3],
    "minicpm5": [r"\p{N}{1,3}", LLAMA3.replace("{1,3}", "+")],
    "jais-2": [LLAMA3.removesuffix(r"|\s+(?!\S)|\s+") + SPACES],
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": [QWEN2],
    "qwen35": [QWEN35],
    "seed-coder": [QWEN2.replace(r"\p{N}]+[\r\n]*|", r"\p{N}\r\n]+|")],
    "bailingmoe bailingmoe2 llada-moe": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
        r"|\s+(?!\S)|\s+"
    ],
    "ufakzeka": [QWEN2.removeprefix(f"{CONTRACTIONS}|")],
    "laguna": [LINES, QWEN2],
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": [r"\p{N}", pattern.GPT2],
    "tekken": [TEKKEN],
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m": [GPT4O],
    "youtu": [
        r"[\uAC00-\uD7A3\u3131-\u318E]+"
        r"|[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C\u3001-\u303F\uFE30-\uFE4F]+"
        rf"|[\u3105-\u312F]+|{KANA}",
        CASED.replace("TAIL", f"{CONTRACTIONS}?").replace("DIGITS", ""),
    ],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{DEEPSEEK_LETTERS}]+",
        r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+",
        r"\s+$",
        CJK,
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": [r"\p{N}{1,3}", KANA, DEEPSEEK3],
    "spark2_5": [
        r"\p{N}{1,3}",
        KANA,
        DEEPSEEK3.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]"),
        r"\p{N}",
    ],
    "kimi-k2": [KIMI],
    "afmoe": [ALL_THREES, ASIAN, DEEPSEEK3],
    "tiny_aya cohere2moe": [THREES, GPT4O],
    "exaone-moe": [
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "falcon": [
        r"[\p{P}\$\+<=>\^~\|`]+",
        pattern.GPT2.removesuffix(r"|\s+"),
        r"[0-9][0-9][0-9]",
    ],
    "poro-chat bloom gpt3-finnish": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "chameleon": [
        r"<sentinel:[0-9]+>",
        r"IMGIMG[A-I]{1,4}Z",
        r"[\t\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        pattern.GPT2,
    ],
    "default": [
        r"[\p{P}\$\+<=>\^~\|]+",
        pattern.GPT2.removesuffix(r"|\s+"),
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
    "gemma4 granite-embed-multi-311m sarvam-moe": [LINES],
}.items():
    PRE_TOKENIZERS |= dict.fromkeys(_names.split(), _expressions)

# Those that llama.cpp has and the engine cannot do exactly, and what they need
BEYOND = {
    "superbpe": "places to split at that have no width",
    "whitespace": "words without bytes",
}
# Those that look whole pieces up first; that add BOS when the file does not say (Gemma's: whatever it says)
WHOLE_WORDS = {
    *"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano minicpm5 youtu "
    "glm4 glm5 tekken granite-embed-multi-97m".split()
}
ADD_BOS = {
    *"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken chameleon".split()
}
ALWAYS_BOS = {"gemma4", "granite-embed-multi-311m"}
# Those that are not of bytes but of characters, with U+2581 for spaces and tokens for bytes
PIECES = {"gemma4", "granite-embed-multi-311m", "sarvam-moe"}
# Those that have no BOS unless the file names one; others: token 11, where that is a control token
NO_BOS = {"chatglm-bpe", "glm4", "glm5"}
NFC = {"qwen2", "deepseek-r1-qwen", "megrez", "f2llmv2", "qwen35"}

# Tokens that end a generation by their texts, whatever the file says
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
# The same for tokens of code completion, where no key of the file names one: their key and their texts
FILL_TEXTS = {
    "fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep_token_id": ("<|file_sep|>",),
}
