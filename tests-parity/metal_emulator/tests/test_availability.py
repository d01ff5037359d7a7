"""Where the emulator cannot run, it says so in one sentence. These tests run everywhere."""

import pytest

import metal_emulator
from metal_emulator import Unavailable, toolchain
from metal_emulator.lint import lint
from metal_emulator.strict import check
from metal_emulator.to_ptx import to_ptx

SOURCE = "kernel void k(device float* x [[buffer(0)]]) { x[0] = 1.0f; }\n"


def on_linux(monkeypatch):
    monkeypatch.setattr(toolchain.sys, "platform", "linux")
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(toolchain, "processor_flags", lambda: {"avx2", "f16c", "fma", "sse2"})


def test_available(monkeypatch):
    on_linux(monkeypatch)
    assert metal_emulator.unavailable_reason() is None


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_machines(monkeypatch, system, machine):
    on_linux(monkeypatch)
    monkeypatch.setattr(toolchain.sys, "platform", system)
    monkeypatch.setattr(toolchain.platform, "machine", lambda: machine)
    sentence = f"The Metal emulator runs on x86-64 Linux only, and this is {system} on {machine}."
    assert metal_emulator.unavailable_reason() == sentence


def test_no_clang(monkeypatch):
    on_linux(monkeypatch)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    sentence = "The Metal emulator needs clang++-19 on the PATH (on Debian and Ubuntu: apt-get install clang-19)."
    assert metal_emulator.unavailable_reason() == sentence


def test_old_processor(monkeypatch):
    on_linux(monkeypatch)
    monkeypatch.setattr(toolchain, "processor_flags", lambda: {"sse2", "fma"})
    sentence = "The Metal emulator needs a processor with avx2, f16c, fma, and this one lacks avx2, f16c."
    assert metal_emulator.unavailable_reason() == sentence


@pytest.mark.parametrize("entry", [metal_emulator.compile_source, check, lint, to_ptx])
def test_every_entry_raises_that_sentence(monkeypatch, entry):
    monkeypatch.setattr(toolchain.sys, "platform", "darwin")
    with pytest.raises(
        Unavailable, match=r"^The Metal emulator runs on x86-64 Linux only, and this is darwin on .*\.$"
    ):
        entry(SOURCE)
