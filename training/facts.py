"""Planted facts: names, templates, and how they are put into real text. Standard library only.

Training uses the `seen` templates and question formats in token space (sequences.py); evaluation plants facts
into held-out text here. The `unseen` ones are never trained on. Only Random.random() is used, whose values
Python promises to keep between versions, so a (text, seed) pair always gives the same context.
"""
import random
import re

FACTS = {
    "seen": [
        "Note: the code of the {name} is {value}.",
        "Remember that the code of the {name} is {value}.",
        "The {name} has the code {value}.",
        "Record: {name}, code {value}.",
        "For the {name}, the code is {value}.",
    ],
    "unseen": [
        "Be aware that the {name} was assigned the number {value}.",
        "Register entry: {name} = {value}",
        "We were told that the {name} goes with {value}.",
    ],
}
QUESTIONS = {
    "seen": [
        "\nQuestion: what is the code of the {name}?\nAnswer: {value}",
        "\nQ: code of the {name}\nA: {value}",
        "\nWhich code belongs to the {name}? It is {value}",
        "\nThe code of the {name} is {value}",
    ],
    "unseen": [
        "\nPlease give the number that was assigned to the {name}: {value}",
        "\nLookup {name} => {value}",
    ],
}
QUESTIONS["demo"] = QUESTIONS["seen"][:1]
VALUE_KINDS = {"seen": ["digits6"], "demo": ["digits6"], "unseen": ["digits4", "word"]}

# Training also draws from this grammar, so that the model learns to find a value by its name however both are
# worded. It shares no wording with the `unseen` templates ("number", "assigned", "register", "lookup", "=").
ATTRIBUTES = "code key badge ticket serial tag label token index password room signature".split()
_LEADS = ["", "", "", "Note: ", "Reminder: ", "Important: ", "By the way, ", "For reference, ", "Remember that ",
          "It was decided that ", "Everyone knows that ", "As of today, ", "In the table, ", "Please note that ",
          "According to the list, ", "Do not forget: ", "See also: ", "Hint: "]
_STATEMENTS = ["the {attribute} of the {name} is {value}", "the {attribute} for the {name} is {value}",
               "the {name} has the {attribute} {value}", "the {name} has {value}", "the {name} is {value}",
               "the {name} was given {value}", "the {name} received the {attribute} {value}",
               "the {name} uses {value} as its {attribute}", "the {name} is known as {value}",
               "the {name}'s {attribute} is {value}", "the {name} stands for {value}", "item {name}: {value}",
               "entry {name}, {attribute} {value}", "the {name} means {value}", "{attribute} of {name}: {value}",
               "the {name} answers to {value}", "for {name} use {value}", "the {name}, {value}", "a {name} is {value}",
               "the {name} -> {value}", "we call the {name} {value}", "the {name} will be {value} from now on"]
_REQUESTS = ["Question: what is the {attribute} of the {name}?\nAnswer: {value}", "Q: {attribute} of the {name}\nA: {value}",
             "Q: what about the {name}?\nA: {value}", "Which {attribute} belongs to the {name}? It is {value}",
             "The {attribute} of the {name} is {value}", "The {name} has the {attribute} {value}",
             "What does the {name} have? {value}", "Tell me the {attribute} of the {name}. {value}",
             "Do you remember the {name}? Yes, {value}", "Find {name}: {value}", "Recall the {name}: {value}",
             "So the {name} is {value}", "Answer for the {name}: {value}", "Again the {name}, {value}",
             "Value of {name} -> {value}", "And the {name}? {value}", "We said that the {name} was {value}",
             "[{attribute}] {name} {value}"]
FACTS["varied"] = [lead + (statement if lead else statement[0].upper() + statement[1:]) + "."
                   for lead in _LEADS for statement in _STATEMENTS]
QUESTIONS["varied"] = ["\n" + request for request in _REQUESTS]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

_FIRST = ("amber ancient bitter bold brave bright broken calm clever cold copper crimson curious dark distant "
          "eager early electric empty fancy fast frozen gentle giant golden grand green happy heavy hidden hollow "
          "honest humble iron jolly large lazy lively lonely loud lucky mellow narrow noble orange patient plain "
          "proud purple quick quiet rapid rough round royal rusty silent silver simple slow smooth solid steady "
          "stone strong sunny sweet swift tall tiny violet warm wild wise yellow young").split()
_SECOND = ("anchor apple arrow badger barrel basket beacon bear bell bird boat bottle bridge bucket button camel "
           "candle canyon castle cedar circle cloud compass crane crown desert dragon eagle engine falcon feather "
           "field flower forest fox garden gate glacier hammer harbor horse island kettle ladder lamp lantern leaf "
           "lion marble meadow mirror monkey mountain needle ocean otter palace pencil piano planet pocket rabbit "
           "ribbon river rocket saddle sailor shadow ship spider spoon table temple tiger tower tunnel turtle "
           "valley wagon whale window winter wolf").split()
_FIRST_UNSEEN = ("arctic bashful blazing brittle cheerful chilly cozy crooked dainty dusty elegant faithful fearless "
                 "fluffy foggy fragrant furious gloomy graceful grumpy icy jagged jealous misty mossy nimble pale "
                 "playful polished radiant restless salty scarlet shiny sleepy slender stubborn thirsty turquoise "
                 "velvet").split()
_SECOND_UNSEEN = ("acorn balloon beetle blanket cactus carrot cello cherry cobra cottage dolphin donkey drum fiddle "
                  "goblet goose guitar hedgehog jacket lemon lizard lobster magnet mitten mushroom owl oyster parrot "
                  "peacock pebble penguin pillow puppet scarf squirrel sparrow teapot trumpet violin walrus").split()
NAME_WORDS = {"seen": (_FIRST, _SECOND), "unseen": (_FIRST_UNSEEN, _SECOND_UNSEEN)}


def pick(rng: random.Random, items):
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items):
    return [item for _, item in sorted((rng.random(), item) for item in items)]


def draw_names(rng: random.Random, count: int, words):
    """`count` different two-word names that recombine few words, so that every word belongs to several names."""
    side = max(2, int((1.6 * count) ** 0.5 + 1))
    first, second = (shuffled(rng, column)[:side] for column in words)
    return [f"{a} {b}" for a, b in shuffled(rng, [(a, b) for a in first for b in second])[:count]]


def draw_value(rng: random.Random, kind: str, words=_SECOND_UNSEEN):
    if kind == "word":
        return pick(rng, words)
    digits = int(kind.removeprefix("digits"))
    return "".join(str(int(rng.random() * 10)) for _ in range(digits))


def draw_varied_value(rng: random.Random):
    """A value of a kind that training sees: digits (never four), letters, or a mixture."""
    kind = rng.random()
    digits = lambda n: draw_value(rng, f"digits{n}")
    letters = lambda n, alphabet=LETTERS: "".join(pick(rng, alphabet) for _ in range(n))
    if kind < 0.6:
        return digits(pick(rng, (3, 5, 6, 6, 6, 7, 8)))
    if kind < 0.75:
        return letters(pick(rng, (3, 4, 5, 6)))
    if kind < 0.9:
        return letters(2, LETTERS.upper()) + "-" + digits(pick(rng, (2, 3)))
    return digits(2) + "." + digits(2) if kind < 0.95 else letters(6, LETTERS[:6] + "0123456789")


def plant(text: str, facts, rng: random.Random) -> str:
    """Insert one sentence per fact at line or sentence ends, spread over the whole text."""
    pieces, done = [], 0
    for i, fact in enumerate(facts):
        at = int((i + rng.random()) / len(facts) * len(text))
        end = re.compile(r"\n|(?<=[a-z]\.) (?=[A-Z])").search(text, max(at, done))
        position = end.start() if end else len(text)
        inline = end is not None and end.group() == " "
        pieces += [text[done:position], " " if inline else "\n", fact]
        done = position
    return "".join(pieces) + text[done:]


def recall_context(text: str, seed: int, num_facts: int, num_questions: int = 20, facts: str = "seen",
                   formats: str = "seen", words: str = "seen"):
    """(context, questions): facts in `text`, and questions about facts from all depths.

    A question is what follows the context directly; its answer follows after one space.
    """
    rng = random.Random(seed)
    kinds = VALUE_KINDS[formats]
    kind = pick(rng, kinds)
    names = draw_names(rng, num_facts, NAME_WORDS[words])
    values = [draw_value(rng, kind) for _ in names]
    context = plant(text, [pick(rng, FACTS[facts]).format(name=n, value=v) for n, v in zip(names, values)], rng)
    bounds = [i * num_facts // num_questions for i in range(num_questions + 1)]
    asked = [pick(rng, range(low, high)) for low, high in zip(bounds, bounds[1:])]
    questions = []
    for index in shuffled(rng, asked):
        question = pick(rng, QUESTIONS[formats]).split(" {value}")[0].format(name=names[index])
        questions.append({"question": question, "answer": values[index], "kind": kind,
                          "depth": round(index / num_facts, 3)})
    return context, questions
