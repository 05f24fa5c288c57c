"""The model card of ``builtin:tiny-dit``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fashion_mnist import LABELS
from tiny_dit_recipe import Progress, Recipe
from tiny_dit_sample import Sampling

TABLE_ROWS = 12
INIT_STEPS = 7958
"""Length of the earlier run the shipped weights started from."""

CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
datasets: [zalando-datasets/fashion_mnist]
---

# tiny-dit

A class-conditional diffusion transformer (DiT) of {parameters:.2f} M parameters that draws
Fashion-MNIST, shipped with dpq as `builtin:tiny-dit`. It is a test article: small enough to
quantize, sample and score in minutes on a CPU without a download, and trained, so that samples
and metrics respond to quantization.

![samples: one class per row]({grid})

One class per row, from top to bottom: {labels}; {sampler}, float16 weights under
bfloat16 autocast, not selected.

| | |
|---|---|
| Agreement of the class asked for with the classifier | **{agreement:.1%}** of {count} samples |
| Fréchet distance to the test images, classifier features | **{distance:.2f}** ({count} samples) |
| the same for {count} training images | {floor:.2f} |
| Accuracy of the classifier on the 10,000 test images | {accuracy:.2%} |
| Training images seen | {seen:,} ({epochs:.1f} epochs) after {init_images:,} of an earlier run |
| Weights | {megabytes:.1f} MB, float16 |

Agreement by class, {sampler}:

{agreement_table}

The Fréchet distance is computed with the features of the classifier in this folder and compares
with no published FID. It falls with the number of samples; the row below it says what real images
score.

## Architecture

`DiTTransformer2DModel` of diffusers, adaLN-zero: width 256, {layers} blocks, 4 heads of 64,
patches of 4x4 pixels, hence 49 tokens of an image of 28x28 pixels and one channel; the output is
the velocity (`prediction_type` is `v_prediction`) and, in a second channel, where the variance
lies between its bounds (learned range). There is no autoencoder: the model works on pixels in
[-1, 1], of which the image is `(x / 2 + 0.5) * 255`.

The class table has 11 rows; row 10 is "no class", for classifier-free guidance: always
`transformer.config.num_embeds_ada_norm`. (`DiTPipeline` of diffusers assumes 1000 there, and an
autoencoder; so `model_index.json` names `PixelDiTPipeline`, a pipeline of the dpq adapter.)
diffusers keeps a copy of the timestep MLP and class table in every block; here all
copies are equal, because they were one module in training: {unique:.2f} M of the
{parameters:.2f} M parameters are distinct.

The process has 1000 steps with betas from 0.0001 to 0.02, linear. `clip_sample` is off: diffusers
clips the predicted image without recomputing the noise from it, which spoils guided samples.

## Files

| | |
|---|---|
| `model_index.json` | the pipeline, with `id2label` |
| `transformer/`, `scheduler/` | load with `from_pretrained` of diffusers |
| `classifier/` | a small CNN as feature extractor; `reference.safetensors` holds mean \
`mu` and covariance `sigma` of its 64 features over the 10,000 test images, and the `features` \
of the first 2,000 |
| `training_log.jsonl` | the training log |

## Data

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; https://github.com/zalandoresearch/fashion-mnist),
copyright Zalando SE, MIT licence: 60,000 training images for both models. The test images were
used for the classifier's accuracy and the reference statistics only.

## Training

Two commands; on one thread of a CPU with bfloat16 matrix instructions (AMX), shared with other
work and paused now and then, the second took {minutes:.0f} minutes, evaluation aside:

    out=adapters/dpq_diffusion/builtin/tiny-dit
    python benchmarks/zoo/train_tiny_classifier.py --data FASHION_MNIST --out $out/classifier
    python benchmarks/zoo/train_tiny_dit.py --data FASHION_MNIST --out $out

Adam (betas 0.9 and 0.99), {step:,} of {steps:,} steps of {batch} images, linear warmup to a
learning rate of {peak:g}, constant, then linear decay to zero over the last {decay:.0%}, gradients
clipped to norm 1, bfloat16 autocast over float32 weights, running average of the weights with
decay 0.999. The loss is the hybrid one of improved DDPM, with the squared error of the velocity in
place of the noise's, and the variational bound with weight 1/1000, which trains the variance only;
steps drawn uniformly. A tenth of the labels was dropped. Half of the images of every class but the
shoes were mirrored.

The weights shipped did not start at random but (`--init`) from an earlier run of {init_steps:,}
steps of {batch} images that predicted the noise. The number of steps was changed on the way, so the
learning rate's decay begins earlier in the log than the command above would have it. Data, order
and initial weights are seeded; another machine still rounds differently and ends at slightly
different weights.

From `training_log.jsonl` (means since the previous logged row, before averaging of weights):

{log_table}

## Licence

The models are licensed under Apache-2.0; the data they were trained on under MIT.
"""


@dataclass(frozen=True)
class Facts:
    """What was measured of the exported weights.

    Attributes:
        parameters: Parameters as diffusers counts them, a copy of the embedder per block.
        unique: Distinct parameters.
        weight_bytes: Size of the weight file.
        agreement: Share per class of samples the classifier takes for the class asked for.
        distance: Fréchet distance of the samples to the test images.
        floor: Fréchet distance of as many training images.
        accuracy: Test accuracy of the classifier.
    """

    parameters: int
    unique: int
    weight_bytes: int
    agreement: list[float]
    distance: float
    floor: float
    accuracy: float

    def mean_agreement(self) -> float:
        """Returns the agreement over all classes."""
        return math.fsum(self.agreement) / len(self.agreement)


def card(recipe: Recipe, progress: Progress, facts: Facts, how: Sampling, grid: str) -> str:
    """Writes the README of the model folder.

    Args:
        recipe: Data and settings of the run.
        progress: Progress of the run.
        facts: What was measured.
        how: How the samples were made.
        grid: File name of the grid of samples.

    Returns:
        Markdown.
    """
    seen = progress.step * recipe.batch
    return CARD.format(
        **vars(recipe),
        parameters=facts.parameters / 1e6,
        unique=facts.unique / 1e6,
        megabytes=facts.weight_bytes / 1e6,
        agreement=facts.mean_agreement(),
        distance=facts.distance,
        floor=facts.floor,
        accuracy=facts.accuracy,
        count=how.per_class * len(LABELS),
        sampler=f"DDIM, {how.steps} steps, guidance {how.guidance:g}, seed {how.seed}",
        labels=", ".join(label.lower() for label in LABELS),
        grid=grid,
        agreement_table=_agreement_table(facts.agreement),
        seen=seen,
        init_images=INIT_STEPS * recipe.batch,
        epochs=seen / recipe.train_images,
        minutes=progress.seconds / 60,
        step=progress.step,
        init_steps=INIT_STEPS,
        log_table=_log_table(progress.log),
    )


def _agreement_table(agreement: list[float]) -> str:
    head = "| " + " | ".join(LABELS) + " |"
    values = "| " + " | ".join(f"{share:.0%}" for share in agreement) + " |"
    return "\n".join([head, "|---" * len(LABELS) + "|", values])


def _log_table(log: list[dict[str, float]]) -> str:
    """Formats some rows of the training log, the last one included, as a table."""
    lines = [
        "| step | images | velocity error | bound, bits per pixel and step | learning rate |",
        "|---:|---:|---:|---:|---:|",
    ]
    stride = max(1, math.ceil(len(log) / TABLE_ROWS))
    for row in log[::-1][::stride][::-1]:
        lines.append(
            f"| {row['step']} | {row['images'] / 1e3:.0f} k | {row['velocity_mse']:.4f} "
            f"| {row['bound_bits']:.5f} | {row['lr']:.2e} |"
        )
    return "\n".join(lines)
