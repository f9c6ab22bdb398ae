"""`auto` is what suits the device, and goes on with what a state was made by."""

import dataclasses
import json
import sys
from collections.abc import Iterator

import pytest

from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.decode import choice
from headrace.pipeline.decode.choice import chosen_decoder
from headrace.pipeline.decode.dali_pipeline import dali_fault
from headrace.pipeline.decode.memory import check_device


@pytest.fixture
def without_dali(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No DALI in this environment."""
    dali_fault.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    yield
    dali_fault.cache_clear()


@pytest.mark.usefixtures("without_dali")
def test_auto_is_the_default_and_turbo_on_the_cpu(mixture: Mixture) -> None:
    assert mixture.decoder == "auto"
    with open_stream(mixture, global_batch=8) as stream:
        assert stream.decoder == stream.state_dict()["decoder"] == "turbo"


def test_auto_is_dali_on_a_cuda_device_where_it_works(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "dali_fault", lambda device: "" if device == "cuda:1" else "broken")
    assert chosen_decoder(mixture, "cuda:1") == "dali"
    assert chosen_decoder(mixture, "cpu") == "turbo"
    assert chosen_decoder(dataclasses.replace(mixture, jpeg_scaling="on"), "cuda:1") == "turbo"


@pytest.mark.usefixtures("without_dali")
def test_auto_says_once_why_it_is_turbo_on_a_cuda_device(mixture: Mixture, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert chosen_decoder(mixture, "cuda:0") == "turbo"
    (record,) = caplog.records
    assert record.getMessage().startswith("decoder auto is turbo on cuda:0: dali is not installed")


@pytest.mark.usefixtures("without_dali")
def test_dali_that_is_not_there_is_refused_before_anything_is_read(mixture: Mixture) -> None:
    unread = dataclasses.replace(mixture.sources[0], url="/nowhere/at/all")
    with pytest.raises(
        ValueError, match=r"decoder: dali is not installed .*pip install 'headrace\[dali\]'; or set decoder: turbo"
    ):
        open_stream(dataclasses.replace(mixture, decoder="dali", sources=(unread,)), global_batch=8)


def test_dali_does_not_scale(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="jpeg_scaling: on needs decoder: turbo"):
        open_stream(dataclasses.replace(mixture, decoder="dali", jpeg_scaling="on"), global_batch=8)


def test_auto_continues_the_decoder_of_the_state(mixture: Mixture) -> None:
    states = {}
    for decoder in ("turbo", "dali"):
        with open_stream(dataclasses.replace(mixture, decoder=decoder), global_batch=8) as stream:
            next(stream)
            states[decoder] = json.loads(json.dumps(stream.state_dict()))
            following = next(stream).images.tobytes()
        with open_stream(mixture, global_batch=8) as stream:
            stream.load_state_dict(states[decoder])
            assert stream.decoder == decoder
            assert next(stream).images.tobytes() == following
    assert states["dali"]["resizer"] == "own"
    with (
        open_stream(dataclasses.replace(mixture, decoder="turbo"), global_batch=8) as stream,
        pytest.raises(ValueError, match="decoder was 'dali', this stream has 'turbo'; set decoder: dali"),
    ):
        stream.load_state_dict(states["dali"])


def test_a_state_of_dali_is_not_continued_without_it(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_stream(dataclasses.replace(mixture, decoder="dali"), global_batch=8) as stream:
        state = stream.state_dict()
    dali_fault.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with (
        open_stream(mixture, global_batch=8) as stream,
        pytest.raises(ValueError, match=r"decoder was 'dali', this stream has 'turbo'; dali is not installed"),
    ):
        stream.load_state_dict(state)
    dali_fault.cache_clear()


def test_the_share_of_the_hardware_and_the_threads_are_no_part_of_the_state(mixture: Mixture) -> None:
    one = dataclasses.replace(mixture, decoder="dali")
    two = dataclasses.replace(one, hw_decoder_load=0.25, decode_threads=1)
    with open_stream(one, global_batch=8) as first, open_stream(two, global_batch=8) as second:
        next(first)
        second.load_state_dict(first.state_dict())
        assert (next(first).images == next(second).images).all()
    with pytest.raises(ValueError, match=r"hw_decoder_load must be 0..1, got 1.5"):
        dataclasses.replace(mixture, hw_decoder_load=1.5)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "", "meta"])
def test_an_unknown_device_is_refused(mixture: Mixture, device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        open_stream(mixture, global_batch=8, device=device)


def test_a_cuda_device_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device cuda: torch .* sees no CUDA device here; use device cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert check_device("cuda") == "cuda:1"
    assert check_device("cuda:0") == "cuda:0"
    with pytest.raises(ValueError, match="device cuda:2: there are 2 CUDA devices here"):
        check_device("cuda:2")
