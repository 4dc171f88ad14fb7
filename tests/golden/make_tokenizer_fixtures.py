#!/usr/bin/env python3
"""Makes the golden tokenizer fixtures: tiny BPE tokenizers, byte-level and with byte fallback, and what the `tokenizers` package does with them.

    python3 tests/golden/make_tokenizer_fixtures.py OUT_DIR      # e.g. tests/golden/tokenizers

Needs tokenizers 0.23; a few minutes. `make_tokenizer_fixtures.py OUT_DIR --show NAME INDEX` prints instead what the package does with
one of the texts whose results are stored as hashes; `make_tokenizer_fixtures.py OUT_DIR --large NUM_MERGES FILE...` trains tokenizers of
the five families on the text of files instead, for benchmarks. OUT_DIR gets, per tokenizer:

    NAME.tokenizer.json   the tokenizer
    NAME.cases.jsonl      one case a line: [text, ids, ids with special tokens as plain text or null when equal,
                          decoded text or null when equal to text, the same without special tokens or null when equal to decoded]
    NAME.decode.jsonl     [ids, text, text without special tokens] for ids that no text has

    NAME.hashes           what it does with the texts of token_texts.py: first a hash of all texts, then one of each text's results,
                          then one of each long text's

and

    fragments.json        what the texts of token_texts.py are made of
    classes.json          for each character class: the first and last code points of its ranges in the package's regular expressions
    splits.jsonl          [pattern, is a regular expression, behaviour, invert, text, pieces]

Texts with lone surrogates do not exist in UTF-8; the package never sees them, and the tests refuse them.
"""
import json
import pathlib
import random
import sys
import unicodedata
import zlib

import token_texts
from token_texts import CODE, CONTROL, EMOJI, MARKED, NUMBERS, PUNCTUATION, SCRIPTS, WHITE, WORDS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SEED = 20261124
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
MARKS = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TRAINING_TEXT = """
The quick brown fox jumps over the lazy dog. It's what they've said, isn't it? I'll say we're there; he'd know.
In the beginning the engine reads the whole text once, and then it attends to a few of its tokens only.
def encode(text: str) -> list[int]:\n    return [token for token in self.split(text) if token is not None]\n
for (int i = 0; i < 10; ++i) { printf("%d\\n", values[i]); }  // prints ten values
    if x == 42:\n        return {"key": "value", "numbers": [1, 22, 333, 4444, 55555]}
Äpfel und Öl für die Straße; où êtes-vous, garçon? El niño comió mañana. Český překlad. Życie.
Привет, мир! Как дела? Всё хорошо, спасибо. Γειά σου Κόσμε. 你好,世界!我们今天去学校。日本語のテキストです。한국어 문장입니다.
مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก 😀😃👍🏽👩‍👩‍👧‍👦🇩🇪🇫🇷 ∑∫√ ½¾ ١٢٣ 一二三
"""

def some_characters(rng: random.Random) -> str:
    """Characters of all planes, assigned or not; surrogates excluded."""
    ranges = [(0x20, 0x7f), (0, 0x500), (0x500, 0x3000), (0x3000, 0xd800), (0xe000, 0x10000), (0x10000, 0x20000), (0x1f000, 0x1fb00),
              (0x20000, 0x32400), (0xe0000, 0xe0200), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 12)))


def texts(rng: random.Random, count: int, added: list) -> list:
    fixed = ["", " ", "a", "Hello world", " Hello", "Hello ", "\n", "\r\n", "it's", "IT'S", "it’s", "'ſ ſt 'K", "x" * 300, "ab" * 100,
             " " * 70, "\n" * 33, "\t \t \n \t", " \n \n a", "a  b   c    d", "a\r\n\r\n  b", "  \u3000 a", "\u180e\u180ea", "1234567890" * 4,
             "ÅÅ" * 20, "é" * 40, "𝒳" * 9, "-" * 50, "=" * 17 + "\n" + "=" * 17, "the" * 30, "\0"]
    fixed += added + [a + a for a in added] + [f"  {a}  " for a in added] + [f"x{a}y" for a in added] + [a[:-1] for a in added]
    fixed += [f"{a}\n\n{b}" for a in added for b in added][:40] + [a.lower() for a in added] + [a.upper() + "é" for a in added]
    pools = [WORDS, WORDS, WORDS, WHITE, EMOJI, MARKED, PUNCTUATION, NUMBERS, SCRIPTS, CODE, CONTROL]
    result = list(dict.fromkeys(fixed))
    seen = set(result)
    while len(result) < count:
        parts = []
        style = rng.random()
        for _ in range(rng.randint(1, 9)):
            pool = added if added and rng.random() < 0.12 else rng.choice(pools)
            parts.append(some_characters(rng) if style < 0.15 else rng.choice(pool))
            if style > 0.5 and rng.random() < 0.7:
                parts.append(" ")
        text = "".join(parts)[:26]
        if text not in seen:
            seen.add(text)
            result.append(text)
    return result


def special(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


class large:
    """What --large trains with; empty without it."""
    num_merges = 0
    lines: list = []


def train(pre_tokenizer, merges: int, model=None, normalizer=None, special_tokens=()) -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256 + (large.num_merges or merges), show_progress=False, min_frequency=1, special_tokens=list(special_tokens),
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(large.lines or [TRAINING_TEXT] + [" ".join(WORDS)] * 3 + CODE, trainer)
    return tokenizer


def split_then_bytes(pattern: str):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def template(single: str, tokenizer: Tokenizer, *tokens: str):
    return processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=[(t, tokenizer.token_to_id(t)) for t in tokens])


def edit(tokenizer: Tokenizer, change) -> Tokenizer:
    data = json.loads(tokenizer.to_str())
    change(data)
    return Tokenizer.from_str(json.dumps(data))


def make_llama3() -> Tokenizer:
    """As Llama 3: three digits, merges ignored for whole words, begin-of-text by template."""
    tokenizer = train(split_then_bytes(LLAMA3), 400, models.BPE(ignore_merges=True))

    def whole_words(data):  # tokens that no merge makes, reached by ignore_merges only
        for word in ("Ġinternationalisation", "ĠuncharacteristicallyX", "ÅĴUVRE", "ĊĊĊĊ"):
            data["model"]["vocab"].setdefault(word, len(data["model"]["vocab"]))
    tokenizer = edit(tokenizer, whole_words)
    tokenizer.add_special_tokens([special(t) for t in ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                                       "<|eot_id|>")])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                    template("<|begin_of_text|> $A", tokenizer, "<|begin_of_text|>")])
    return tokenizer


def make_qwen2() -> Tokenizer:
    """As Qwen2.5: NFC, single digits, merges written as strings, nothing around the text."""
    tokenizer = train(split_then_bytes(QWEN2), 350, normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>")])

    def old_merges(data):
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    return edit(tokenizer, old_merges)


def make_awkward() -> Tokenizer:
    """Added tokens with every flag, overlapping contents, a normalizer, a Contiguous digit split, text on both sides."""
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(MARKS), "isolated"), pre_tokenizers.Digits(individual_digits=False),
                                   pre_tokenizers.Split("-", "merged_with_next"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = train(pre, 300, normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.NFC()]))
    tokenizer.add_tokens([
        AddedToken("<l>", lstrip=True, normalized=False), AddedToken("<r>", rstrip=True, normalized=False),
        AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False, special=True), AddedToken("word", single_word=True, normalized=False),
        AddedToken("wordy", single_word=True, normalized=False), AddedToken("the", single_word=True, lstrip=True, normalized=True),
        AddedToken("<|a|>", special=True, normalized=True), AddedToken("<|a|><|b|>", special=True, normalized=False),
        AddedToken("cafe\u0301", normalized=True), AddedToken("e\u0301e", normalized=False), AddedToken("   ", normalized=False),
        AddedToken("\n\n\n", normalized=True), AddedToken("日本", normalized=True, single_word=True), AddedToken("👍", normalized=False),
        AddedToken("naïve", special=True, normalized=False), AddedToken("fox", normalized=False, rstrip=True, single_word=True),
        AddedToken("Ġ!", normalized=False)])
    tokenizer.post_processor = template("<l> <lr> <l> $A <|a|> <r>", tokenizer, "<l>", "<lr>", "<|a|>", "<r>")
    return tokenizer


def make_gpt2() -> Tokenizer:
    """As GPT-2: ByteLevel cuts by itself and puts a space in front; decoder in a sequence; a token for unknown characters."""
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), 300,
                      models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])

    def unknown(data):  # without the tokens of some bytes, and with one for them
        vocab = data["model"]["vocab"]
        removed = {c for c in "ðÑĢ¥Ħ"}
        vocab = {t: i for t, i in vocab.items() if not removed & set(t)}
        data["model"]["vocab"] = {t: i for i, t in enumerate([*vocab, "<unk>"])}
        data["model"]["merges"] = [pair for pair in data["model"]["merges"] if not removed & set("".join(pair))]
    tokenizer = edit(tokenizer, unknown)
    tokenizer.add_special_tokens([special("<|endoftext|>")])
    return tokenizer


def make_cased() -> Tokenizer:
    """As Ministral: words cut where upper case follows lower case; no decoder, so tokens are joined with spaces; unfused unknown."""
    tokenizer = train(split_then_bytes(CASED), 300)
    tokenizer.add_special_tokens([special(t) for t in ("<s>", "</s>", "[INST]", "[/INST]")])
    tokenizer.post_processor = template("<s> $A", tokenizer, "<s>")
    return edit(tokenizer, lambda data: data.update(decoder=None))


def make_characters() -> Tokenizer:
    """No byte level: characters as they are, most of them unknown, digits alone, spaces removed."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Digits(True),
                                                       pre_tokenizers.Split(Regex(r"\b"), "isolated")])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.train_from_iterator([TRAINING_TEXT], trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]"],
                                                                       limit_alphabet=60))
    return tokenizer


def make_qwen35() -> Tokenizer:
    """As Qwen3.5: marks belong to words, NFC, single digits."""
    tokenizer = train(split_then_bytes(MARKS), 350, normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_ministral() -> Tokenizer:
    """As Ministral: special tokens have the first ids, words cut where upper case follows lower case."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<SPECIAL_20>"]
    tokenizer = train(split_then_bytes(CASED), 350, models.BPE(ignore_merges=True), special_tokens=[special(t) for t in names])
    tokenizer.post_processor = template("<s> $A", tokenizer, "<s>")
    return tokenizer


def train_sentence_piece(names: list, merges: int, options: dict, limit_alphabet: int, whole_lines: bool = False) -> Tokenizer:
    """BPE on characters, with space as the character U+2581; the tokens of `names` come first and are not added tokens."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    if not whole_lines:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=len(names) + limit_alphabet + (large.num_merges or merges), show_progress=False, min_frequency=1,
                                  special_tokens=names, limit_alphabet=limit_alphabet)
    tokenizer.train_from_iterator(large.lines or (TRAINING_TEXT + " ".join(WORDS) * 3 + "".join(CODE)).splitlines(), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return edit(tokenizer, lambda data: data.update(added_tokens=[]))


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def make_gemma3() -> Tokenizer:
    """As Gemma 3: one piece is a whole text between added tokens; runs of newlines and spaces and HTML tags are added tokens."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    plain = ["[multimodal]", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    runs = ["\n" * n for n in range(1, 32)] + ["▁" * n for n in range(2, 32)] + ["<table>", "</table>", "<td>", "<h1>", "<br>", "\t\t"]
    tokenizer = train_sentence_piece(specials + plain + runs + BYTES, 500,
                                     dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True), 150)
    tokenizer.add_special_tokens([special(t) for t in specials])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain[:3] + runs])
    tokenizer.add_special_tokens([special(t) for t in plain[3:]])
    tokenizer.post_processor = template("<bos> $A", tokenizer, "<bos>")
    return tokenizer


def make_fallback() -> Tokenizer:
    """Byte fallback where it is awkward: some bytes have no token, byte tokens merge, merges cross words, normalizers of all kinds, a
    step after the fallback's decoder, added tokens with every flag."""
    bytes_there = [b for b in BYTES if b not in ("<0x9F>", "<0xC3>", "<0xE4>")]
    tokenizer = train_sentence_piece(["<unk>"] + bytes_there, 260, dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True), 60,
                                     whole_lines=True)

    def merge_bytes(data):
        for left, right in (("<0xE2>", "<0x82>"), ("<0xE2><0x82>", "<0xAC>"), ("<0xF0>", "a"), ("<unk>", "e"), ("e", "<0xE3>")):
            data["model"]["vocab"].setdefault(left + right, len(data["model"]["vocab"]))
            data["model"]["merges"].append([left, right])
    tokenizer = edit(tokenizer, merge_bytes)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Strip(left=True, right=False), normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(Regex(r"\r\n?"), "\n"),
        normalizers.Replace(" ", "▁"), normalizers.Replace("—", "--")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Sequence([decoders.ByteFallback()]),
                                           decoders.Replace("\ufffd\ufffd", "?"), decoders.Replace("é", "e\u0301"), decoders.Fuse()])
    tokenizer.add_tokens([
        AddedToken("<l>", lstrip=True, normalized=False), AddedToken("<r>", rstrip=True, normalized=False),
        AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False, special=True), AddedToken("word", single_word=True, normalized=False),
        AddedToken("the", single_word=True, lstrip=True, normalized=True), AddedToken("a b", normalized=True),
        AddedToken("<|a|>", special=True, normalized=True), AddedToken("—", normalized=True, rstrip=True), AddedToken("<0x41>", normalized=False),
        AddedToken("cafe\u0301", normalized=True), AddedToken("\u0301", normalized=False), AddedToken("日本", normalized=True, single_word=True)])
    tokenizer.post_processor = template("<lr> <l> $A <r>", tokenizer, "<lr>", "<l>", "<r>")
    return tokenizer


def write_cases(out: pathlib.Path, name: str, tokenizer: Tokenizer, rng: random.Random, count: int) -> int:
    tokenizer.save(str(out / f"{name}.tokenizer.json"), pretty=False)
    tokenizer = Tokenizer.from_file(str(out / f"{name}.tokenizer.json"))
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    cases = texts(rng, count, added)
    with open(out / f"{name}.cases.jsonl", "w", encoding="utf-8") as file:
        for text in cases:
            ids = tokenizer.encode(text).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text).ids
            tokenizer.encode_special_tokens = False
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
            skipped = tokenizer.decode(ids, skip_special_tokens=True)
            row = [text, ids, None if plain == ids else plain, None if decoded == text else decoded, None if skipped == decoded else skipped]
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    all_ids = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()))
    with open(out / f"{name}.decode.jsonl", "w", encoding="utf-8") as file:
        for _ in range(60):
            ids = [rng.choice(all_ids) for _ in range(rng.randint(1, 10))]
            row = [ids, tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids, skip_special_tokens=True)]
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    return len(cases)


def write_classes(out: pathlib.Path) -> None:
    everything = "".join(chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000)
    classes = {}
    for pattern in [r"\s", r"\S", r"\w", r"\d", r"\h", r"\v", ".", r"[^\s\p{L}\p{N}]", r"[\p{Lu}\p{Lt}\p{Lo}\p{M}]",
                    r"\p{^N}", r"(?i:s)", r"(?i:k)", r"(?i:é)", r"(?m:.)"] + [
                        r"\p{%s}" % c for c in "L N M S Z Lu Ll Lt Lm Nd".split()]:
        ranges = []
        pieces = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(everything)
        for code_point in (ord(c) for piece, _ in pieces for c in piece):
            if ranges and ranges[-1] == code_point - 1:
                ranges[-1] = code_point
            else:
                ranges += [code_point, code_point]
        classes[pattern] = ranges
    (out / "classes.json").write_text(json.dumps(classes, separators=(",", ":")) + "\n", encoding="utf-8")


def write_splits(out: pathlib.Path, rng: random.Random) -> int:
    patterns = [(r"\s+", True), (r"\s*", True), (r"a*", True), ("", True), (r"(?=b)", True), ("ab", False), (" ", False), (".", False), ("^", True),
                ("$", True), (r"^a", True), (r"\b", True), (r"\B", True), (r"(?i:AB)", True), (r"[^a]+?", True), (r"(a|ab)(b|)", True),
                (r"(?<=a)b", True), (r"(?<!a)b", True), (r"x{2,3}", True), (r"x++", True), (r"(?m:a.b)", True), (r"a.b", True), (r"\w+|[^\w\s]+", True),
                (r"[\[\]\-\\&]", True), ("👍", False), (r"\Aa|b\z", True), (r"a\Z", True), (r"\R", True), (r"(?>a+)b", True),
                (r"(.)\1", True), (r"\x61|\x{62}", True), (r"é", True), (r"\n$", True), (LLAMA3, True), (QWEN2, True), (MARKS, True), (CASED, True)]
    inputs = ["ab", "aab b", " a b ", "abab", "xxxxx", "a\nb\n", "\n\n", "bbb", "AbaB", "é e\u0301", "a👍b👍👍", "a\r\nb\rc", "[a]-\\&&", "hello, world  !"]
    rows = []
    for pattern, is_regex in patterns:
        for text in inputs:
            for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
                invert = rng.random() < 0.4
                if rng.random() < 0.75:
                    continue
                split = pre_tokenizers.Split(Regex(pattern) if is_regex else pattern, behavior, invert=invert)
                name = "".join(part.capitalize() for part in behavior.split("_"))
                rows.append([pattern, is_regex, name, invert, text, [piece for piece, _ in split.pre_tokenize_str(text)]])
    with open(out / "splits.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    return len(rows)


def added_contents(tokenizer: Tokenizer) -> list:
    return [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]


def results(tokenizer: Tokenizer, text: str) -> list:
    """Ids, ids with special tokens as plain text, text of the ids, the same without special tokens."""
    tokenizer.encode_special_tokens = False
    ids = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = False
    return [ids, plain, tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids, skip_special_tokens=True)]


def hash_of(parts: list) -> int:
    """CRC-32 of ids as 32-bit words, low byte first, and texts in UTF-8, with a byte 255 after each."""
    value = 0
    for part in parts:
        data = part.encode() if isinstance(part, str) else b"".join(i.to_bytes(4, "little") for i in part)
        value = zlib.crc32(data + b"\xff", value)
    return value


def write_hashes(out: pathlib.Path, name: str, count: int) -> None:
    tokenizer = Tokenizer.from_file(str(out / f"{name}.tokenizer.json"))
    added = added_contents(tokenizer)
    texts_made = [token_texts.random_text(i, added) for i in range(count)]
    hashes = [hash_of(texts_made)] + [hash_of(results(tokenizer, text)) for text in texts_made]
    if name in FAMILIES:
        hashes += [hash_of(results(tokenizer, text)) for text in token_texts.long_texts(added)]
    (out / f"{name}.hashes").write_text("".join(f"{h:08x}{' ' if i % 16 else chr(10)}" for i, h in enumerate(hashes, 1)) + "\n")


FAMILIES = {"llama3": make_llama3, "qwen2": make_qwen2, "qwen35": make_qwen35, "ministral": make_ministral, "gemma3": make_gemma3}
OTHERS = {"awkward": make_awkward, "fallback": make_fallback, "gpt2": make_gpt2, "cased": make_cased, "characters": make_characters}
NUM_CASES = {"llama3": 300, "qwen2": 300, "qwen35": 200, "ministral": 200, "gemma3": 448, "awkward": 500, "fallback": 400, "gpt2": 150,
             "cased": 150, "characters": 120}
NUM_HASHED = 10000


def show(out: pathlib.Path, name: str, index: int) -> None:
    tokenizer = Tokenizer.from_file(str(out / f"{name}.tokenizer.json"))
    text = token_texts.random_text(index, added_contents(tokenizer))
    print(json.dumps([text, *results(tokenizer, text)], ensure_ascii=True))
    print([tokenizer.id_to_token(i) for i in tokenizer.encode(text).ids])


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    if len(sys.argv) == 5 and sys.argv[2] == "--show":
        show(out, sys.argv[3], int(sys.argv[4]))
        return
    if len(sys.argv) > 4 and sys.argv[2] == "--large":
        large.num_merges = int(sys.argv[3])
        large.lines = [line for file in sys.argv[4:] for line in pathlib.Path(file).read_text(encoding="utf-8").splitlines(keepends=True)]
        for name, make in FAMILIES.items():
            make().save(str(out / f"{name}.tokenizer.json"), pretty=False)
        return
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    total = 0
    for name, make in {**FAMILIES, **OTHERS}.items():
        total += write_cases(out, name, make(), rng, NUM_CASES[name])
        write_hashes(out, name, NUM_HASHED)
    (out / "fragments.json").write_text(json.dumps({"pools": token_texts.POOLS, "ranges": token_texts.RANGES}, ensure_ascii=True) + "\n")
    write_classes(out)
    print(f"{total} texts, {NUM_HASHED * len(NUM_CASES)} hashed, {write_splits(out, rng)} splits, "
          f"{sum(p.stat().st_size for p in out.iterdir())} bytes; Python's Unicode {unicodedata.unidata_version}")


if __name__ == "__main__":
    main()
