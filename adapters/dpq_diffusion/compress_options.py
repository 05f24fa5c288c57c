"""Options of ``dpq compress`` for diffusion models."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Which parts of a pipeline are compressed; the others are copied as they are."""

    components: str = field(
        default="",
        metadata={
            "help": "components to compress, comma-separated, e.g. transformer,text_encoder,vae; "
            "without it, the denoiser (transformer or unet)"
        },
    )

    def __post_init__(self) -> None:
        """Refuse an empty item."""
        if self.components and not all(self.names):
            raise SpecError(f"option --components: an empty name in {self.components!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that were given; none means the denoiser."""
        parts = self.components.split(",") if self.components else []
        return tuple(part.strip() for part in parts)
