"""Tokens per second of a whole language model: dense, compressed, and by the compiled step.

    python benchmarks/suites/decode.py MODEL ARTIFACT [ARTIFACT ...] --threads 2

Before anything is timed, the compiled step has to choose the same greedy tokens as transformers in
float32. The engines take turns, so that a busy machine slows them alike; what is shown are
medians. Each run appends one line to the records.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpq_core.artifact import Artifact
from dpq_core.errors import AdapterError
from dpq_llama.compiled.decoder import CompiledDecoder
from dpq_llama.source.loading import load_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import append  # benchmarks/record.py
from timing import medians  # benchmarks/timing.py


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="uncompressed model, run by transformers in bfloat16")
    parser.add_argument("artifacts", nargs="+", help="artifacts made of it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate  [64]")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the long prompt  [512]")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each  [5]")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dense = load_model(args.model, "cpu", "bfloat16")
    short = torch.randint(10, dense.config.vocab_size, (1, 8))
    long = torch.randint(10, dense.config.vocab_size, (1, args.prompt))
    for source in args.artifacts:
        check(source, short, args.tokens)
        model = load_model(source, "cpu", "bfloat16")
        decoder = CompiledDecoder(model)
        runs: dict[str, Callable[[], object]] = {
            "dense": lambda: generate(dense, short, args.tokens),
            "transformers": lambda model=model: generate(model, short, args.tokens),
            "compiled": lambda decoder=decoder: decoder.generate(
                short, max_new_tokens=args.tokens, eos_token_id=[]
            ),
            "dense_prompt": lambda: generate(dense, long, 1),
            "prompt": lambda model=model: generate(model, long, 1),
        }
        load, seconds = os.getloadavg()[0], medians(runs, args.repeats)
        results: dict[str, Any] = {"threads": args.threads, "tokens": args.tokens, "load": load}
        for name, each in seconds.items():
            if name.endswith("prompt"):
                results[f"{name}_{args.prompt}_seconds"] = each
            else:
                results[f"{name}_tokens_per_second"] = args.tokens / each
        print(source, results)
        if not args.no_record:
            spec = Artifact.open(Path(source), adapter="llama").manifest.specs[0]
            append("decode", spec=spec, seed=0, results=results)


@torch.inference_mode()
def generate(model: Any, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of a prompt and ``count`` greedy tokens after it."""
    ids: torch.Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
    )
    return ids


def check(source: str, prompt: torch.Tensor, count: int) -> None:
    """Compare greedy tokens of the compiled step and of transformers, both in float32.

    Raises:
        AdapterError: they differ, or the compiled step cannot run the model.
    """
    model = load_model(source, "cpu", "float32")
    ids = CompiledDecoder(model).generate(prompt, max_new_tokens=count, eos_token_id=[])
    if not torch.equal(ids, generate(model, prompt, count)):
        raise AdapterError(f"{source}: the compiled step chooses other tokens than transformers")


if __name__ == "__main__":
    main()
