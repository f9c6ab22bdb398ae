"""The small web holds what the table says, and no two of its pictures are alike by accident."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from headrace.curation.annotate.annotators.hashes import image_hashes
from headrace.demo.scenes import Pixels
from headrace.demo.web import Entry, Site, plan_site
from headrace.shards.images.decode import decode_rgb

ADDRESSES = {
    "server": "127.0.0.1:1",
    "slow": "127.0.0.1:2",
    "closed": "127.0.0.1:3",
    "private": "127.0.0.2:4",
    "private_port": "4",
    "secret": "/nowhere/secret.jpg",
}
UNREADABLE = {"html_as_jpeg", "truncated", "bomb", "http_error", "redirect_loop"}


def pixels_of(entry: Entry) -> Pixels:
    assert entry.reply is not None
    return decode_rgb(entry.reply.body)


def hashes_of(data: Pixels) -> list[np.ndarray]:
    found = image_hashes(data)
    return [np.unpackbits(np.frombuffer(item, np.uint8)) for item in (found.pdq, found.pdq_trimmed)]


def near(left: Pixels, right: Pixels) -> int:
    return min(int((a != b).sum()) for a in hashes_of(left) for b in hashes_of(right))


def test_the_same_seed_draws_the_same_web(site: Site) -> None:
    again = plan_site(site.seed)
    assert [(e.url, e.caption, e.kind, e.reply) for e in again.entries] == [
        (e.url, e.caption, e.kind, e.reply) for e in site.entries
    ]
    assert again.evaluation == site.evaluation
    other = plan_site(site.seed + 1)
    assert Counter((e.kind, e.fault) for e in other.entries) == Counter((e.kind, e.fault) for e in site.entries)
    served = [{e.url for e in found.entries if e.reply is not None} for found in (site, other)]
    assert not served[0] & served[1]


def test_different_pictures_are_far_apart_for_the_real_hashes(site: Site) -> None:
    kept = [
        entry
        for entry in site.entries
        if not entry.fault and entry.reply is not None and entry.reply.headers[0][0] != "Location"
    ]
    hashes = np.array([hashes_of(pixels_of(entry))[0] for entry in kept])
    distances = (hashes[:, None] != hashes[None]).sum(-1)[np.triu_indices(len(hashes), 1)]
    assert len(kept) > 250
    assert distances.min() > 40


def test_copies_are_near_their_originals_for_the_real_hashes(site: Site) -> None:
    originals = {entry.group: entry for entry in site.entries if entry.group and not entry.fault}
    copies = [
        entry for entry in site.entries if entry.group and entry.fault and entry.reply and entry.reply.status == 200
    ]
    distances = [near(pixels_of(entry), pixels_of(originals[entry.group])) for entry in copies]
    assert len(copies) > 25
    assert max(distances) <= 20


def test_evaluation_copies_are_near_and_their_twins_are_not(site: Site) -> None:
    references = []
    for _, data in site.evaluation:
        with Image.open(io.BytesIO(data)) as image:
            picture = np.asarray(image.convert("RGB"))
        references += [*hashes_of(picture), *hashes_of(np.ascontiguousarray(picture[:, ::-1]))]
    for entry in site.entries:
        if not entry.kind.startswith("evaluation"):
            continue
        closest = min(int((a != b).sum()) for a in hashes_of(pixels_of(entry)) for b in references)
        assert (closest <= 31) == entry.fault, (entry.kind, entry.fault, closest)


def test_addresses_say_nothing_of_the_truth_and_are_all_different(site: Site) -> None:
    rows = site.rows(ADDRESSES)
    assert len({url for url, _ in rows}) == len(rows)
    assert not any("{" in url for url, _ in rows)
    for (url, _), entry in zip(rows, site.entries, strict=True):
        if entry.reply is not None:
            assert entry.kind not in url
    first_half = [entry.fault for entry in site.entries[: len(site.entries) // 2]]
    assert 0.3 < np.mean(first_half) / np.mean([entry.fault for entry in site.entries]) < 1.7


def test_the_cut_is_the_share_of_true_pairs_that_reach_it(site: Site) -> None:
    num_wrong = sum(entry.kind == "wrong_caption" for entry in site.entries)
    num_true = sum(
        not entry.fault or entry.kind in ("face", "metadata", "copy_reencoded", "copy_resized", "copy_padded")
        for entry in site.entries
    )
    assert site.true_share == pytest.approx(num_true / (num_true + num_wrong))


def test_every_fault_names_who_must_find_it_and_near_misses_name_nobody(site: Site) -> None:
    for entry in site.entries:
        assert bool(entry.found_by) == entry.fault
    kinds = {entry.kind for entry in site.entries}
    assert kinds >= UNREADABLE
    assert len(kinds) >= 30
