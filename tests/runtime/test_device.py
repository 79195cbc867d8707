"""The device protocol: marks in a queue, their distance, and that both devices have all of it."""

import contextlib
from typing import get_args

import pytest
import torch

from compressor import device
from compressor.bench.machine import FLAGS
from compressor.device import DEVICES, EXACT_FLAGS, EXACT_SUMS, Cpu, Device, Gpu, Isa, open_device
from compressor.errors import InputError

VERBS = [name for name in vars(Device) if not name.startswith("_") and callable(getattr(Device, name))]


def test_both_devices_do_all_that_is_asked_of_a_device():
    assert {"place", "synchronise", "event", "nanoseconds", "queue"} == set(VERBS)
    for kind in DEVICES.values():
        assert all(callable(getattr(kind, verb)) for verb in VERBS)


def test_marks_on_a_processor_are_its_clock():
    device = open_device("cpu")
    start = device.event()
    sum(range(10_000))
    taken = device.nanoseconds(start, device.event())
    assert 0 < taken < 5e9
    with device.queue() as stream:
        assert stream is None
    assert device.place() == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA device here; use device cpu"):
        open_device("gpu")
    with pytest.raises(InputError, match=r"device must be one of cpu, gpu \(got 'tpu'\)"):
        open_device("tpu")


class FakeCuda:
    """torch.cuda that notes what it is asked; an event lies 2 ms behind the one before it."""

    def __init__(self):
        self.asked = []
        self.made = 0

    def Event(self, *, enable_timing):  # noqa: N802 - its name in torch
        assert enable_timing
        self.made += 1
        return FakeEvent(self, self.made)

    def Stream(self):  # noqa: N802
        return type("Stream", (), {"cuda_stream": 4711})()

    @contextlib.contextmanager
    def stream(self, stream):
        self.asked.append(f"into {stream.cuda_stream}")
        yield
        self.asked.append("out")


class FakeEvent:
    def __init__(self, cuda, number):
        self.cuda, self.number = cuda, number

    def record(self):
        self.cuda.asked.append(f"record {self.number}")

    def synchronize(self):
        self.cuda.asked.append(f"wait for {self.number}")

    def elapsed_time(self, end):
        return 2.0 * (end.number - self.number)


def test_marks_on_a_gpu_are_recorded_at_once_and_waited_for_when_read(monkeypatch):
    cuda = FakeCuda()
    for name in ("Event", "Stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = Gpu()
    with device.queue() as stream:
        start, end = device.event(), device.event()
        assert stream == 4711
        assert cuda.asked == ["into 4711", "record 1", "record 2"]
        assert device.nanoseconds(start, end) == 2_000_000
    assert cuda.asked[3:] == ["wait for 2", "out"]
    assert isinstance(Cpu(), Cpu)


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ({"sse4_2", "avx2"}, "avx2"),
        ({"avx2", "avx512bw"}, "avx512"),
        ({"avx2", "avx_vnni"}, "vnni"),
        ({"avx2", "avx512bw", "avx512_vnni", "amx_int8"}, "amx"),
        ({"asimd", "asimddp"}, "arm64_dotprod"),
        ({"asimd", "asimddp", "i8mm"}, "arm64_i8mm"),
        ({"asimd", "i8mm"}, "arm64_i8mm"),
        ({"sse2"}, None),
    ],
)
def test_the_best_instructions_for_bytes_are_named_and_agree_with_how_sums_are_made(monkeypatch, flags, isa):
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    assert device.cpu_isa() == isa
    assert set(device.ISA_FLAGS) == set(get_args(Isa))
    assert device.has_vnni() == (isa in EXACT_SUMS)


def test_a_report_keeps_every_flag_that_says_how_sums_are_made():
    assert set(FLAGS) >= EXACT_FLAGS
