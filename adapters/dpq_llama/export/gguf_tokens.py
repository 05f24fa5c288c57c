"""The tokenizer of a model, as GGUF writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpq_core.errors import ANY, Hint, SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens (``TokenType`` of the gguf package)."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_SPLITS = {
    "|".join((_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _ENDS)): "llama-bpe",
    "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _ENDS)): "qwen2",
    "|".join((*_CASED, r"\p{N}", _CASED_ENDS)): "tekken",
    "|".join((*(p + f"{_CONTRACTIONS}?" for p in _CASED), r"\p{N}{1,3}", _CASED_ENDS)): "gpt-4o",
}
"""Regular expression that cuts text before byte-level BPE -> llama.cpp's name for it."""

_WITHOUT_MERGES = {"llama-bpe": "smaug-bpe"}
"""Names under which llama.cpp takes a whole word that is a token at once -> those under which it
always merges; where a tokenizer says ``ignore_merges: false``, the second is right."""


@dataclass(frozen=True, kw_only=True)
class GGUFTokens:
    """A tokenizer in the terms of GGUF.

    Attributes:
        model: kind of tokenizer: ``gpt2`` (byte-level BPE) or ``llama`` (sentencepiece's BPE).
        pre: llama.cpp's name for the way in which text is split before BPE.
        tokens: text of every token, by id.
        types: type of every token.
        merges: pairs that are joined, best first; of ``gpt2``.
        scores: score of every token, the higher the earlier it is made; of ``llama``.
        ids: ids of special tokens: ``bos``, ``eos``, ``unknown``, ``padding``.
        flags: ``add_bos_token``, ``add_eos_token``, ``add_space_prefix``.
        chat_template: the template in Jinja; empty for none.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    chat_template: str = ""


def gguf_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int, pre: str = "") -> GGUFTokens:
    """The parts of a tokenizer that llama.cpp needs.

    Args:
        tokenizer: of the model.
        vocabulary: number of rows of the embedding; ids without a token become unused ones.
        pre: llama.cpp's name for the way in which text is split; by default dpq finds it.

    Raises:
        SourceError: a kind of tokenizer that llama.cpp does not have, or the way in which text is
            split is not recognized.
    """
    where = str(tokenizer.name_or_path)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(f"{where}: the tokenizer has no tokenizer.json, and cannot be converted")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model.get("type") != "BPE":
        raise SourceError(f"{where}: a tokenizer of type {model.get('type')} is not supported")
    tokens, types = _vocabulary(described, tokenizer, vocabulary, where)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    begin, end = _ends(tokenizer)
    flags = {"add_bos_token": begin, "add_eos_token": end}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    common: dict[str, Any] = {
        "tokens": tokens,
        "ids": {name: token for name, token in ids.items() if token is not None},
        "chat_template": template or "",
    }
    if model.get("byte_fallback"):
        flags["add_space_prefix"] = _adds_space(described)
        return GGUFTokens(
            model="llama",
            pre=pre or "default",
            types=[
                BYTE if _is_byte(text) else kind for text, kind in zip(tokens, types, strict=True)
            ],
            scores=_scores(tokens, merges),
            flags=flags,
            **common,
        )
    return GGUFTokens(
        model="gpt2",
        pre=pre or _split_name(described, where),
        types=types,
        merges=[" ".join(pair) for pair in merges],
        flags=flags,
        **common,
    )


def _vocabulary(
    described: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, size: int, where: str
) -> tuple[list[str], list[int]]:
    """Text and type of every token, by id."""
    text = {number: token for token, number in described["model"]["vocab"].items()}
    types = dict.fromkeys(text, NORMAL)
    for added in described.get("added_tokens", ()):
        text[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if tokenizer.unk_token_id is not None and described["model"].get("byte_fallback"):
        types[tokenizer.unk_token_id] = UNKNOWN
    if text and max(text) >= size:
        raise SourceError(f"{where}: token {max(text)} has no row in the embedding of {size} rows")
    tokens = [text.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [types.get(number, UNUSED) for number in range(size)]


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer begins and ends a text with its own tokens, seen on an example."""
    ids = tokenizer("a")["input_ids"]
    begin = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    end = tokenizer.eos_token_id is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return begin, end


def _steps(part: Mapping[str, Any] | None, children: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, alone or in a sequence."""
    if part is None:
        return []
    return list(part[children]) if part["type"] == "Sequence" else [part]


def _split_name(described: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer splits text."""
    steps = _steps(described.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        name = _SPLITS.get(steps[0]["pattern"].get("Regex", ""), "")
        if name and not described["model"].get("ignore_merges"):
            name = _WITHOUT_MERGES.get(name, name)
        if name:
            return name
    raise SourceError(
        f"{where}: not recognized how the tokenizer splits text",
        Hint.of("give llama.cpp's name for it with {}", pre_tokenizer=ANY),
    )


def _is_byte(token: str) -> bool:
    """Whether a token stands for a byte: ``<0x00>`` to ``<0xFF>``."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Scores by which sentencepiece makes tokens in the order of the merges.

    It joins the pair whose token has the highest score; the merges of a tokenizer that was
    converted from sentencepiece are all pairs, sorted by that score.
    """
    rank: dict[str, int] = {}
    for pair in merges:
        rank.setdefault("".join(pair), len(rank) + 1)
    last = len(rank) + 1
    return [-float(rank.get(token, 0 if len(token) == 1 else last)) for token in tokens]


def _adds_space(described: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a space before a text."""
    normalizers = _steps(described.get("normalizer"), "normalizers")
    splitters = _steps(described.get("pre_tokenizer"), "pretokenizers")
    return any(step["type"] == "Prepend" for step in normalizers) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme") in ("first", "always")
        for step in splitters
    )
