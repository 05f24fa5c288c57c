"""The parts of a manifest: their types, and reading them from JSON with every check."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import torch

from dpq_core.artifact import header, strict_json
from dpq_core.artifact.files import check_name
from dpq_core.artifact.strict_json import integer, one_line, shown, typed
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import DTYPES
from dpq_core.tensor.partition import Layout

MAX_FILES = 10_000
MAX_TEXT_BYTES = 4096
MAX_DATA = 64
MAX_DESCRIPTION_BYTES = 256
DATA_USES = ("compress", "calibrate")

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of the model.

    Attributes:
        name: full name in the model, e.g. ``model.layers.0.mlp.up_proj.weight``.
        shape: shape of the original tensor.
        dtype: dtype of the original tensor, as torch spells it (``bfloat16``).
        layout: how the tensor is viewed as a matrix; None where it is kept dense.
        spec: index into ``Manifest.specs``; None where it is kept dense.
        relative_error: |W - decode|^2 / |W|^2 as measured on writing, where it was.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout | None = None
    spec: int | None = None
    relative_error: float | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the original tensor."""
        return DTYPE_NAMES[self.dtype]


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (lower-case hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DataEntry:
    """The data that one job read to make an artifact.

    Attributes:
        use: the job, one of ``DATA_USES``.
        description: what was read, in one line of at most ``MAX_DESCRIPTION_BYTES`` bytes.
        fingerprint: sha256 (lower-case hex), which is equal for equal data, options and seeds.
    """

    use: str
    description: str
    fingerprint: str

    @classmethod
    def of(cls, use: str, description: str, identity: str) -> DataEntry:
        """The entry of any description, made one line and cut to the size that is allowed.

        Args:
            use: the job, one of ``DATA_USES``.
            description: what was read, for people.
            identity: any text that changes whenever the data do.
        """
        line = "".join(c if c.isprintable() else " " for c in description).strip() or "unnamed"
        while len(json.dumps(line, ensure_ascii=False).encode()) > MAX_DESCRIPTION_BYTES:
            line = line[: -1 - len(line) // 16]
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(use=use, description=line, fingerprint=digest)


def entry_from_json(value: object, specs: int, where: str) -> TensorEntry:
    """Read one tensor of a manifest that has ``specs`` specs.

    Raises:
        ArtifactError: a key, type or value that the format does not allow.
    """
    fields = strict_json.exactly(value, TensorEntry.__dataclass_fields__, f"{where}: a tensor")
    name = strict_json.text(fields["name"], header.MAX_NAME_BYTES, f"{where}: tensor name")
    where = f"{where}: tensor {shown(name)}"
    dtype = typed(fields["dtype"], str, f"{where}: dtype")
    if dtype not in DTYPE_NAMES:
        raise ArtifactError(f"{where}: unknown dtype {shown(dtype)}")
    layout, spec, error = fields["layout"], fields["spec"], fields["relative_error"]
    if (layout is None) != (spec is None):
        raise ArtifactError(f"{where}: layout and spec must both be null, or neither")
    if layout is not None and typed(layout, str, f"{where}: layout") not in list(Layout):
        raise ArtifactError(f"{where}: unknown layout {shown(layout)}")
    if spec is not None and integer(spec, header.MAX_ELEMENTS, f"{where}: spec") >= specs:
        raise ArtifactError(f"{where}: spec {spec} does not exist; there are {specs}")
    if spec is not None and not DTYPE_NAMES[dtype].is_floating_point:
        raise ArtifactError(f"{where}: a quantized tensor cannot be {dtype}")
    if error is not None and not (type(error) in (int, float) and 0 <= error < 1e300):
        raise ArtifactError(f"{where}: relative_error {shown(error)} is not a number >= 0")
    return TensorEntry(
        name=name,
        shape=strict_json.shape(
            fields["shape"], header.MAX_RANK, header.MAX_ELEMENTS, f"{where}: shape"
        ),
        dtype=dtype,
        layout=None if layout is None else Layout(layout),
        spec=spec,
        relative_error=None if error is None else float(error),
    )


def spec_from_json(value: object, where: str) -> QuantSpec:
    """Read one spec; every field must be given, since defaults may change between versions.

    Raises:
        ArtifactError: a key, type or value that the format does not allow.
    """
    data = typed(value, dict, where)
    try:
        spec = QuantSpec.from_json(data)
    except (SpecError, TypeError, ValueError, OverflowError) as error:
        # the last three: a value of an unforeseen type or size
        raise ArtifactError(f"{where}: {one_line(error)}") from None
    full = spec.to_json()
    strict_json.exactly(data, full, where)
    if data["version"] != full["version"]:
        raise ArtifactError(f"{where}: version {data['version']} is newer than the spec needs")
    for key, nested in full.items():
        if isinstance(nested, dict):
            strict_json.exactly(data[key], nested, f"{where}: {key}")
    return spec


def files_from_json(value: object, where: str) -> dict[str, FileEntry]:
    """Read the files of a manifest: relative name -> size and sha256.

    Raises:
        ArtifactError: a key, type or value that the format does not allow.
    """
    files = typed(value, dict, f"{where}: files")
    if len(files) > MAX_FILES:
        raise ArtifactError(f"{where}: {len(files)} files are more than {MAX_FILES}")
    result = {}
    for name, value in files.items():
        check_name(name, where)
        fields = strict_json.exactly(value, ("bytes", "sha256"), f"{where}: file {shown(name)}")
        size = integer(fields["bytes"], header.MAX_FILE_BYTES, f"{where}: file {shown(name)}")
        sha256 = _sha256(fields["sha256"], f"{where}: file {shown(name)}")
        result[name] = FileEntry(size, sha256)
    return result


def weights_from_json(value: object, where: str) -> dict[str, str]:
    """Read the components of a manifest: component -> stem of its weight files.

    Raises:
        ArtifactError: no component, "" beside others, a name with a folder, or a stem twice.
    """
    weights = typed(value, dict, where)
    if not 1 <= len(weights) <= 64:
        raise ArtifactError(f"{where}: {len(weights)} components are not between 1 and 64")
    for component, stem in weights.items():
        check_name(stem, where)
        alone = component == "" and len(weights) == 1
        if not alone and ("/" in check_name(component, where)):
            raise ArtifactError(f"{where}: component {shown(component)} must not hold a folder")
    if len(set(weights.values())) < len(weights):
        raise ArtifactError(f"{where}: two components have the same weight files")
    return weights


def versions_from_json(value: object, where: str) -> dict[str, str]:
    """Read the libraries of a manifest: library -> version.

    Raises:
        ArtifactError: a key, type or value that the format does not allow.
    """
    versions = typed(value, dict, where)
    if len(versions) > 64:
        raise ArtifactError(f"{where}: {len(versions)} libraries are more than 64")
    for library, number in versions.items():
        strict_json.text(library, MAX_TEXT_BYTES, where)
        strict_json.text(number, MAX_TEXT_BYTES, f"{where}: {shown(library)}")
    return versions


def data_from_json(value: object, where: str) -> tuple[DataEntry, ...]:
    """Read the data of a manifest.

    Raises:
        ArtifactError: a key, type or value that the format does not allow.
    """
    items = typed(value, list, where)
    if not 1 <= len(items) <= MAX_DATA:
        raise ArtifactError(f"{where}: {len(items)} entries are not between 1 and {MAX_DATA}")
    entries = []
    for item in items:
        fields = strict_json.exactly(item, DataEntry.__dataclass_fields__, where)
        use = strict_json.text(fields["use"], MAX_TEXT_BYTES, f"{where}: use")
        if use not in DATA_USES:
            raise ArtifactError(f"{where}: use {shown(use)} is not one of {', '.join(DATA_USES)}")
        entries.append(
            DataEntry(
                use=use,
                description=strict_json.text(
                    fields["description"], MAX_DESCRIPTION_BYTES, f"{where}: description"
                ),
                fingerprint=_sha256(fields["fingerprint"], f"{where}: fingerprint"),
            )
        )
    return tuple(entries)


def _sha256(value: object, where: str) -> str:
    """Check that a value is a sha256 in lower-case hex; returns it."""
    text = typed(value, str, where)
    if not _SHA256.fullmatch(text):
        raise ArtifactError(f"{where}: {shown(text)} is no sha256")
    return text
