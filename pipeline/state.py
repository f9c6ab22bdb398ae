"""The state of a stream: what is written, and what can be continued exactly.

The world size, the threads and the memory are not part of it. `segments` holds what the stream has gone through: see
`history`.

Version 2 added `decoder`, as another decoder gives other pixels. States of version 1 had one, `turbo`, and one view;
they are continued. Where the mixture leaves the choice (`decoder: auto`) a state is continued by the decoder it names.

Version 3 added `resizer` and `jpeg_scaling`: until then Pillow resized, and nothing was scaled. Where the mixture
leaves the choice (`resizer: auto`) a state is continued by the resizer that it names.

Version 4 may hold several segments, and parts of datasets.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from headrace.config import canonical_json, config_to_dict
from headrace.pipeline.augment.views import planned_views
from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.decode import AUTO, chosen_decoder
from headrace.pipeline.decode.dali_pipeline import dali_fault
from headrace.pipeline.decode.resize import fast_fault, resizer_of
from headrace.pipeline.history import explain, past, segments_of
from headrace.pipeline.mixture import Augment, Mixture

VERSION = 4
ADDED: dict[int, dict[str, Any]] = {2: {"decoder": "turbo"}, 3: {"resizer": "pillow", "jpeg_scaling": "off"}, 4: {}}
"""For each version the fields it added, with the value that older states meant."""
RESIZED_BY_MIXTURE = "turbo"
"""The decoder that resizes as the mixture's `resizer` says; the others say `own`: they resize by themselves."""


def identity_of(
    mixture: Mixture,
    sources: Sequence[OpenedSource],
    *,
    global_batch: int,
    once: bool,
    ends: Sequence[int | None] = (),
    decoder: str = "",
) -> dict[str, Any]:
    """Return everything but the position; equal identities mean equal batches at equal positions.

    `decoder` is what the mixture's means here, where it leaves it open: by default what it means on the CPU.
    `ends` are the positions from which the end of each source is given, where one has an end.
    """
    decoder = decoder or chosen_decoder(mixture, "cpu")
    # One view is written as it was before there were more, so that its states continue.
    views = [[view.image_size, _augment(view.augment)] for view in planned_views(mixture)]
    pictures = canonical_json(views[0] if len(views) == 1 else views)
    return {
        "version": VERSION,
        "once": once,
        "seed": mixture.seed,
        "lanes": mixture.lanes,
        "global_batch": global_batch,
        "decoder": decoder,
        "pictures": hashlib.blake2b(pictures.encode(), digest_size=8).hexdigest(),
        "resizer": _resizer(mixture, decoder),
        "jpeg_scaling": f"margin {mixture.jpeg_scaling_margin:g}" if mixture.jpeg_scaling == "on" else "off",
        "segments": segments_of(mixture, sources, once=once, ends=ends),
    }


def state_at(position: int, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the state at a position: the identity without what is to come."""
    return {"position": position, **identity, "segments": past(identity["segments"], position)}


def _augment(augment: Augment) -> dict[str, Any]:
    """Return an augmentation as it was written before it had the fields that change nothing in its pictures."""
    return {name: value for name, value in config_to_dict(augment).items() if name not in augment.idle}


def continuing(identity: dict[str, Any], state: Any, mixture: Mixture, *, device: str = "cpu") -> dict[str, Any]:
    """Return the identity with which `state` is continued: decoder and resizer are its, where the mixture leaves them.

    A state of a decoder or a resizer that does not work here is continued by no other: `check_state` refuses it.
    """
    state = _upgraded(state)
    decoder, resizer = identity["decoder"], identity["resizer"]
    theirs = state.get("decoder")
    if mixture.decoder == AUTO and (theirs == "turbo" or (theirs == "dali" and not dali_fault(device))):
        decoder, resizer = theirs, _resizer(mixture, theirs)
    if mixture.resizer == "auto" and decoder == RESIZED_BY_MIXTURE and _runs(state.get("resizer")):
        resizer = state["resizer"]
    return {**identity, "decoder": decoder, "resizer": resizer}


def with_choices(mixture: Mixture, identity: dict[str, Any]) -> Mixture:
    """Return the mixture with the decoder and the resizer that the identity names, not left open."""
    resizer = mixture.resizer if identity["resizer"] == "own" else identity["resizer"]
    return dataclasses.replace(mixture, decoder=identity["decoder"], resizer=resizer)


def check_state(state: Any, identity: dict[str, Any]) -> int:
    """Return the position of `state`. Raises ValueError naming the field that keeps it from being continued exactly."""
    state = _upgraded(state)
    for name, mine in identity.items():
        if name != "segments" and state.get(name) != mine:
            meaning = " (image_size and augment)" if name == "pictures" else ""
            raise ValueError(
                f"state: {name}{meaning} was {state.get(name)!r}, this stream has {mine!r}{_cure(name, state)}"
            )
    position = state.get("position")
    if not isinstance(position, int) or position < 0 or position % identity["global_batch"]:
        raise ValueError(f"state: position {position!r} is not a multiple of global_batch {identity['global_batch']}")
    gone_through = past(identity["segments"], position)
    if state.get("segments") != gone_through:
        raise ValueError(f"state: {explain(state.get('segments'), gone_through)}")
    return position


def _resizer(mixture: Mixture, decoder: str) -> str:
    return resizer_of(mixture) if decoder == RESIZED_BY_MIXTURE else "own"


def _runs(resizer: object) -> bool:
    return resizer == "pillow" or (resizer == "fast" and not fast_fault())


def _cure(name: str, state: dict[str, Any]) -> str:
    if name == "decoder" and state.get(name) == "dali" and dali_fault():
        return f"; dali is {dali_fault()}"
    if name == "decoder" and state.get(name) in ("turbo", "dali"):
        return f"; set decoder: {state[name]}"
    if name != "resizer" or state.get(name) not in ("fast", "pillow"):
        return ""
    return f"; set resizer: {state[name]}" if _runs(state[name]) else "; pip install cykooz-resizer"


def _upgraded(state: Any) -> dict[str, Any]:
    """Return a state of any version as one of this version. Raises ValueError for what is none."""
    if not isinstance(state, dict):
        raise ValueError(f"a stream's state is a mapping, got {type(state).__name__}")
    version = state.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(f"state: version is {version!r}, this headrace continues 1 to {VERSION}")
    for added in range(version + 1, VERSION + 1):
        state = {**state, **ADDED[added], "version": VERSION}
    if version < 3 and state.get("decoder") != RESIZED_BY_MIXTURE:
        state["resizer"] = "own"
    return dict(state)
