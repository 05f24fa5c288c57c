"""The exceptions that dpq raises for mistakes a user can mend; each message is one line."""


class DPQError(Exception):
    """Base of all dpq errors: what is wrong, where, and what to do, in one line."""


class SpecError(DPQError):
    """A quantization spec, override or option is invalid or does not fit its tensor."""


class UsageError(SpecError):
    """A call cannot be understood: there is no such option or format, or none is given."""


class SourceError(DPQError):
    """A source (folder, hub id, builtin name) is missing, unreadable or unsupported."""


class ArtifactError(DPQError):
    """An artifact is damaged, truncated, hostile, of an unknown version, or half-written."""


class AdapterError(DPQError):
    """An adapter is unknown, broken, ambiguous, or lacks the asked capability or its extra."""
