"""What a report counts: bytes, elements, barriers, products, events."""

import numpy as np
import pytest

import metal_emulator
from metal_emulator import Buffer

from .kernels import BARRIER, HEADER, library_of, run

BODIES = {
    "twice": f"s[i] = x[g]; {BARRIER} y[g] = s[63 - i] + x[g ^ 1]; {BARRIER} if (i == 0) y[g] = 7;",
    "partly": "if (i < 32) y[g] = x[g / 2];",
    "once": f"s[i] = x[g]; {BARRIER} y[g] = s[i];",
    "events": (
        "METAL_EMULATOR_COUNT(all); if (sg == 1) METAL_EMULATOR_COUNT(second); if (lane < 5) "
        "METAL_EMULATOR_COUNT(some); y[g] = x[g];"
    ),
}


@pytest.fixture(scope="module")
def library():
    return library_of(BODIES)


def test_bytes_and_barriers(library):
    _, report = run(library, "twice")
    assert report.bytes_read == {0: 2 * 512, 1: 0}
    assert report.bytes_written == {0: 0, 1: 512 + 2 * 4}
    assert (
        report.threadgroup_bytes == report.threadgroup_bytes_read // 2 == report.threadgroup_bytes_written // 2 == 256
    )
    assert report.barriers == 4
    assert report.threadgroups == 2


def test_elements_written_and_read(library):
    _, once = run(library, "once")
    assert once.written_once(1)
    assert once.read_once(0)
    assert once.never_written(0)
    _, twice = run(library, "twice")
    assert not twice.written_once(1)
    assert twice.write_counts[1].tolist() == [2 if g % 64 == 0 else 1 for g in range(128)]
    assert twice.read_counts[0].tolist() == [2] * 128
    _, partly = run(library, "partly")
    assert not partly.written_once(1)
    assert partly.write_counts[1].sum() == 64


def test_elements_of_every_size_are_counted():
    source = (
        HEADER
        + """
    kernel void copy(const device long* a [[buffer(0)]], device half* b [[buffer(1)]],
    device uchar* c [[buffer(2)]], uint g [[thread_position_in_grid]]) {
      b[g] = half(a[g]);
      if (g % 2 == 0) c[g] = uchar(a[g]);
    }"""
    )
    buffers = [np.arange(16).reshape(4, 4), Buffer(np.zeros(16, np.float16), initialised=False), np.zeros(16, np.uint8)]
    report = metal_emulator.compile_source(source).kernel("copy").launch(buffers, 16, 16)
    assert report.read_counts[0].shape == (4, 4)
    assert (report.read_counts[0] >= 1).all()
    assert report.written_once(1)
    assert report.write_counts[2].tolist() == [1, 0] * 8
    assert report.bytes_written == {0: 0, 1: 32, 2: 8}


def test_events(library):
    _, report = run(library, "events")
    assert report.thread_events("all") == 128
    assert report.simdgroup_events("all") == 4
    assert report.simdgroup_events("second") == 2
    assert report.thread_events("some") == 20
    assert report.simdgroup_events("never") == 0
    with pytest.raises(ValueError, match="event 'some': the lanes of a simdgroup counted differently"):
        report.simdgroup_events("some")


def test_unchecked_build_counts_work_but_not_memory():
    library = library_of(BODIES, checked=False)
    y, report = run(library, "once")
    np.testing.assert_array_equal(y, np.arange(128))
    assert report.barriers == 2
    assert report.bytes_read is None
    with pytest.raises(ValueError, match="checked=True"):
        report.written_once(1)
    assert run(library, "events")[1].simdgroup_events("all") == 4


def test_arrays_bound_in_place():
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    given = [Buffer(x, in_place=True), Buffer(y, in_place=True)]
    kernel = library_of(BODIES, checked=False).kernel("once")
    kernel.launch(given, threads=128, threadgroup=64)
    np.testing.assert_array_equal(y, x)
    with pytest.raises(ValueError, match=r"kernel once checks every access, and buffer\(0\) is bound in place"):
        library_of(BODIES).kernel("once").launch(given, threads=128, threadgroup=64)
