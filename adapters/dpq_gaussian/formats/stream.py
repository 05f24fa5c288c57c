"""A scene as a stream of chunks, for writing it without holding it whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dpq_core.errors import SourceError
from dpq_gaussian.scene import ROWS, Scene, check_values


@dataclass(frozen=True, kw_only=True)
class SceneStream:
    """A sequence of chunks of Gaussians to write.

    Attributes:
        count: N, over all chunks.
        sh_degree: the same in every chunk.
        chunks: scenes whose lengths add up to ``count``; iterated once.
    """

    count: int
    sh_degree: int
    chunks: Iterable[Scene]

    @classmethod
    def of(cls, scene: Scene) -> SceneStream:
        """A stream of slices of a scene in memory."""
        slices = (scene.take(slice(i, i + ROWS)) for i in range(0, len(scene), ROWS))
        return cls(count=len(scene), sh_degree=scene.sh_degree, chunks=slices)

    def checked(self, where: str) -> SceneStream:
        """The same, refusing unusable values and a wrong number of Gaussians as they pass.

        Raises:
            SourceError: while the chunks are iterated.
        """
        return SceneStream(count=self.count, sh_degree=self.sh_degree, chunks=self._check(where))

    def _check(self, where: str) -> Iterator[Scene]:
        passed = 0
        for chunk in self.chunks:
            check_values(chunk, where if len(chunk) == self.count else f"{where} from {passed}")
            if chunk.sh_degree != self.sh_degree:
                raise SourceError(f"{where}: degree {chunk.sh_degree} instead of {self.sh_degree}")
            passed += len(chunk)
            yield chunk
        if passed != self.count:
            raise SourceError(f"{where}: {passed} Gaussians instead of {self.count}")
