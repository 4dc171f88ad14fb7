"""Train the model through a curriculum of growing lengths, each stage for a given number of seconds.

Use: python3 train.py --data DATA --state STATE [--seconds N] [--stages FILE.json] [--device cuda]
     Resumes from STATE when it holds a checkpoint; stops and saves after --seconds, or when all stages are done.
     STATE/log.jsonl gets one line per 50 steps and per stage.

A stage is {"name", "seconds", "lengths": {"256": share}, "lr": [from, to]}; the learning rate moves linearly in time.
"min_accuracy" (optional) makes a stage last up to three times as long until that share of answer digits is right.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch

import sequences
from model import Config, Llama

# Lengths are 65/64 of a power of two: room for a question after a context of 32,768 tokens.
LENGTH_UNIT = {256: 260, 512: 520, 1024: 1040, 2048: 2080, 4096: 4160, 8192: 8320, 16384: 16640, 32768: 33280}
TOKENS_PER_STEP = 133120  # 4 sequences of 33,280 or 512 of 260: the same number in every stage
BASE_LR, WARMUP_STEPS, TEXT_WEIGHT = 1.5e-3, 300, 0.3


class Trainer:
    def __init__(self, args):
        self.args = args
        self.cuda = args.device == "cuda"
        self.pool = sequences.BatchPool(args.data, args.workers, ahead=2 * args.workers)  # before CUDA starts
        self.streams = {}
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.model = Llama(Config()).to(args.device)
        if self.cuda and not args.no_compile:
            self.model.compile_steps()
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and n != "embedding"]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or n == "embedding"]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                            {"params": others, "weight_decay": 0.0}],
                                           lr=BASE_LR, betas=(0.9, 0.95), fused=self.cuda)
        self.step, self.stage_index, self.stage_seconds, self.tokens, self.rewarm = 0, 0, 0.0, 0, 0
        self.started = self.saved = time.time()
        args.state.mkdir(parents=True, exist_ok=True)
        if (args.state / "state.pt").exists():
            self.load(args.state / "state.pt")

    def load(self, path):
        state = torch.load(path, map_location=self.args.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        if state.get("optimizer"):
            self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.stage_index, self.stage_seconds, self.tokens = state["progress"]
        self.rewarm = 0 if state.get("optimizer") else self.step
        self.log({"event": "resumed", "step": self.step, "stage": self.stage_index})

    def save(self):
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "progress": (self.step, self.stage_index, self.stage_seconds, self.tokens)}
        partial = self.args.state / "state.partial"
        torch.save(state, partial)
        partial.rename(self.args.state / "state.pt")
        self.saved = time.time()

    def log(self, entry):
        with open(self.args.state / "log.jsonl", "a") as out:
            out.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)

    def batch(self, length):
        if length not in self.streams:
            self.streams[length] = self.pool.stream(length, max(1, self.args.tokens_per_step // length),
                                                    f"{self.args.seed}/{self.step}")
        tokens, roles = next(self.streams[length])
        move = lambda a: torch.from_numpy(a).to(self.args.device, non_blocking=True)
        return move(tokens.astype("int32")).long(), move(roles)

    def train_step(self, length, lr):
        tokens, roles = self.batch(length)
        rate = BASE_LR * lr * min(1, (self.step + 1) / WARMUP_STEPS, (self.step - self.rewarm + 1) / 20)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        positions = self.args.tokens_per_step * 5 // 8
        answer, text, right = self.model.loss(tokens, roles, positions, positions)
        self.optimizer.zero_grad(set_to_none=True)
        (answer + TEXT_WEIGHT * text).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.tokens += tokens.shape[0] * length
        return torch.stack((answer.detach(), text.detach(), right.detach()))

    def run_stage(self, stage, deadline):
        """True when the stage is complete."""
        lengths = [LENGTH_UNIT[int(n)] for n in stage["lengths"]]
        shares = list(stage["lengths"].values())
        recent, accuracy, chooser = {}, 0.0, random.Random(self.step)
        self.streams = {}
        clock, stage_start = time.time(), time.time() - self.stage_seconds
        compiled = self.step > 0
        while True:
            now = time.time()
            self.stage_seconds = now - stage_start
            unready = accuracy < stage.get("min_accuracy", 0.0)
            if self.stage_seconds >= stage["seconds"] * (3 if unready else 1):
                return True
            if now >= deadline:
                return False
            done = min(1.0, self.stage_seconds / stage["seconds"])
            lr = stage["lr"][0] + (stage["lr"][1] - stage["lr"][0]) * done
            length = chooser.choices(lengths, shares)[0]
            result = self.train_step(length, lr)
            if not compiled:  # compilation is not training time
                if self.cuda:
                    torch.cuda.synchronize()
                self.log({"event": "compiled", "seconds": round(time.time() - now, 1)})
                compiled, stage_start, clock = True, time.time(), time.time()
            recent.setdefault(length, []).append(result)
            if self.step % self.args.log_every == 0:
                means = {n: torch.stack(r).mean(0).tolist() for n, r in recent.items()}
                seconds, count = time.time() - clock, sum(map(len, recent.values()))
                longest = max(means)
                accuracy = means[longest][2]
                self.log({"step": self.step, "stage": stage["name"], "lr": round(BASE_LR * lr, 6),
                          "at": round(time.time() - self.started, 1), "ms_per_step": round(1e3 * seconds / count, 1),
                          "tokens": self.tokens,
                          **{f"{k}_{n}": round(v, 4) for n, m in sorted(means.items())
                             for k, v in zip(("answer_loss", "text_loss", "digits_right"), m)}})
                if not math.isfinite(means[longest][0]):
                    raise SystemExit("loss is not finite; resume from the saved state with a lower learning rate")
                recent, clock = {}, time.time()
                if time.time() - self.saved > 60:
                    self.save()
                    clock = time.time()

    def run(self, stages):
        deadline = self.started + self.args.seconds
        while self.stage_index < len(stages):
            finished = self.run_stage(stages[self.stage_index], deadline)
            if finished:
                self.log({"event": "stage done", "stage": stages[self.stage_index]["name"], "step": self.step,
                          "seconds": round(self.stage_seconds, 1), "tokens": self.tokens})
                self.stage_index, self.stage_seconds = self.stage_index + 1, 0.0
            self.save()
            if not finished:
                break
        self.log({"event": "stopped", "step": self.step, "tokens": self.tokens,
                  "at": round(time.time() - self.started, 1)})
        self.pool.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--stages", type=Path, default=Path(__file__).with_name("stages.json"))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens-per-step", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    Trainer(args).run(json.loads(args.stages.read_text()))


if __name__ == "__main__":
    main()
