"""Counts in messages: one thing in the singular, others in the plural."""

from __future__ import annotations

import re
from pathlib import Path

import torchdoctor
from torchdoctor.data.mask_formats.annotation import Notes
from torchdoctor.display.counts import count_of
from torchdoctor.runs.review_files import said_of_kinds


def test_one_is_singular_and_all_others_plural():
    assert [count_of(number, "image") for number in (0, 1, 2, 1080)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,080 images",
    ]
    assert count_of(1, "image has", "images have") == "1 image has"
    assert count_of(0, "category", "categories") == "0 categories"


def test_kinds_of_masks_and_notes_follow_it():
    kinds = {"accepted proposal": 2, "by hand": 4, "corrected proposal": 1, "no object": 2}
    assert said_of_kinds(kinds) == "2 accepted proposals, 4 by hand, 1 corrected proposal, 2 no object"
    assert said_of_kinds({}) == "none"
    notes = Notes()
    notes.add("shapes of a kind: left out")
    notes.add("images turned upright", 2)
    assert notes.sentences == ("1 shape of a kind: left out", "2 images turned upright")


def test_no_message_leaves_the_plural_open():
    package = Path(torchdoctor.__file__).parent
    open_ones = re.compile(r"\}[^\"'{}]*[a-z]\(s\)")
    found = [
        f"{file.name}: {line.strip()}"
        for file in sorted(package.rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if open_ones.search(line)
    ]
    assert found == []
