"""The exceptions that dpq raises for mistakes a user can mend; each message is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

ANY = ...
"""The value of an option in a hint where the user knows it and dpq does not."""


@dataclass(frozen=True)
class Hint:
    """What to change in a call that failed, worded for Python or for the command line.

    Attributes:
        text: a sentence with one ``{}`` for each option.
        options: names and values of the arguments; ``ANY`` stands for a value of the user's.
    """

    text: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, text: str, **options: Any) -> Hint:
        """``Hint.of("use {} to replace it", overwrite=True)``."""
        return cls(text, tuple(options.items()))

    def in_python(self) -> str:
        """``use overwrite=True to replace it``."""
        return self.text.format(*(_argument(name, value) for name, value in self.options))

    def on_the_command_line(self) -> str:
        """``use --overwrite to replace it``."""
        return self.text.format(*(_flag(name, value) for name, value in self.options))


def _argument(name: str, value: Any) -> str:
    """``overwrite=True`` or, where the value is open, ``baseline``."""
    if value is ANY:
        return name
    return f"{name}={str(value)!r}" if isinstance(value, PurePath) else f"{name}={value!r}"


def _flag(name: str, value: Any) -> str:
    """``--overwrite``, ``--no-probe``, ``--bits 2`` or, where the value is open, ``--baseline``."""
    flag = name.replace("_", "-")
    if value is False:
        return f"--no-{flag}"
    return f"--{flag}" if value is True or value is ANY else f"--{flag} {value}"


class DPQError(Exception):
    """Base of all dpq errors: what is wrong, where, and what to do, in one line.

    Attributes:
        message: what is wrong, and where.
        hint: what to change in the call, where that is known; ``str`` words it as arguments.
        option: name of the argument that the message is about, where it is about one.
        value: what was given for that argument; ``ANY`` where it adds nothing.
    """

    def __init__(
        self,
        message: str,
        hint: Hint | None = None,
        *,
        option: str | None = None,
        value: Any = ANY,
    ) -> None:
        """Keep the message and the arguments' names apart, so that each door can word them."""
        super().__init__(message, hint)
        self.message = message
        self.hint = hint
        self.option = option
        self.value = value

    def __str__(self) -> str:
        """The message, and the hint in terms of Python's arguments."""
        hint = self.hint.in_python() if self.hint else ""
        return self._line(_argument, hint)

    def on_the_command_line(self) -> str:
        """The message, and the hint in terms of flags."""
        hint = self.hint.on_the_command_line() if self.hint else ""
        return self._line(_flag, hint)

    def _line(self, word: Callable[[str, Any], str], hint: str) -> str:
        about = f"{word(self.option, self.value)}: " if self.option else ""
        return about + self.message + (f"; {hint}" if hint else "")


class Interrupted(KeyboardInterrupt):
    """A run was stopped with Ctrl-C after its state was saved.

    Attributes:
        message: what is kept.
        hint: how to go on.
    """

    def __init__(self, message: str, hint: Hint) -> None:
        """Keep the message and the hint apart, as ``DPQError`` does."""
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, and the hint in terms of Python's arguments."""
        return f"{self.message}; {self.hint.in_python()}"

    def on_the_command_line(self) -> str:
        """The message, and the hint in terms of flags."""
        return f"{self.message}; {self.hint.on_the_command_line()}"


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


REPLACE = Hint.of("use {} to replace it", overwrite=True)
"""The hint where an output exists."""

CONTINUE = Hint.of("use {} to continue it or {} to start over", resume=True, overwrite=True)
"""The hint where an earlier run was not finished."""

START_OVER = Hint.of("leave out {} and use {} for that", resume=True, overwrite=True)
"""The hint where there is something that cannot be continued."""

GIVE_BASELINE = Hint.of("give it with {}", baseline=ANY)
"""The hint where the uncompressed model is another than the one that was compressed."""
