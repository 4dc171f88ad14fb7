"""Dense evaluation: exact recall of planted facts and next-token loss on held-out text.

Use: python3 evaluate.py --state STATE/state.pt --tokenizer DATA/tokenizer.json --eval models/NAME/eval --out FILE.jsonl
     [--sets NAME ...] [--limit N]
One line per set: recall (with questions, right, 95 % Wilson interval, and recall by depth and kind of answer) or loss
(nats per token with standard error over contexts). test-loss at shorter lengths scores the same continuations after
the last part of the context. Weights are rounded to bf16 first, as shipped.
"""
import argparse
import collections
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from make_contexts import HeldOut
from model import Config, Llama


def wilson(right: int, total: int, z: float = 1.96):
    p, d = right / total, 1 + z * z / total
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / d
    centre = (p + z * z / (2 * total)) / d
    return [round(centre - half, 4), round(centre + half, 4)]


class Evaluator:
    def __init__(self, model: Llama, tokenizer: Tokenizer, held_out: HeldOut, limit: int):
        self.model, self.tokenizer, self.held_out, self.limit = model, tokenizer, held_out, limit
        self.device = model.embedding.device

    def ids(self, text: str, bos: bool = False):
        return self.tokenizer.encode(text, add_special_tokens=bos).ids

    def contexts(self, name: str):
        for index, made in enumerate(self.held_out.contexts(name)):
            if index < self.limit:
                yield made

    def recall(self, name: str):
        groups, tokens = collections.defaultdict(list), []
        for made in self.contexts(name):
            context = torch.tensor(self.ids(made["context"], bos=True), device=self.device)
            tokens.append(len(context))
            _, cache = self.model.prefill(context)
            prompts = [self.ids(q["question"]) for q in made["questions"]]
            answers = [self.ids(" " + q["answer"]) for q in made["questions"]]
            # All tokens right given the right ones before them is the same as greedy decoding being right.
            logits = self.model.fork(cache, [p + a[:-1] for p, a in zip(prompts, answers)])
            for question, prompt, answer, found in zip(made["questions"], prompts, answers, logits):
                right = found[len(prompt) - 1:].argmax(-1).tolist() == answer
                groups["all"].append(right)
                groups[f"depth {int(question['depth'] * 4) / 4:.2f}"].append(right)
                groups[f"kind {question['kind']}"].append(right)
        right, total = sum(groups["all"]), len(groups["all"])
        return {"bench": "dense_recall", "set": name, "contexts": len(tokens), "tokens": round(sum(tokens) / len(tokens)),
                "questions": total, "right": right, "recall": round(right / total, 4), "ci95": wilson(right, total),
                "by": {k: round(sum(v) / len(v), 4) for k, v in sorted(groups.items()) if k != "all"}}

    def loss(self, name: str, keep_tokens: int = 0):
        means, tokens, scored = [], [], 0
        for made in self.contexts(name):
            context = self.ids(made["context"], bos=True)
            if keep_tokens:
                context = context[:1] + context[1 - keep_tokens:]
            following = self.ids(made["continuation"])[:made["continuation_tokens"]]
            both = torch.tensor(context + following, device=self.device)
            hidden, _ = self.model.prefill(both[:-1])
            logits = self.model.logits(hidden[len(context) - 1:])
            means.append(F.cross_entropy(logits, both[len(context):]).item())
            tokens.append(len(context))
            scored += len(following)
        mean = sum(means) / len(means)
        error = math.sqrt(sum((m - mean) ** 2 for m in means) / max(1, len(means) - 1) / len(means))
        return {"bench": "dense_loss", "set": name, "contexts": len(means), "tokens": round(sum(tokens) / len(tokens)),
                "scored_tokens": scored, "loss": round(mean, 4), "standard_error": round(error, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    state = torch.load(args.state, map_location="cpu", weights_only=False)
    model = Llama(Config())
    model.load_state_dict(state["model"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    held_out = HeldOut(args.eval)
    evaluator = Evaluator(model.to(args.device), Tokenizer.from_file(str(args.tokenizer)), held_out, args.limit)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    jobs = [(name, 0) for name in held_out.sets() if not args.sets or name in args.sets]
    jobs += [(name, length) for name, _ in jobs if name == "test-loss-32k" for length in (2048, 4096, 8192, 16384)]
    for name, keep in jobs:
        started = time.time()
        result = evaluator.loss(name, keep) if "-loss-" in name else evaluator.recall(name)
        result |= {"kv_dtype": "bf16" if args.device == "cuda" else "f32", "step": state["progress"][0],
                   "train_tokens": state["progress"][3], "device": device, "seconds": round(time.time() - started, 1)}
        print(json.dumps(result), flush=True)
        with open(args.out, "a") as out:
            out.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
