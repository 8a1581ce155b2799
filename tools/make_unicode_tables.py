"""Makes tools/convert/unicode_tables.py: the Unicode data that tokenizer.json files rely on, as the
`tokenizers` library has it.

That library carries several Unicode versions (one in its regex engine, one in its normalizer, one in Rust
itself), none of which needs to be Python's, so each table is found by asking the library about every code
point. Run it when a new release of `tokenizers` changes what it answers:

    python tools/make_unicode_tables.py

The result is the same for the same release.
"""

import base64
import functools
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()
SCRIPTS = ["Han", "Hiragana", "Katakana", "Hangul"]
EVERY = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
TEXT = "".join(map(chr, EVERY))
TARGET = Path(__file__).parent / "convert" / "unicode_tables.py"


def runs(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted code points as inclusive (first, last) runs; a run may bridge the surrogates."""
    out: list[tuple[int, int]] = []
    for code in sorted(codes):
        if out and code in (out[-1][1] + 1, 0xE000 if out[-1][1] == 0xD7FF else -1):
            out[-1] = (out[-1][0], code)
        else:
            out.append((code, code))
    return out


def split_off(pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[int]:
    """The code points that a pre-tokenizer with behaviour "removed" removes from a text of all of them."""
    out: list[int] = []
    at = 0
    for _, (start, end) in pre_tokenizer.pre_tokenize_str(TEXT):
        out += EVERY[at:start]
        at = end
    return out + EVERY[at:]


def regex_set(pattern: str) -> list[int]:
    return split_off(pre_tokenizers.Split(Regex(pattern), "removed"))


def numeric_set() -> list[int]:
    """What the Digits pre-tokenizer takes for a digit (Rust's char::is_numeric)."""
    pieces = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("".join(f"{c}a" for c in TEXT))
    alone = {ord(piece) for piece, _ in pieces if len(piece) == 1} - {ord("a")}
    return sorted(alone)


def single_word_set() -> list[int]:
    """What ends a word for an added token with single_word (\\w of Rust's regex crate)."""
    model = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    model.add_tokens([AddedToken("X", single_word=True, normalized=False)])
    out = []
    for start in range(0, len(EVERY), 50000):
        part = EVERY[start : start + 50000]
        for code, encoded in zip(part, model.encode_batch([f"X{chr(c)}" for c in part]), strict=True):
            if not encoded.ids or encoded.ids[0] != 1:
                out.append(code)
    return [code for code in out if code != ord("X")] + [ord("X")]


def stripped_set() -> list[int]:
    """What an added token with lstrip takes along (\\s of Rust's regex crate)."""
    model = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    model.add_tokens([AddedToken("X", lstrip=True, normalized=False)])
    out = []
    for start in range(0, len(EVERY), 50000):
        part = EVERY[start : start + 50000]
        for code, encoded in zip(part, model.encode_batch([f"a{chr(c)}X" for c in part]), strict=True):
            if encoded.offsets[-1][0] == 1 and encoded.ids[-1] == 1 and encoded.offsets[-1][1] == 3:
                out.append(code)
    return out


def normalized(normalizer: normalizers.Normalizer, texts: list[str]) -> list[str]:
    """Each text normalised, all in one call; "a" and a newline keep them apart."""
    together: str = normalizer.normalize_str("\n".join(f"a{text}" for text in texts))
    return together.split("\n")


def nfc_tables() -> tuple[dict[int, int], dict[int, list[int]], dict[tuple[int, int], int]]:
    """Combining classes, full canonical decompositions, and primary composites; without Hangul syllables."""
    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    codes = [c for c in EVERY if c > 0x7F and not 0xAC00 <= c <= 0xD7A3]
    after_overlay = normalized(nfd, [f"{chr(c)}\u0334" for c in codes])
    after_mark = normalized(nfd, [f"\u0345{chr(c)}" for c in codes])
    decomposed = [nfd.normalize_str(chr(c)) for c in codes]
    decompositions = {
        c: [ord(x) for x in text] for c, text in zip(codes, decomposed, strict=True) if text != chr(c)
    }
    marks = [
        code
        for code, overlay, mark in zip(codes, after_overlay, after_mark, strict=True)
        if code not in decompositions
        and (overlay != f"a{chr(code)}\u0334" or mark != f"a\u0345{chr(code)}" or code in (0x334, 0x345))
    ]
    # Python says which classes there are and gives a mark of each; marks of one class keep their order.
    representatives: dict[int, int] = {}
    for code in marks:
        representatives.setdefault(unicodedata.combining(chr(code)), code)
    classes: dict[int, int] = {}
    for code in marks:
        for number in sorted(representatives.keys() - {0}):
            pair = chr(code) + chr(representatives[number])
            if nfd.normalize_str(pair) == pair:
                classes[code] = number
                break
        else:
            raise SystemExit(f"U+{code:04X} has no combining class that Python knows")
    for code, text in decompositions.items():  # marks that decompose are put in order through their parts
        if all(c in classes for c in text):
            classes[code] = classes[text[0]]
    pairs = {}
    for code, text in decompositions.items():
        if len(text) > 1 and nfc.normalize_str(chr(code)) == chr(code):
            first = nfc.normalize_str("".join(map(chr, text[:-1])))
            if len(first) != 1 or nfc.normalize_str(first + chr(text[-1])) != chr(code):
                raise SystemExit(f"U+{code:04X} does not compose from two characters")
            pairs[ord(first), text[-1]] = code
    return classes, decompositions, pairs


def pack(numbers: Iterable[int]) -> str:
    """Unsigned integers as variable-length bytes, deflated, in base 85."""
    out = bytearray()
    for number in numbers:
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return base64.b85encode(zlib.compress(bytes(out), 9)).decode("ascii")


def pack_runs(codes: Iterable[int]) -> str:
    """A set of code points: for each run the gap since the last one and its length less one."""
    numbers, at = [], 0
    for first, last in runs(codes):
        numbers += [first - at, last - first]
        at = last + 1
    return pack(numbers)


def lines(name: str, text: str) -> str:
    parts = [f'    "{text[i : i + 100]}"' for i in range(0, len(text), 100)]
    return f"{name} = (\n" + "\n".join(parts) + "\n)\n"


def main() -> None:
    category = {}
    for number, name in enumerate(CATEGORIES):
        for code in regex_set(rf"\p{{{name}}}"):
            category[code] = number
    if len(category) != len(EVERY):
        raise SystemExit("the categories do not cover every code point exactly once")
    changes, last = [], None
    for code in EVERY:
        if category[code] != last:
            changes += [code, category[code]]
            last = category[code]
    steps = [
        n
        for i in range(0, len(changes), 2)
        for n in (changes[i] - (changes[i - 2] if i else 0), changes[i + 1])
    ]
    sets: dict[str, Callable[[], list[int]]] = {
        "SPACE": lambda: regex_set(r"\s"),
        "WORD": lambda: regex_set(r"\w"),
        "NUMERIC": numeric_set,
        "SINGLE_WORD": single_word_set,
        "STRIPPED": stripped_set,
    }
    sets |= {name.upper(): functools.partial(regex_set, rf"\p{{{name}}}") for name in SCRIPTS}
    if regex_set(r"\d") != [c for c in EVERY if CATEGORIES[category[c]] == "Nd"]:
        raise SystemExit(r"\d is not the category Nd")
    classes, decompositions, pairs = nfc_tables()
    out = (
        f'"""Unicode data as tokenizers {tokenizers.__version__} has it, made by make_unicode_tables.py.\n\n'
        "Base 85 of deflated variable-length integers; tools/convert/pattern.py reads them.\n"
        '"""\n\n'
        "# Category of each run of code points: code point (less the one before), index in CATEGORY_NAMES.\n"
        f'CATEGORY_NAMES = (\n    "{" ".join(CATEGORIES)}"\n).split()\n'
    )
    out += lines("CATEGORIES", pack(steps))
    out += "\n# Sets of code points: gap since the run before, length less one.\n"
    for name, make in sets.items():
        out += lines(name, pack_runs(make()))
    flat = [n for c, text in sorted(decompositions.items()) for n in (c, len(text), *text)]
    out += "\n# NFC: (code, combining class); (code, length, decomposition); (first, second, result).\n"
    out += lines("COMBINING", pack(n for item in sorted(classes.items()) for n in item))
    out += lines("DECOMPOSITIONS", pack(flat))
    out += lines("COMPOSITES", pack(n for pair, c in sorted(pairs.items()) for n in (*pair, c)))
    TARGET.write_text(out)
    print(f"{TARGET.name}: {len(classes)} marks, {len(decompositions)} decompositions, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
