"""Writing of rendered pictures as PNG, GIF and MP4."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpq_core.errors import AdapterError, SourceError

Picture = npt.NDArray[np.uint8]

_STRIP = 26  # pixels above a captioned picture
_GAP = 4
_TEXT = 14


def to_bytes(colour: Tensor) -> Picture:
    """Converts a rendered colour to uint8 ``[H, W, 3]``."""
    levels = (colour.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.cpu().numpy()


def side_by_side(pictures: Sequence[Picture], captions: Sequence[str]) -> Picture:
    """Pictures of equal height in a row, a line of text above each."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT)
    height = pictures[0].shape[0] + _STRIP
    width = sum(picture.shape[1] + _GAP for picture in pictures) - _GAP
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    left = 0
    for picture, caption in zip(pictures, captions, strict=True):
        room = picture.shape[1] - 2 * _GAP
        while caption and pen.textlength(caption, font=font) > room:
            caption = caption[:-1]
        pen.text((left + _GAP, _GAP), caption, fill="black", font=font)
        page.paste(Image.fromarray(picture), (left, _STRIP))
        left += picture.shape[1] + _GAP
    return np.asarray(page)


def write_png(path: Path, picture: Picture) -> None:
    """Write one picture.

    Raises:
        SourceError: it cannot be written.
    """
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_gif(path: Path, frames: Sequence[Path], fps: float) -> None:
    """An endless GIF of PNG files.

    Raises:
        SourceError: it cannot be written.
    """
    from PIL import Image

    try:
        pictures = [Image.open(frame).quantize(255, dither=Image.Dither.NONE) for frame in frames]
        first, *others = pictures
        duration = max(20, round(1000 / fps))  # browsers slow down what is faster
        first.save(path, save_all=True, append_images=others, duration=duration, loop=0)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_mp4() -> None:
    """Refuse MP4 where nothing can encode it.

    Raises:
        AdapterError: PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise AdapterError(
            "needs PyAV: pip install 'dpq[video]' (the GIF needs nothing)", option="mp4"
        )


def write_mp4(path: Path, frames: Sequence[Path], fps: float) -> None:
    """A film of PNG files; an odd last row or column is cut off, which H.264 cannot have.

    Raises:
        AdapterError: PyAV is not installed.
        SourceError: it cannot be written.
    """
    check_mp4()
    from fractions import Fraction

    import av
    from PIL import Image

    try:
        with av.open(str(path), "w") as film:
            stream: Any = None
            for frame in frames:
                picture = np.asarray(Image.open(frame).convert("RGB"))
                height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
                if stream is None:
                    stream = film.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    stream.options = {"crf": "18"}
                cut = np.ascontiguousarray(picture[:height, :width])
                film.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
            film.mux(stream.encode())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be written ({error})") from None
