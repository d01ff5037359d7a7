"""Problems cut into shards: halos, messages and interiors against the windows, by brute force."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from random import Random
from typing import Any

import pytest

from natten_mps._metal.problem import shards
from natten_mps._metal.problem.checks import shards as checks
from natten_mps._metal.problem.ranges import key_range
from natten_mps._metal.problem.shards import Shards


def random_shards(random: Random) -> Shards:
    """Uneven shards of one or two axes of up to three."""
    rank = random.choice((1, 1, 2, 2, 3))
    cut = random.sample(range(rank), random.randint(1, min(2, rank)))
    shape = [random.randint(6, 30) if axis in cut else random.randint(2, 6) for axis in range(rank)]
    window: list[tuple[Any, ...]] = []
    for length in shape:
        d = random.randint(1, max(1, min(4, length // 2)))
        w = random.randint(1, length // d)
        window.append((w, random.randint(1, w), d, random.random() < 0.3))
    bounds = []
    for axis, length in enumerate(shape):
        inner = random.sample(range(1, length), random.randint(0, min(4, length - 1)) if axis in cut else 0)
        bounds.append((0, *sorted(inner), length))
    return Shards(tuple(bounds), tuple(cut), tuple(zip(*window, strict=True)))  # type: ignore[arg-type]


def members(box: shards.Box) -> set[tuple[int, ...]]:
    return set(product(*(range(*each) for each in box)))


@pytest.mark.parametrize("seed", range(150))
def test_halos_and_messages(seed: int) -> None:
    cut = random_shards(Random(seed))
    owner = {}
    for process in range(cut.count):
        assert cut.process_at(cut.coordinates(process)) == process
        for token in members(cut.own(process)):
            assert owner.setdefault(token, process) == process
    assert owner.keys() == members(tuple((0, length) for length in cut.full_shape))
    held = {process: members(cut.own(process)) for process in range(cut.count)}
    for message in cut.messages():
        box = members(message.box)
        assert box <= members(cut.own(message.source)) and message.source != message.target
        assert not box & held[message.target], "a key came twice"
        held[message.target] |= box
    for process in range(cut.count):
        own = cut.own(process)
        needed = key_range(cut.full_shape, *cut.window, own)
        reach = tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(own, needed, strict=True))
        assert cut.reach(process) == reach and held[process] == members(reach)


@pytest.mark.parametrize("seed", range(150))
def test_interior(seed: int) -> None:
    """Between the last query that needs a key before the shard, and the first that needs one after it."""
    cut = random_shards(Random(1000 + seed))
    for process in range(cut.count):
        expected = []
        for axis, (low, high) in enumerate(cut.own(process)):
            window = [each[axis] for each in cut.window]
            keys = [key_range(cut.full_shape[axis], *window, (q, q + 1))[0] for q in range(low, high)]
            before = [low + at for at, (first, _) in enumerate(keys) if first < low]
            after = [low + at for at, (_, end) in enumerate(keys) if end > high]
            expected.append((max(before, default=low - 1) + 1, min(after, default=high)))
        found = tuple(expected) if all(low < high for low, high in expected) else None
        assert cut.interior(process) == found


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("back", [False, True])
def test_rounds_of_a_ring_deliver_every_message(seed: int, back: bool) -> None:
    cut = random_shards(Random(2000 + seed))
    messages, count = cut.messages(), cut.count
    ends = [(m.target, m.source) if back else (m.source, m.target) for m in messages]
    at, sent = dict(enumerate(source for source, _ in ends)), Counter[int]()
    for each in shards.rounds(count, ends):
        for process, indices in each.moving.items():
            for index in indices:
                assert at[index] == process, "a message is sent from where it is not"
        for process, indices in each.moving.items():
            for index in indices:
                at[index] = (process + each.step) % count
                sent[process] += shards.tokens(messages[index].box)
    assert at == {index: target for index, (_, target) in enumerate(ends)}
    assert all(abs(shards.hops(count, *each)) <= count // 2 for each in ends)
    for process in range(count):
        assert shards.bytes_sent_in_ring(cut, process, 3, back) == 3 * sent[process]


@pytest.mark.parametrize("seed", range(50))
def test_closed_form_of_bytes(seed: int) -> None:
    """The bytes that all processes send are those of all messages, forward and backward."""
    cut = random_shards(Random(3000 + seed))
    there = sum(shards.bytes_sent(cut, process, 8) for process in range(cut.count))
    back = sum(shards.bytes_returned(cut, process, 8) for process in range(cut.count))
    assert there == back == 8 * sum(shards.tokens(each.box) for each in cut.messages())


def test_a_shard_of_a_long_axis_sends_a_halo_to_each_side() -> None:
    cut = Shards(((0, 100, 200, 300),), (0,), ((7,), (1,), (1,), (False,)))
    assert [(m.source, m.target, m.box) for m in cut.messages()] == [
        (1, 0, ((100, 103),)),
        (0, 1, ((97, 100),)),
        (2, 1, ((200, 203),)),
        (1, 2, ((197, 200),)),
    ]
    assert cut.interior(1) == ((103, 197),)
    assert math.isclose(shards.bytes_sent(cut, 1, 512), 6 * 512)


def test_the_first_and_the_last_shard_of_an_axis_that_wraps_are_neighbours() -> None:
    cut = Shards(((0, 3, 8, 12),), (0,), ((5,), (1,), (1,), (False,)), (0,))
    assert cut.reach(0) == ((-2, 5),)
    to_first = [(m.source, m.box, m.at_source) for m in cut.messages() if m.target == 0]
    assert to_first == [(2, ((-2, 0),), ((10, 12),)), (1, ((3, 5),), ((3, 5),))]
    assert cut.interior(1) == ((5, 6),) and cut.interior(0) is None
    assert cut.on_longer_axes(((-2, 5),)) == ((22,), (3,))


def test_a_shard_that_is_its_own_neighbour_sends_itself_nothing() -> None:
    cut = Shards(((0, 6),), (0,), ((5,), (1,), (1,), (False,)), (0,))
    assert cut.messages() == () and cut.reach(0) == ((-2, 8),)
    assert [(each.box, each.at_source) for each in cut.copies(0)] == [(((-2, 0),), ((4, 6),)), (((6, 8),), ((0, 2),))]
    assert shards.bytes_sent(cut, 0, 1) == shards.bytes_returned(cut, 0, 1) == 0


LENGTHS = [((5,),) * 3, ((4,),) * 3]


@pytest.mark.parametrize(
    ("axes", "grid", "lengths", "message"),
    [
        (
            (0,),
            (2,),
            [((5,),) * 3, ((4,), (3,), (4,))],
            (
                "na1d: query, key and value of a process must be shards of the same tokens; process 1 "
                "has 4, 3 and 4 tokens along axis 0"
            ),
        ),
        ((0,), (2,), [((5,),) * 3, ((0,),) * 3], "na1d: every process must hold tokens; process 1 has 0 along axis 0"),
        (
            (1, 0),
            (2, 2),
            [((5, 3),) * 3, ((5, 4),) * 3, ((6, 3),) * 3, ((7, 4),) * 3],
            (
                "na1d: processes at the same coordinate along axis 1 must hold equally many tokens; process 2 "
                "has 6, process 3 has 7"
            ),
        ),
    ],
)
def test_shards_that_do_not_fit(axes: Any, grid: Any, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        checks.bounds_of("na1d", axes, grid, lengths)
    assert str(raised.value) == message


def test_bounds_of_uneven_shards() -> None:
    assert checks.bounds_of("na1d", (0,), (2,), LENGTHS) == [(0, 5, 9)]
    four = [((5, 3),) * 3, ((5, 4),) * 3, ((6, 3),) * 3, ((6, 4),) * 3]
    assert checks.bounds_of("na2d", (1, 0), (2, 2), four) == [(0, 5, 11), (0, 3, 7)]
