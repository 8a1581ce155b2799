"""LLM.score() splits texts into tokens as EleutherAI's lm-evaluation-harness does.

EXPECTED is what lm_eval 0.4.13 makes of PAIRS with these tokenizers, printed by
`pip install lm-eval && python tests/test_score.py`; where it is installed, a test compares again.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")

from pyllm.tools import huggingface_tokenizer  # noqa: E402
from reference import make_model  # noqa: E402

from pyllm import LLM  # noqa: E402

PAIRS = [
    ("Hel", "lo"),  # one token together: no token is left
    ("Hel", "lo there"),  # ... but some of what comes behind it
    ("Hello", " there"),
    ("Hello ", "there"),  # white space moves
    ("Hello \n\t", "there"),
    ("Hello\u3000\u00a0", "there"),
    ("Hello ", ""),  # and is something to score then
    ("Hello", ""),
    ("", "Hello"),
    ("", " there"),
    ("", ""),
    (" ", "there"),  # white space alone: the harness has no context, pyllm begins with BOS or EOS
    ("<s>Hello", " there"),  # BOS is not added twice
    ("<s>", "Hello"),
    ("", "<s>Hello"),
    ("", "<s>"),
    ("</s>", "Hello"),
    ("", "</s>Hello"),
    ("Hello</s>", " there"),
    ("x", "Hel"),
    ("He", "llo"),
    ("H", "ello there"),
    ("ü", "ber"),
]

# Whether there is a BOS; what is added before and behind a text
KINDS = {"adds nothing": (True, "", ""), "adds BOS": (True, "<s>", ""), "adds both": (True, "<s>", "</s>"),
         "has no BOS": (False, "", "")}  # fmt: skip

EXPECTED: dict[str, list[Any]] = {
    "adds nothing": [
        None, [[259], [266]], [[261], [266]], [[261], [266]], [[261], [222, 200, 199, 263, 265]],
        [[261], [161, 224, 224, 128, 256, 263, 265]], [[261], [222]], None, [[0], [261]], [[0],
        [266]], None, None, [[0, 261], [266]], [[0], [261]], [[0], [261]], None, [[1], [261]], [[0],
        [1, 261]], [[261, 1], [266]], [[89], [259]], None, [[41], [266]], [[129, 122], [67, 70,
        83]],
    ],
    "adds BOS": [
        None, [[0, 259], [266]], [[0, 261], [266]], [[0, 261], [266]], [[0, 261], [222, 200, 199,
        263, 265]], [[0, 261], [161, 224, 224, 128, 256, 263, 265]], [[0, 261], [222]], None, [[0],
        [261]], [[0], [266]], None, [[0], [266]], [[0, 261], [266]], [[0], [261]], [[0], [261]],
        None, [[0, 1], [261]], [[0], [1, 261]], [[0, 261, 1], [266]], [[0, 89], [259]], None, [[0,
        41], [266]], [[0, 129, 122], [67, 70, 83]],
    ],
    "adds both": [
        None, [[0, 259, 1], [1]], [[0, 261, 1], [1]], [[0, 261, 1], [1]], [[0, 261, 1], [200, 199,
        263, 265, 1]], [[0, 261, 1], [224, 224, 128, 256, 263, 265, 1]], [[0, 261, 1], [1]], None,
        [[0], [261]], [[0], [266]], None, [[0, 1], [1]], [[0, 261], [266]], [[0], [261]], [[0],
        [261]], None, [[0, 1, 1], [1]], [[0], [1, 261]], [[0, 261, 1, 1], [1]], [[0, 89, 1], [1]],
        None, [[0, 41, 1], [1]], [[0, 129, 122, 1], [70, 83, 1]],
    ],
    "has no BOS": [
        None, [[258], [265]], [[260], [265]], [[260], [265]], [[260], [221, 199, 198, 262, 264]],
        [[260], [160, 223, 223, 127, 255, 262, 264]], [[260], [221]], None, [[0], [260]], [[0],
        [265]], None, None, [[28, 83, 30, 260], [265]], [[28, 83, 30], [260]], [[0], [28, 83, 30,
        260]], [[0], [28, 83, 30]], [[0], [260]], [[0], [260]], [[260, 0], [265]], [[88], [258]],
        None, [[40], [265]], [[128, 121], [66, 69, 82]],
    ],
}  # fmt: skip


def tokenizer(kind: str):
    """Bytes, <s> and </s>, and merges that make "Hello" and " there" one token each."""
    bos, before, after = KINDS[kind]
    pieces = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("H", "e"), ("He", "l"), ("l", "o"), ("Hel", "lo"), ("t", "h"), ("th", "e")]
    merges += [("Ġ", "the"), ("r", "e"), ("Ġthe", "re")]
    special = ["<s>", "</s>"] if bos else ["</s>"]
    vocab = {piece: i for i, piece in enumerate([*special, *pieces, *("".join(pair) for pair in merges)])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in special])
    if before or after:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(), special_tokens=[(text, vocab[text]) for text in special]
        )
    return core


def harness(kind: str) -> list[Any]:
    """For each of PAIRS the ids of context and continuation; None where lm_eval raises."""
    from types import SimpleNamespace

    from lm_eval.api.model import TemplateLM
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>"} if KINDS[kind][0] else {}
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer(kind), eos_token="</s>", **special)

    class Stub(TemplateLM):
        tokenizer, add_bos_token, custom_prefix_token_id = own, None, None
        eot_token_id, prefix_token_id, tok_encode = HFLM.eot_token_id, HFLM.prefix_token_id, HFLM.tok_encode
        generate_until = loglikelihood_rolling = None

        def _loglikelihood_tokens(self, requests, **_):
            ((_, context, continuation),) = requests
            assert len(context) > 0 and len(continuation) > 0  # as HFLM has it
            return [context, continuation]

    found = []
    for pair in PAIRS:
        try:
            found.append(Stub().loglikelihood([SimpleNamespace(args=pair)], disable_tqdm=True))
        except (AssertionError, IndexError):
            found.append(None)
    return found


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    def made(kind: str) -> LLM:
        folder = tmp_path_factory.mktemp("score")
        core = tokenizer(kind)
        core.save(str(folder / "tokenizer.json"))
        special = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if KINDS[kind][0] else {})
        (folder / "tokenizer_config.json").write_text(json.dumps(special))
        sections = huggingface_tokenizer.from_directory(folder)
        (folder / "model.llm").write_bytes(make_model(7, vocab_size=core.get_vocab_size(), sections=sections))
        return LLM(folder / "model.llm", threads=1)

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_split_as_the_harness_splits_them(llm, kind):
    llm = llm(kind)
    for pair, expected in zip(PAIRS, EXPECTED[kind], strict=True):
        if expected is not None:
            assert llm._encode_pair(*pair, None) == tuple(expected), pair
            assert llm.score(*pair) == llm.score(*(text.encode() for text in pair)) == llm.score(*expected)
            assert llm.score(*pair).logprob < 0
        elif pair[0] == " ":
            assert llm.score(*pair) == llm.score("", " there")
        else:
            with pytest.raises(ValueError, match="continuation has no tokens to score"):
                llm.score(*pair)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_splits_are_the_installed_harness_s(kind):
    pytest.importorskip("lm_eval")
    pytest.importorskip("transformers")
    assert json.loads(json.dumps(harness(kind))) == EXPECTED[kind]


def test_bos_can_be_asked_for_and_refused(llm):
    adds, plain = llm("adds both"), llm("adds nothing")
    assert adds.score("Hello", " there", bos=False) == plain.score("Hello", " there")
    assert plain.score("Hello", " there", bos=True) == llm("adds BOS").score("Hello", " there")
    assert plain.score("<s>Hello", " there", bos=True) == plain.score("<s>Hello", " there")


def test_a_choice_that_merges_into_its_question_does_not_win(llm):
    llm = llm("adds nothing")
    with pytest.raises(ValueError, match="'Hel' and 'lo' together are no more tokens than the context"):
        llm.score("Hel", "lo")
    assert llm.score("Hel", "p").logprob < 0


if __name__ == "__main__":
    for each in KINDS:
        print(f"    {each!r}: {harness(each)},")
