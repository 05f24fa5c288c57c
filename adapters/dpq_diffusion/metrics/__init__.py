"""Metrics of images: FID, sFID, IS, precision and recall by the ADM recipe, PSNR and SSIM.

Everything is plain torch. Images are uint8 ``[N, H, W, 3]``; features come from any
`FeatureExtractor`, and only those of `load_inception` yield numbers that are called FID.
"""

from dpq_diffusion.metrics.classifier import TINY_EXTRACTOR, ClassifierExtractor
from dpq_diffusion.metrics.evaluate import Extracted, evaluate_samples, extract
from dpq_diffusion.metrics.extractor import ADM_EXTRACTOR, FeatureExtractor, Features
from dpq_diffusion.metrics.fidelity import (
    ImageFidelity,
    compare_images,
    latent_mse,
    pixel_mse,
    psnr,
    ssim,
)
from dpq_diffusion.metrics.frechet import (
    Gaussian,
    GaussianAccumulator,
    frechet_distance,
    gaussian,
)
from dpq_diffusion.metrics.images import (
    ArrayImages,
    Images,
    NpzImages,
    PngFolder,
    open_images,
    write_npz,
)
from dpq_diffusion.metrics.inception import InceptionV3
from dpq_diffusion.metrics.inception_score import InceptionScore, Score, inception_score
from dpq_diffusion.metrics.inception_weights import InceptionExtractor, load_inception
from dpq_diffusion.metrics.precision_recall import Distances, PrecisionRecall, precision_recall
from dpq_diffusion.metrics.reference import (
    Reference,
    Statistics,
    read_reference,
    write_statistics,
)

__all__ = [
    "ADM_EXTRACTOR",
    "TINY_EXTRACTOR",
    "ArrayImages",
    "ClassifierExtractor",
    "Distances",
    "Extracted",
    "FeatureExtractor",
    "Features",
    "Gaussian",
    "GaussianAccumulator",
    "ImageFidelity",
    "Images",
    "InceptionExtractor",
    "InceptionScore",
    "InceptionV3",
    "NpzImages",
    "PngFolder",
    "PrecisionRecall",
    "Reference",
    "Score",
    "Statistics",
    "compare_images",
    "evaluate_samples",
    "extract",
    "frechet_distance",
    "gaussian",
    "inception_score",
    "latent_mse",
    "load_inception",
    "open_images",
    "pixel_mse",
    "precision_recall",
    "psnr",
    "read_reference",
    "ssim",
    "write_npz",
    "write_statistics",
]
