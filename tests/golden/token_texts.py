"""Texts that this script and tests/support/token_texts.cc make alike, so that only hashes of what `tokenizers` does with them need
to be stored. The pieces they are made of come from a file that both read (POOLS, RANGES and the added tokens of the tokenizer).
A change here changes all hashes and the C++ twin."""

MASK = (1 << 64) - 1
LONG_BYTES = 1 << 20
LONG_UNITS = ["a", " ", "A", "-", "1", "é", "<", "\u0301"]
NUM_LONG_RANDOM = 2

WORDS = ("the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you "
         "were all her she there would their we him been has when who will no more if out so up said what its about than into them "
         "can only other time new some could these two may first then do any like my now over such our man me even most made after "
         "internationalisation uncharacteristically I'm I'LL WE'VE don't Don'T 'S 'Re o'clock ''s naïve café résumé Straße ŒUVRE").split()
WHITE = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\t\t", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085",
         "\u180e", "\u200b", "\x0b", "\x0c", "\u1680", "\u202f", "\u205f", "\x1c", "\ufeff"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇩", "❤️", "☺", "👨🏿‍🚀", "1️⃣", "\u200d", "\ufe0f", "🫨", "🪿"]
MARKED = ["e\u0301", "é", "a\u0308\u0304", "a\u0304\u0308", "q\u0323\u0307", "q\u0307\u0323", "\u0301", "\u0344", "\u212b", "\u2126",
          "\u1100\u1161\u11a8", "각", "한글", "\u0915\u093f", "\u09c7\u09be", "ﬁ", "ſ", "ẛ̣", "\u1e9b\u0323", "\u0f71\u0f72\u0f74",
          "\U0001d15e", "\u0340", "が", "か\u3099", "\U000110ba", "n\u0303o", "i\u0307\u0323\u0328", "Z" + "\u0300\u0316" * 9]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["...", "—", "„“", "«»", "。", "、", "->", "::", "'''", "/*", "*/", "//\n", "§", "€"]
NUMBERS = ["0", "7", "42", "123", "1234", "12345", "3.14159", "1,000,000", "2026-11-24", "0x1F", "1e-9", "½", "Ⅷ", "²³", "٣٤٥", "१२३४",
           "一二三", "①②", "𝟘𝟙", "100%", "v1.2.3", "1st", "٪", "\U00016d75\U00016d76\U00016d77\U00016d78"]
SCRIPTS = ["Привет", "мир", "你好", "世界人权宣言", "日本語", "カタカナ", "ひらがな", "한국어", "العربية", "עִבְרִית", "हिन्दी", "ไทย", "ქართული", "Ελληνικά", "አማርኛ",
           "தமிழ்", "Việt", "ꓡꓲꓢꓴ", "𐐷𐐲", "𠀀𠀁", "\U00031350\U00031351", "\u1c89\u1c8a", "\U00016d40", "Ʞ\ua7cb", "ǅ", "ʰʲ", "ⅷ", "ª", "K\u212a"]
CODE = ["#include <vector>\nint main() {\n\treturn 0;\n}\n", "def f(x):\n    return x**2  # square\n\n\nclass A:\n    pass\n",
        "SELECT * FROM t WHERE a='b' AND c<>1;\r\n", "<div class=\"x\">&nbsp;</div>\n", "{\"a\": [1, 2, {\"b\": null}]}", "x = y?.z ?? 0;",
        "\\begin{equation}\n  \\alpha^2\n\\end{equation}", "https://example.org/a/b?c=d&e=%20f#g", "C:\\Users\\name\\file.txt", "$HOME/.config",
        "camelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case", "if (a<b&&c>d||!e) f();", "|a|b|\n|-|-|\n|1|2|"]
CONTROL = ["\0", "\0\0", "a\0b", "\x01", "\x7f", "\u0080", "\u009f", "\ufffd", "\uffff", "\U0010ffff", "\ufdd0", "\ue000", "\U000f0000", "\x1b[0m"]
SENTENCE_PIECE = ["▁", "▁▁", "a▁b", "<0x41>", "<0xE2>", "<0x0A", "▁the", "<unk>", "'s", "'LL", "'ſ", "'", "A", "Ab", "aB", "ABCd", "ª", "ʰA"]
POOLS = [WORDS, WORDS, WORDS, WHITE, EMOJI, MARKED, PUNCTUATION, NUMBERS, SCRIPTS, CODE, CONTROL, SENTENCE_PIECE]
RANGES = [(0x20, 0x7f), (0, 0x500), (0x500, 0x3000), (0x3000, 0xd800), (0xe000, 0x10000), (0x10000, 0x20000), (0x1f000, 0x1fb00),
          (0x20000, 0x32400), (0xe0000, 0xe0200), (0x10000, 0x110000), (0x300, 0x370), (0x1100, 0x1200), (0x900, 0xe00), (0x1e00, 0x2000)]


class Random:
    """SplitMix64."""

    def __init__(self, seed: int):
        self.state = seed & MASK

    def below(self, bound: int) -> int:
        self.state = (self.state + 0x9e3779b97f4a7c15) & MASK
        z = self.state
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 & MASK
        z = (z ^ z >> 27) * 0x94d049bb133111eb & MASK
        return (z ^ z >> 31) % bound


def random_characters(random: Random) -> str:
    """Characters of all planes, assigned or not; no surrogates."""
    text = ""
    for _ in range(1 + random.below(12)):
        low, high = RANGES[random.below(len(RANGES))]
        text += chr(low + random.below(high - low))
    return text


def random_added(random: Random, added: list) -> str:
    token = added[random.below(len(added))]
    change = random.below(6)
    return token[:-1] if change == 0 else token + token if change == 1 else token


def random_text(index: int, added: list) -> str:
    random = Random(index)
    style = random.below(8)  # 0: random characters; above 4: spaces between most parts
    text = ""
    for _ in range(1 + random.below(12)):
        if style == 0:
            text += random_characters(random)
        elif added and random.below(6) == 0:
            text += random_added(random, added)
        else:
            pool = POOLS[random.below(len(POOLS))]
            text += pool[random.below(len(pool))]
        if style > 4 and random.below(3) > 0:
            text += " "
    return text


def long_texts(added: list) -> list:
    """A megabyte each, on one line."""
    texts = [unit * (LONG_BYTES // len(unit.encode())) for unit in LONG_UNITS]
    for number in range(NUM_LONG_RANDOM):
        parts, num_bytes, index = [], 0, 0
        while num_bytes < LONG_BYTES:
            parts.append(random_text(1000000 * (number + 1) + index, added).replace("\n", " ").replace("\r", " "))
            num_bytes += len(parts[-1].encode())
            index += 1
        texts.append("".join(parts))
    return texts
