"""Trains ``builtin:tiny-llama``, an 11 M parameter Llama for Python code, on one CPU thread.

The whole run, from the standard library's sources to the exported model folder, is::

    python benchmarks/zoo/train_tiny_llama.py --out adapters/dpq_llama/builtin/tiny-llama

The run ends after ``--steps``, or after ``--minutes`` where the machine is slower or shared; the
learning rate decays towards whichever end is nearer. ``--resume`` continues from the last
checkpoint, and may do so with other limits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from stdlib_corpus import VOCAB_SIZE, encode_documents, load_corpus, train_tokenizer
from tiny_llama_export import SEQUENCE, Progress, Recipe, export, heldout_loss, mean_loss

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

SEED = 1234
MOMENTS = ("exp_avg", "exp_avg_sq")


def build_model() -> LlamaForCausalLM:
    """Returns the untrained model; the caller seeds torch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # once compiled, faster here than the fused kernel
    return model


def make_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on the matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, share: float, peak: float, warmup: int, decay: float) -> float:
    """Trapezoidal schedule: linear warmup, constant, then linear decay to nearly zero.

    Args:
        step: Index of the step about to be taken.
        share: Share of the run that is over, from 0 to 1.
        peak: Learning rate of the constant part.
        warmup: Number of warmup steps.
        decay: Share of the run spent in the decay.

    Returns:
        The learning rate of this step.
    """
    return peak * min(1.0, (step + 1) / warmup, max(0.0, 1.0 - share) / decay)


def batch_at(tokens: np.ndarray, step: int, size: int) -> torch.Tensor:
    """Picks a training batch as a pure function of the step, so that a resumed run continues.

    Each epoch cuts the token stream at another random offset and shuffles the windows.

    Args:
        tokens: The training stream as uint16.
        step: Index of the training step.
        size: Number of windows per batch.

    Returns:
        Token ids of shape (size, SEQUENCE + 1).
    """
    per_epoch = ((len(tokens) - 1) // SEQUENCE - 1) // size
    epoch, index = divmod(step, per_epoch)
    rng = np.random.default_rng([SEED, epoch])
    offset = int(rng.integers(SEQUENCE))
    picks = rng.permutation(per_epoch * size)[index * size : (index + 1) * size]
    starts = offset + picks * SEQUENCE
    rows = np.stack([tokens[start : start + SEQUENCE + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


def save_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.AdamW, progress: Progress
) -> None:
    """Writes weights, optimizer state and progress into one safetensors file."""
    tensors = {}
    for name, param in model.named_parameters():
        tensors[f"model.{name}"] = param.detach()
        for key in MOMENTS:
            tensors[f"{key}.{name}"] = optimizer.state[param][key]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"progress": json.dumps(dataclasses.asdict(progress))})
    part.replace(path)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.AdamW) -> Progress:
    """Restores what `save_checkpoint` wrote and returns the progress."""
    with safe_open(path, "pt") as file:
        saved = json.loads(file.metadata()["progress"])
        for name, param in model.named_parameters():
            param.data.copy_(file.get_tensor(f"model.{name}"))
            state = {key: file.get_tensor(f"{key}.{name}") for key in MOMENTS}
            optimizer.state[param] = {"step": torch.tensor(float(saved["step"])), **state}
    return Progress(saved["step"], saved["seconds"], saved["log"])


class Run:
    """A training run: model, optimizer, data and progress."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        self.args = args
        self.tokenizer, self.tokens, self.recipe = prepare_data(args)
        self.heldout_ids = self.tokenizer.encode(self.recipe.heldout).ids
        self.model = build_model()
        self.optimizer = make_optimizer(self.model)
        self.compiled_loss = torch.compile(mean_loss, dynamic=False)
        self.checkpoint = args.checkpoints / "last.safetensors"
        self.progress = Progress(0, 0.0, [])
        if args.resume and self.checkpoint.exists():
            self.progress = load_checkpoint(self.checkpoint, self.model, self.optimizer)

    def train(self) -> None:
        """Takes all remaining steps, with evaluations, checkpoints and exports on the way."""
        now = time.perf_counter()
        begin = now - self.progress.seconds
        next_save, next_export = now + self.args.save_seconds, now + self.args.first_export
        mark, losses = now, []
        while not self.is_done():
            losses.append(self.take_step())
            now = time.perf_counter()
            self.progress.seconds = now - begin
            if self.progress.step % self.args.eval_every == 0 or self.is_done():
                self.evaluate(losses, now - mark)
                mark, losses = time.perf_counter(), []
            if now >= next_save:
                self.save()
                next_save = now + self.args.save_seconds
            if now >= next_export and not self.is_done():
                self.export()
                next_export = now + self.args.export_seconds
        self.save()
        self.export()

    def share(self) -> float:
        """Returns the share of the run that is over, by steps or by time, whichever is more."""
        by_time = self.progress.seconds / (60 * self.args.minutes)
        return max(by_time, self.progress.step / self.args.steps)

    def is_done(self) -> bool:
        """Returns whether all steps are taken, or the time is up."""
        return self.share() >= 1.0

    def rate(self) -> float:
        """Returns the learning rate of the next step."""
        args = self.args
        return learning_rate(self.progress.step, self.share(), args.lr, args.warmup, args.decay)

    def take_step(self) -> float:
        """Takes one optimizer step and returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        batch = batch_at(self.tokens, self.progress.step, self.args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.compiled_loss(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        return loss.item()

    def evaluate(self, losses: list[float], seconds: float) -> None:
        """Appends a row to the log.

        Args:
            losses: Training losses since the previous row.
            seconds: Time these steps took.
        """
        held = heldout_loss(self.model, self.heldout_ids, autocast=True)
        row = {
            "step": self.progress.step,
            "tokens": self.progress.step * self.recipe.tokens_per_step,
            "train_loss": round(sum(losses) / len(losses), 4),
            "heldout_loss": round(held, 4),
            "heldout_ppl": round(math.exp(held), 3),
            "tokens_per_s": round(len(losses) * self.recipe.tokens_per_step / seconds),
            "lr": round(self.optimizer.param_groups[0]["lr"], 8),
        }
        self.progress.log.append(row)
        print(json.dumps(row), flush=True)

    def save(self) -> None:
        """Writes the checkpoint."""
        save_checkpoint(self.checkpoint, self.model, self.optimizer, self.progress)

    def export(self) -> None:
        """Writes the model folder as of now."""
        ppl = export(self.args.out, self.model, self.tokenizer, self.recipe, self.progress)
        print(f"exported at step {self.progress.step}, perplexity {ppl:.3f}", flush=True)


def prepare_data(args: argparse.Namespace) -> tuple[Tokenizer, np.ndarray, Recipe]:
    """Reads the corpus, trains the tokenizer and encodes the training split.

    Args:
        args: The command line.

    Returns:
        The tokenizer, the training stream as uint16, and the recipe for the model card.
    """
    corpus = load_corpus()
    documents = list(corpus.train.values())
    np.random.default_rng(SEED).shuffle(documents)
    tokenizer = train_tokenizer(documents)
    tokens = encode_documents(tokenizer, documents)
    print(f"{len(documents)} training files, {len(tokens)} tokens", flush=True)
    recipe = Recipe(
        steps=args.steps,
        minutes=args.minutes,
        tokens_per_step=args.batch * SEQUENCE,
        peak=args.lr,
        decay=args.decay,
        files=len(documents),
        train_tokens=len(tokens),
        heldout=corpus.heldout_text(),
    )
    return tokenizer, tokens, recipe


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--checkpoints", type=Path, default=Path("build/tiny_llama_ckpt"))
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--minutes", type=float, default=86, help="limit of wall time")
    parser.add_argument("--batch", type=int, default=8, help=f"windows of {SEQUENCE} tokens")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=150, help="warmup steps")
    parser.add_argument("--decay", type=float, default=0.25, help="share of the run in the decay")
    parser.add_argument("--eval-every", type=int, default=150, help="steps between evaluations")
    parser.add_argument("--save-seconds", type=float, default=300, help="between checkpoints")
    parser.add_argument("--first-export", type=float, default=360, help="seconds until it")
    parser.add_argument("--export-seconds", type=float, default=1200, help="between exports")
    Run(parser.parse_args()).train()


if __name__ == "__main__":
    main()
