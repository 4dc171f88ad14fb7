"""Training sequences: real text cut into slots, some of which become planted facts and later questions about them.

Use: SequenceMaker(data_folder).make(length, rng) -> (tokens, roles); BatchPool runs it in worker processes.
Everything is made in token space: pre-tokenisation splits at the seams of a template, so encoding the parts and
joining them equals encoding the whole.
"""
import bisect
import json
import lzma
import math
import multiprocessing as mp
import os
import random
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import facts

TEXT, ANSWER, UNPREDICTABLE = 0, 1, 2  # role of a token as a target; planted names and values are no language
SLOT_TOKENS = 32
PLACES = ["anywhere", "line", "line", "sentence"]  # where facts are put, by frequency
MAX_RUN_ON_TOKENS = 40
# Digits of the planted values. Four digits and words stay unseen.
VALUE_DIGITS = [6, 6, 6, 6, 6, 6, 6, 5, 7, 8]


class SequenceMaker:
    def __init__(self, data: Path, varied_share: float = 0.6):
        self.varied_share = varied_share  # of the sequences; the others use the `seen` templates
        self.tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
        self.bos = self.tokenizer.token_to_id("<|begin_of_text|>")
        stream = np.frombuffer(lzma.decompress((data / "train.tokens.xz").read_bytes()), np.uint16)
        self.stream = stream.astype(np.uint16)
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False).ids
        words = json.loads((data / "words.json").read_text())
        self.word_ids = {word: encode(" " + word) for word in words}
        # Mostly frequent words of the text; sometimes the short hand-made lists that evaluation uses as well.
        self.word_columns = [(words, words), (words, words), (words, words), facts.NAME_WORDS["seen"]]
        self.space = encode(" ")[0]
        self.digit = [encode(str(d))[0] for d in range(10)]

        def parts(template):  # [(literal token ids, "name" | "value" | None), ...]
            found = re.findall(r"(.*?)(?: \{(name|value)\}|$)", template, re.S)
            return [(encode(literal), slot or None) for literal, slot in found if literal or slot]

        # By where the fact stands: anywhere, on a line of its own after a line's end, after a sentence.
        seams = {"anywhere": [(" ", ""), ("\n", "\n")], "line": [("", "\n"), ("", "\n"), ("", "\n\n")],
                 "sentence": [(" ", "")]}
        expand = lambda templates: [t.replace("{attribute}", word) for t in templates
                                    for word in (facts.ATTRIBUTES if "{attribute}" in t else [""])]
        self.facts = {(kind, place): [parts(lead + fact + tail) for fact in expand(facts.FACTS[kind]) for lead, tail in pairs]
                      for kind in ("seen", "varied") for place, pairs in seams.items()}
        self.questions = {kind: [parts(question + "\n") for question in expand(facts.QUESTIONS[kind])]
                          for kind in ("seen", "varied")}
        self.encode = encode
        strings = [self.tokenizer.decode([i]) for i in range(self.tokenizer.get_vocab_size())]
        self.ends_line = np.array([t.endswith("\n") for t in strings])
        self.ends_sentence = np.array([t.endswith(".") for t in strings])
        self.starts_sentence = np.array([len(t) > 1 and t[0] == " " and t[1].isupper() for t in strings])

    def _write(self, ids, roles, template, name, value, value_role):
        for literal, slot in template:
            ids += literal
            roles += [TEXT] * len(literal)
            if slot == "name":
                ids += name
                roles += [UNPREDICTABLE] * len(name)
            elif slot == "value":
                ids += value
                roles += [TEXT] * (value[0] == self.space) + [value_role] * (len(value) - (value[0] == self.space))

    def _draw_value(self, digits: int, varied: bool, rng: random.Random):
        if varied:
            return self.encode(" " + facts.draw_varied_value(rng))
        return [self.space] + rng.choices(self.digit, k=digits)

    def _draw_facts(self, count: int, varied: bool, rng: random.Random):
        first, second = rng.choice(self.word_columns)
        side = max(2, int(math.sqrt(count * rng.choice((1.3, 1.6, 2.5, 8.0)))) + 1)
        first, second = (rng.sample(column, min(side, len(column))) for column in (first, second))
        pairs = rng.sample(range(len(first) * len(second)), count)
        digits = rng.choice(VALUE_DIGITS)
        return [(self.word_ids[first[p % len(first)]] + self.word_ids[second[p // len(first)]],
                 self._draw_value(digits, varied, rng)) for p in pairs]

    def make(self, length: int, rng: random.Random):
        """tokens [length + 1] u16 and roles [length + 1] u8."""
        ids, roles = [self.bos], [TEXT]
        at = rng.randrange(len(self.stream) - length - 2)
        text = self.stream[at:at + length + 2]
        seams = {"line": np.flatnonzero(self.ends_line[text]) + 1,
                 "sentence": np.flatnonzero(self.ends_sentence[text[:-1]] & self.starts_sentence[text[1:]]) + 1}
        seams = {place: positions.tolist() for place, positions in seams.items()}
        text = text.tolist()
        taken = 0
        slots = length // SLOT_TOKENS
        kind = rng.random()
        # Dense sequences teach recall (most slots are a fact or a question), sparse ones look like evaluation:
        # one fact per 256 tokens or so and all questions at the end; plain ones are text alone.
        if length <= 512 or kind < 0.5:
            event_rate, end_questions = 0.75, rng.randrange(0, 1 + min(32, slots // 3))
            num_facts = max(2, int(event_rate * slots * rng.uniform(0.25, 0.7)))
        elif kind < 0.9:
            num_facts = max(2, int(length / 256 * rng.uniform(0.5, 2.0)))
            end_questions = rng.randrange(2, 48 if length >= 4096 else 12)
            event_rate = num_facts * rng.uniform(1.0, 1.6) / slots
        else:
            num_facts, end_questions, event_rate = 2, 0, 0.0
        varied = rng.random() < self.varied_share
        wording = "varied" if varied else "seen"
        pool = self._draw_facts(num_facts, varied, rng)
        planted, unasked, next_fact = [], [], 0

        def asked():  # mostly a fact that was not asked about yet: its value stands in one place only
            if unasked and rng.random() < 0.75:
                return unasked.pop(rng.randrange(len(unasked)))
            return rng.choice(planted)

        question_tokens = 26
        end_start = length + 1 - end_questions * question_tokens if event_rate else length + 1
        fact_rate = num_facts / max(1.0, event_rate * slots)  # share of events that plant
        while len(ids) <= length:
            if len(ids) >= end_start and planted:
                self._write(ids, roles, rng.choice(self.questions[wording]), *asked(), ANSWER)
                continue
            start = len(ids)
            if rng.random() < event_rate:
                if next_fact < num_facts and (not planted or rng.random() < fact_rate):
                    place = rng.choice(PLACES)
                    if place != "anywhere":  # run the text on to the next such seam, if it is near
                        found = bisect.bisect_left(seams[place], taken)
                        seam = seams[place][found] if found < len(seams[place]) else len(text)
                        if seam - taken > MAX_RUN_ON_TOKENS:
                            place, seam = "anywhere", taken
                        ids += text[taken:seam]
                        roles += [TEXT] * (seam - taken)
                        taken = seam
                    self._write(ids, roles, rng.choice(self.facts[wording, place]), *pool[next_fact], UNPREDICTABLE)
                    planted.append(pool[next_fact])
                    unasked.append(pool[next_fact])
                    next_fact += 1
                elif planted:
                    self._write(ids, roles, rng.choice(self.questions[wording]), *asked(), ANSWER)
            fill = max(0, SLOT_TOKENS - (len(ids) - start)) if event_rate >= 0.5 else SLOT_TOKENS
            fill = min(fill, length + 1 - len(ids)) if fill else 0
            ids += text[taken:taken + fill]
            roles += [TEXT] * fill
            taken += fill
        return np.array(ids[:length + 1], np.uint16), np.array(roles[:length + 1], np.uint8)


_maker = None


def _start_worker(data):
    global _maker
    _maker = SequenceMaker(data)


def _make_batch(job):
    length, batch, seed = job
    rng = random.Random(seed)
    made = [_maker.make(length, rng) for _ in range(batch)]
    return np.stack([m[0] for m in made]), np.stack([m[1] for m in made])


class BatchPool:
    """Batches made ahead in worker processes. One user thread; close() ends the workers."""

    def __init__(self, data: Path, workers: int, ahead: int):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.pool = mp.get_context("fork").Pool(workers, _start_worker, (data,))
        self.ahead = ahead

    def stream(self, length: int, batch: int, seed: int):
        """Endless batches (tokens [batch, length + 1] u16, roles [batch, length + 1] u8) for a stage."""
        jobs, step = [], 0
        while True:
            while len(jobs) < self.ahead:
                jobs.append(self.pool.apply_async(_make_batch, ((length, batch, f"{seed}/{length}/{step}"),)))
                step += 1
            yield jobs.pop(0).get()

    def close(self):
        self.pool.terminate()
