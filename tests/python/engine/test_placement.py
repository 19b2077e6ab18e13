"""Who gets what of a host: cores, GPUs and memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.engine.machine import gpu_names
from minisgl.engine.placement import Accountant, Gpu, Machine, NoRoom, Share, divide_cores
from minisgl.engine.site import LocalSite
from minisgl.ipc.messages import EngineOptions


@pytest.mark.parametrize(
    ("cores", "count", "parts"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([7, 2, 5], 2, [[7], [2]]),  # equally long
        ([4], 2, [[], []]),  # too few: none in particular
        ([0, 1, 2, 3], 1, [[0, 1, 2, 3]]),
    ],
)
def test_cores_are_divided_into_disjoint_runs(
    cores: list[int], count: int, parts: list[list[int]]
) -> None:
    assert divide_cores(cores, count) == parts


@pytest.mark.parametrize(
    ("share", "count", "parts"),
    [
        (Share(), 1, [[]]),  # alone on the host
        (Share(), 2, [[0, 1], [2, 3]]),
        (Share(cores=(2, 3), sharers=2), 1, [[2, 3]]),
        (Share(cores=(2, 3), sharers=2), 2, [[2], [3]]),
        (Share(sharers=3), 2, [[], []]),  # there were too few for three
    ],
)
def test_ranks_have_the_cores_of_their_replica(
    share: Share, count: int, parts: list[list[int]]
) -> None:
    assert share.divide(count, [0, 1, 2, 3]) == parts


def test_replicas_on_a_processor_have_runs_of_neighbours() -> None:
    machine = Machine((0, 4, 1, 5, 2, 6, 3, 7))  # 0 and 4 are one physical core
    accountant = Accountant(machine, ranks=1, replicas=2)
    first, second = accountant.take(), accountant.take()
    assert (first.cores, second.cores) == ((0, 4, 1, 5), (2, 6, 3, 7))
    assert (first.sharers, str(second)) == (2, "CPU, cores 2-3,6-7")
    with pytest.raises(NoRoom, match="all 8 cores of this host belong to replicas"):
        accountant.take()
    accountant.give_back(first)
    assert accountant.take() == first


def test_threads_that_were_asked_for_leave_cores_for_more_replicas() -> None:
    accountant = Accountant(Machine(tuple(range(8))), ranks=2, replicas=1, threads=1)
    assert [accountant.take().cores for _ in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    with pytest.raises(NoRoom):
        accountant.take()


def test_where_cores_are_too_few_nobody_has_any_in_particular() -> None:
    accountant = Accountant(Machine((0, 1)), ranks=1, replicas=3)
    assert [accountant.take() for _ in range(3)] == [Share((), (), 3)] * 3
    with pytest.raises(NoRoom):
        accountant.take()


def islands(size: int, count: int) -> Machine:
    """GPUs in `count` islands of `size`, joined by NVLink within each; the numbers of an island
    aren't neighbours. All are near all of 16 cores.
    """
    members = [frozenset(range(first, size * count, count)) for first in range(count)]
    gpus = [
        Gpu(f"GPU-{number}", tuple(range(16)), members[number % count] - {number})
        for number in range(size * count)
    ]
    return Machine(tuple(range(16)), tuple(gpus))


def test_a_replica_gets_gpus_that_nvlink_joins() -> None:
    accountant = Accountant(islands(2, 2), ranks=2, replicas=2)
    first, second = accountant.take(), accountant.take()
    assert (first.gpus, second.gpus) == (("GPU-0", "GPU-2"), ("GPU-1", "GPU-3"))
    assert first.cores == (0, 1, 2, 3, 8, 9, 10, 11)
    assert str(second) == "GPU GPU-1, GPU-3, cores 4-7,12-15"


def test_islands_are_not_broken_without_need() -> None:
    accountant = Accountant(islands(3, 2), ranks=1, replicas=2)
    accountant.take()  # of one island, of which two are left
    assert accountant.take().gpus == ("GPU-2",)


def test_what_is_missing_is_said() -> None:
    accountant = Accountant(islands(2, 1), ranks=2, replicas=2)
    accountant.take()
    with pytest.raises(NoRoom, match="of 2 ranks needs 2 GPUs, and 0 of the 2 of this host are"):
        accountant.take()


@given(
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(1, 24),
    st.lists(st.integers(-1, 5), max_size=30),
)
def test_no_core_and_no_gpu_is_given_twice(
    ranks: int, num_gpus: int, num_cores: int, actions: list[int]
) -> None:
    cores = tuple(range(num_cores))
    gpus = tuple(Gpu(str(number), cores, frozenset()) for number in range(num_gpus))
    accountant = Accountant(Machine(cores, gpus), ranks, replicas=2)
    shares: list[Share] = []
    for action in actions:
        if action < 0:
            try:
                shares.append(accountant.take())
            except NoRoom:
                assert shares or num_gpus
        elif action < len(shares):
            accountant.give_back(shares.pop(action))
        taken_cores = [core for share in shares for core in share.cores]
        taken_gpus = [gpu for share in shares for gpu in share.gpus]
        assert len(taken_cores) == len(set(taken_cores))
        assert len(taken_gpus) == len(set(taken_gpus))
        assert all(len(share.gpus) == (ranks if num_gpus else 0) for share in shares)


def test_replicas_of_a_host_share_its_memory_and_gpus_have_their_own() -> None:
    options = EngineOptions(model_path="m", memory_fraction=0.9, kv_host_bytes=3001)
    on_cpu = LocalSite(Accountant(Machine((0, 1)), 1, 3), ["rank"]).take(0)
    assert on_cpu.fit(options).memory_fraction == pytest.approx(0.3)
    on_gpu = LocalSite(Accountant(islands(1, 2), 1, 2), ["rank"]).take(0)
    assert on_gpu.fit(options).memory_fraction == 0.9
    assert on_gpu.fit(options).kv_host_bytes == 1501  # the host's is everybody's
    least = EngineOptions(model_path="m", kv_host_bytes=1)
    assert on_gpu.fit(least).kv_host_bytes == 1  # which a rank refuses as too little


def test_gpus_are_named_as_this_process_sees_them() -> None:
    assert gpu_names(2, {}) == ["0", "1"]
    assert gpu_names(2, {"CUDA_VISIBLE_DEVICES": "5, GPU-abc,7"}) == ["5", "GPU-abc"]
