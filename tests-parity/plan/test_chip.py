"""The chip's name and GPU cores, from what macOS and Linux print."""

from __future__ import annotations

import sys

from natten_mps._metal.plan import chip

REGISTRY = """+-o AGXAcceleratorG16X  <class AGXAcceleratorG16X, id 0x100000541, registered>
    {
      "GPUConfigurationVariable" = {"num_cores"=40,"num_mgpus"=1}
      "gpu-core-count" = 40
    }"""


def asked(*command: str) -> str:
    return {"sysctl": "Apple M4 Max", "ioreg": REGISTRY, "sw_vers": "26.3"}[command[0]]


def test_what_macos_says() -> None:
    assert (chip.mac_chip(asked), chip.mac_gpu_cores(asked)) == ("Apple M4 Max", 40)
    assert (chip.mac_chip(lambda *_: ""), chip.mac_gpu_cores(lambda *_: "")) == ("", None)
    assert (chip.mac_release(asked), chip.mac_release(lambda *_: "")) == ("26.3", "")


def test_what_linux_says() -> None:
    assert chip.linux_chip("processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nprocessor\t: 1\n") == "Some CPU @ 2.0GHz"
    assert chip.linux_chip("processor\t: 0\nCPU implementer\t: 0x41\n") == ""


def test_programs_that_are_missing_or_fail() -> None:
    assert chip.ask("there-is-no-such-program") == ""
    assert chip.ask(sys.executable, "-c", "print('half'); raise SystemExit(1)") == ""
    assert chip.ask(sys.executable, "-c", "print(' whole ')") == "whole"


def test_this_machine() -> None:
    assert chip.chip_name()
    assert (chip.gpu_cores() is None) or sys.platform == "darwin"
    assert bool(chip.macos_release()) == (sys.platform == "darwin")
