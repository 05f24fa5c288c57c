"""Hub ids and what is none."""

from __future__ import annotations

import pytest

from dpq_core.errors import SourceError
from dpq_hf.sources import is_hub_id, locate


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("owner/name", True),
        ("name", True),
        ("owner/name@v1", True),
        ("./a", False),
        ("a/b/c", False),
    ],
)
def test_hub_ids(source, is_one):
    assert is_hub_id(source) is is_one


def test_what_is_neither_a_path_nor_a_hub_id_is_refused(tmp_path):
    place = {"builtin": tmp_path, "marker": "config.json", "patterns": ["*"]}
    assert locate(str(tmp_path), **place) == tmp_path
    with pytest.raises(SourceError, match="no such file or folder, and not a hub id"):
        locate("a/b/c", **place)
