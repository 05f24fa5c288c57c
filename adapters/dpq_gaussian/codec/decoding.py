"""The decoder of scene files: single chunks, all in turn, or the whole scene."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dpq_core.artifact.entropy import varint
from dpq_core.artifact.entropy.coding import Decoder
from dpq_core.artifact.single import ArtifactFile
from dpq_core.errors import ArtifactError
from dpq_gaussian.codec import models
from dpq_gaussian.codec.dequantize import dequantize
from dpq_gaussian.codec.encoding import Encoded
from dpq_gaussian.codec.layout import CHUNK, Ints, streams_of
from dpq_gaussian.codec.outliers import NO_OUTLIERS, Outliers, outliers_from_bytes
from dpq_gaussian.codec.parameters import Parameters, parameters_from_json
from dpq_gaussian.codec.quantize import Symbols
from dpq_gaussian.scene import Scene


class ChunkDecoder:
    """Decoder of the chunks of one file, whose bytes may be on disk or in memory.

    Attributes:
        table: table of the harmonics: principal axes ``[R, 3 M]``, or codebooks ``[C, K, d]``.
    """

    def __init__(self, parameters: Parameters, data: bytes | memoryview, where: str) -> None:
        """Prepare the models of the stream ``data``.

        Raises:
            ArtifactError: they are damaged.
        """
        self._parameters = parameters
        context_models, self.table = models.unpack(data, parameters, f"{where}: models")
        streams = streams_of(parameters).items()
        self._stream_of = {name: stream for stream, names in streams for name in names}
        self._decoders = {name: Decoder(model) for name, model in context_models.items()}

    def decode(
        self, count: int, part: Callable[[str], bytes | memoryview], where: str
    ) -> tuple[Scene, Symbols]:
        """Decodes one chunk of ``count`` Gaussians, and returns its symbols too.

        Args:
            count: n.
            part: gives the bytes of a stream.
            where: begins an error message.

        Raises:
            ArtifactError: the bytes are damaged.
        """
        sequences: dict[str, tuple[Ints, Ints]] = {}
        parts: dict[str, varint.Reader] = {}

        def next_symbols(name: str, groups: Ints) -> npt.NDArray[np.int32]:
            stream = self._stream_of[name]
            if stream not in parts:
                parts[stream] = varint.Reader(part(stream), f"{where}: {stream}")
            data = parts[stream].take_bytes(parts[stream].take())
            symbols = self._decoders[name].decode(data, groups, f"{where}: {name}")
            sequences[name] = (symbols, groups)
            return symbols

        bits = part("paths")
        scene = dequantize(count, next_symbols, bits, self._parameters, self.table, where)
        for reader in parts.values():
            reader.finish()
        return scene, Symbols(count=count, sequences=sequences, bits=bytes(bits))


class CodedScene(ABC):
    """A coded scene whose bytes may be on disk or in memory.

    Attributes:
        parameters: numbers of its codec.
        chunks: number of chunks.
        outliers: Gaussians whose positions are stored exactly.
    """

    parameters: Parameters
    chunks: int
    outliers: Outliers
    _decoder: ChunkDecoder

    @abstractmethod
    def __len__(self) -> int:
        """Number of Gaussians."""

    @abstractmethod
    def chunk_and_symbols(self, index: int) -> tuple[Scene, Symbols]:
        """The Gaussians of one chunk, and the symbols that they were restored from.

        Raises:
            ArtifactError: there is no such chunk, or it is damaged.
        """

    @property
    def table(self) -> npt.NDArray[np.float32]:
        """Table of the harmonics: principal axes ``[R, 3 M]``, or codebooks ``[C, K, d]``."""
        return self._decoder.table

    def chunk(self, index: int) -> Scene:
        """The Gaussians of one chunk.

        Raises:
            ArtifactError: there is no such chunk, or it is damaged.
        """
        return self.chunk_and_symbols(index)[0]


class UnwrittenScene(CodedScene):
    """A coded scene in memory that is not written yet."""

    def __init__(self, encoded: Encoded) -> None:
        """Prepare to decode it."""
        self.parameters, self._encoded = encoded.parameters, encoded
        self.outliers = encoded.outliers
        self.chunks = -(-len(encoded.order) // CHUNK)
        self._decoder = ChunkDecoder(encoded.parameters, encoded.models, "encoded scene")

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self._encoded.order)

    def chunk_and_symbols(self, index: int) -> tuple[Scene, Symbols]:
        """The Gaussians of one chunk, and the symbols that they were restored from."""
        count = min(CHUNK, len(self) - index * CHUNK)
        parts = self._encoded.chunked
        scene, symbols = self._decoder.decode(
            count, lambda stream: parts[stream][index], f"chunk {index}"
        )
        return self.outliers.restore(scene, index * CHUNK), symbols

    def __iter__(self) -> Iterator[Scene]:
        """The chunks in order."""
        return map(self.chunk, range(self.chunks))


class SceneFile(CodedScene):
    """An opened ``.dpq`` scene.

    Attributes:
        file: the container.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file and check all but its chunks.

        Raises:
            ArtifactError: it is damaged, hostile, or no splat scene.
        """
        self.file = ArtifactFile.open(path, adapter="gaussian")
        manifest = self.file.manifest
        where = str(self.file.path)
        self.parameters = parameters_from_json(dict(manifest.parameters), where)
        stream_names = [*streams_of(self.parameters), "paths"]
        if manifest.chunk_items > CHUNK or sorted(manifest.chunked) != sorted(stream_names):
            raise ArtifactError(f"{where}: its chunks or streams are not those of a splat scene")
        self._decoder = ChunkDecoder(self.parameters, self.file.stream("models"), where)
        self.chunks = manifest.chunks
        self.outliers = NO_OUTLIERS
        if self.parameters.outliers:
            data, count = self.file.stream("outliers"), self.parameters.outliers
            self.outliers = outliers_from_bytes(data, count, manifest.items, f"{where}: outliers")

    def __len__(self) -> int:
        """Number of Gaussians."""
        return self.file.manifest.items

    def chunk_and_symbols(self, index: int) -> tuple[Scene, Symbols]:
        """The Gaussians of one chunk, and the symbols that they were restored from.

        Raises:
            ArtifactError: there is no such chunk, or it is damaged.
        """
        count = self.file.manifest.chunk_size(index)
        where = f"{self.file.path}: chunk {index}"
        scene, symbols = self._decoder.decode(
            count, lambda stream: self.file.part(stream, index), where
        )
        return self.outliers.restore(scene, index * self.file.manifest.chunk_items), symbols

    def __iter__(self) -> Iterator[Scene]:
        """The chunks in order, decoded a few ahead by several threads."""
        threads = max(1, min(torch.get_num_threads(), self.chunks))
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[Future[Scene]] = deque()
            for index in range(self.chunks):
                ahead.append(pool.submit(self.chunk, index))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def whole(self) -> Scene:
        """All Gaussians, decoded by several threads.

        Raises:
            ArtifactError: a chunk is damaged.
        """
        m = self.parameters.coefficients
        shapes: dict[str, tuple[int, ...]] = {"positions": (3,), "log_scales": (3,)}
        shapes |= {"rotations": (4,), "opacity_logits": (), "sh_dc": (3,), "sh_rest": (m, 3)}
        arrays = {name: np.empty((len(self), *shape), np.float32) for name, shape in shapes.items()}
        size = self.file.manifest.chunk_items

        def fill(index: int) -> None:
            chunk = self.chunk(index)
            for name, array in chunk.arrays().items():
                arrays[name][index * size : index * size + len(chunk)] = array

        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), self.chunks))) as pool:
            list(pool.map(fill, range(self.chunks)))
        return Scene(**arrays)


def decode_scene(path: str | Path) -> Scene:
    """The whole scene of a ``.dpq`` file.

    Raises:
        ArtifactError: the file is missing, damaged, hostile or no splat scene.
    """
    return SceneFile(path).whole()


def iter_chunks(path: str | Path) -> Iterator[Scene]:
    """The scene of a ``.dpq`` file chunk by chunk, in bounded memory.

    Raises:
        ArtifactError: as ``decode_scene``.
    """
    yield from SceneFile(path)
