"""Ids are safe, unique and stable, for every file name that a disk can hold."""

import os
import random
import unicodedata
from math import nan
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ids import RESERVED_SEGMENTS, Named, derive_ids, escape, natural_key, readable, span_text, split_suffix

NFC, NFD = "caf\u00e9", "cafe\u0301"

# Pieces of names that meet each other when they are put together, and real bytes that are not UTF-8.
PIECES = ["a", "b", "2", ".", ".mp4", ".avi", "@0-2", "~2", "%", "66", "%2E", "features", "\x01", "\u00e9", "e\u0301"]
segments = st.lists(st.sampled_from([*PIECES, "\u212a", os.fsdecode(b"\xff")]), min_size=1, max_size=4).map("".join)
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)
raw_segments = st.binary(min_size=1, max_size=6).filter(lambda raw: not set(raw) & {0, ord("/")}).map(os.fsdecode)
spans = st.sampled_from([(nan, nan), (0.0, 2.0), (2.0, 4.5), (nan, 2.5), (3.0, nan)])
videos = st.lists(st.tuples(paths, spans), min_size=1, max_size=9, unique=True)


def named(path: str, start: float = nan, end: float = nan) -> Named:
    return Named(*split_suffix(path), f"/data/{path}", start, end)


def ids_of(*names: str, known: dict[str, str] | None = None) -> list[str]:
    return derive_ids([named(name) for name in names], known or {})


def assert_safe(video_id: str) -> None:
    video_id.encode()  # no surrogates: it is valid UTF-8
    assert unicodedata.is_normalized("NFC", video_id)
    assert not any(unicodedata.category(character) == "Cc" for character in video_id)
    assert {"", ".", "..", *RESERVED_SEGMENTS}.isdisjoint(video_id.split("/"))


def test_numbers_in_names_sort_as_numbers():
    names = ["a10", "a2", "a1b", "A3", "a/2", "a", "10", "9", "a b"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "a1b", "a2", "A3", "a10", "a/2", "a b"]
    assert natural_key("9" * 5000) < natural_key("1" + "0" * 5000)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b.c.mp4", ("a/b.c", ".mp4")),
        ("a.b/c", ("a.b/c", "")),
        ("a/.hidden", ("a/.hidden", "")),
        ("a/..mp4", ("a/..mp4", "")),
        ("a.", ("a", ".")),
    ],
)
def test_suffix(path, parts):
    assert split_suffix(path) == parts


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("fight/fi001", "fight/fi001"),
        ("two words/ü 漢", "two words/ü 漢"),
        ("../x", "%2E%2E/x"),
        ("./x", "%2E/x"),
        ("...", "..."),
        ("a\x00\nb\x7f\x85", "a%00%0Ab%7F%C2%85"),
        (os.fsdecode(b"\xff\xc3"), "%FF%C3"),
        ("100%", "100%"),
        ("50%2Fx", "50%252Fx"),
        ("%%2e", "%%252e"),
        ("a/features", "a/%66eatures"),
        ("features/timestamps", "%66eatures/%74imestamps"),
        ("frame_index/feature/channel", "%66rame_index/%66eature/%63hannel"),
        ("height/width/view", "%68eight/%77idth/%76iew"),
        ("my features", "my features"),
        (NFD, NFC),
    ],
)
def test_escaping(path, expected):
    assert escape(path) == expected


def test_an_id_copied_from_a_bank_means_itself():
    for path in ("../x", "a/features", "50%2Fx", os.fsdecode(b"\xff")):
        assert escape(escape(path), given=True) == escape(path)


def test_text_for_people():
    assert readable(f"{NFD}\n\udcff\ud800 50%25") == f"{NFC}%0A%FF%ED%A0%80 50%25"


@settings(deadline=None)
@given(st.lists(raw_segments, min_size=1, max_size=3).map("/".join))
def test_escaping_can_be_undone(path):
    """So two paths share an id only if they differ in Unicode normalisation alone."""
    escaped = escape(path)
    assert_safe(escaped)
    assert unquote_to_bytes(escaped) == os.fsencode(unicodedata.normalize("NFC", path))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (nan, nan, ""),
        (0.0, nan, ""),
        (0.0, 2.5, "@0-2.5"),
        (nan, 2.5, "@0-2.5"),
        (10.0, nan, "@10-end"),
        (1e-7, 1e6, "@0.0000001-1000000"),
        (0.1 + 0.2, 1.0, "@0.30000000000000004-1"),
    ],
)
def test_span(start, end, expected):
    assert span_text(start, end) == expected


def test_suffix_is_left_out():
    assert ids_of("fight/fi001.mp4", "x.tar.MP4") == ["fight/fi001", "x.tar"]


def test_folder_of_images_has_no_suffix_to_leave_out():
    assert derive_ids([Named("seq.v2", "", "/data/seq.v2")], {}) == ["seq.v2"]


def test_suffix_is_kept_where_files_differ_by_it_alone():
    assert ids_of("a.mp4", "a.avi", "b.mp4") == ["a.mp4", "a.avi", "b"]


def test_suffix_is_kept_where_the_id_would_be_another_files():
    assert ids_of("a.mp4", "a.avi", "a.mp4.mkv") == ["a.mp4", "a.avi", "a.mp4.mkv"]


def test_twins_in_unicode_normalisation():
    assert ids_of(f"{NFD}.mp4") == [NFC]
    assert ids_of(f"{NFD}.mp4", f"{NFC}.mp4") == ["cafe%CC%81", NFC]
    assert ids_of(f"{NFC}/x.mp4", f"{NFD}/x.mp4") == [f"{NFC}/x", "cafe%CC%81/x"]


def test_spans_are_appended():
    videos = [named("a.mp4"), named("a.mp4", 0, 2.5), named("a.mp4", 10), named("b.mp4", nan, 2)]
    assert derive_ids(videos, {}) == ["a", "a@0-2.5", "a@10-end", "b@0-2"]


def test_file_named_like_a_span():
    videos = [named("a.mp4", 0, 2), named("a.mp4", 2, 4), named("a@0-2.mkv")]
    assert derive_ids(videos, {}) == ["a.mp4@0-2", "a.mp4@2-4", "a@0-2.mkv"]


def test_what_still_meets_is_numbered():
    videos = [named("a.avi"), named("a.mp4", 0, 2), Named("a.mp4@0-2", "", "/data/a.mp4@0-2")]
    assert derive_ids(videos, {}) == ["a.avi", "a.mp4@0-2", "a.mp4@0-2~2"]


def test_new_files_avoid_ids_of_the_bank():
    known = {"a": "/data/a.mp4"}
    assert ids_of("a.avi", "a.mp4", known=known) == ["a.avi", "a"]
    assert ids_of("a.avi", known={**known, "a.avi": "/data/b.avi"}) == ["a.avi~2"]


def test_known_file_keeps_the_id_of_another_root_or_of_a_manifest():
    assert ids_of("sub/a.mp4", known={"a": "/data/sub/a.mp4"}) == ["a"]
    assert ids_of("a.mp4", known={"clip one": "/data/a.mp4"}) == ["clip one"]


def test_known_spans_keep_their_ids_and_stand_for_nothing_else():
    known = {"x/a@0-2": "/data/a.mp4", "x/a@2-4": "/data/a.mp4"}
    videos = [named("a.mp4"), named("a.mp4", 2, 4), named("a.mp4", 4, 6)]
    assert derive_ids(videos, known) == ["a", "x/a@2-4", "a@4-6"]


def test_two_known_ids_of_one_file_are_not_guessed_between():
    assert ids_of("a.mp4", known={"left": "/data/a.mp4", "right": "/data/a.mp4"}) == ["a"]


def test_one_known_id_is_not_given_twice():
    known = {"a@0-2": "/data/a@0-2.mp4"}
    assert derive_ids([named("a@0-2.mp4"), named("a@0-2.mp4", 0, 2)], known) == ["a@0-2", "a@0-2@0-2"]


@settings(deadline=None, max_examples=150)
@given(videos)
def test_ids_are_safe_different_and_independent_of_order(videos):
    named_videos = [named(path, *span) for path, span in videos]
    ids = derive_ids(named_videos, {})
    assert len(set(ids)) == len({(video.path, span_text(*video[3:])) for video in named_videos})
    for video_id in ids:
        assert_safe(video_id)
    order = list(range(len(videos)))
    random.Random(0).shuffle(order)
    assert derive_ids([named_videos[place] for place in order], {}) == [ids[place] for place in order]


@settings(deadline=None, max_examples=150)
@given(videos, st.integers(1, 8))
def test_videos_added_later_rename_nothing(videos, before):
    named_videos = [named(path, *span) for path, span in videos]
    first = derive_ids(named_videos[:before], {})
    known = {video_id: video.path for video_id, video in zip(first, named_videos, strict=False)}
    ids = derive_ids(named_videos, known)
    assert ids[: len(first)] == first
    assert len(set(ids)) == len(videos)
