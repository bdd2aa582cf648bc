"""What is made of the nodes' answers."""

from dataclasses import replace

import pytest

from bigtrain.launch.checkup_answer import Answer, Network
from bigtrain.launch.checkup_node import gpu_health
from bigtrain.launch.checkup_verdicts import Report, Row, judge

GB = 10**9


def answers(count: int, **same: object) -> dict[str, Answer]:
    """Of healthy nodes n1, n2, …"""
    made = {}
    for rank in range(count):
        network = Network(met=count - 1, best=1.0 * GB, all_reduce=0.5 * GB, clock=1000.0)
        answer = Answer(f"n{rank + 1}", rank, nodes=count, environment={"bigtrain": "0.1.0", "torch": "2.9"})
        healthy = {"sees_marker": True, "written": 1.0 * GB, "free": 100 * GB, "network": network}
        made[answer.name] = replace(answer, **{**healthy, **same})
    return made


def report(given: dict[str, Answer], silent: dict[str, str] | None = None, **other: object) -> Report:
    nodes = sorted({*given, *(silent or {})})
    options = {"checkpoint_bytes": 10 * GB, "checkpoints": 3, "wants_gpus": False, "seconds": 5.0, **other}
    return judge(nodes, given, silent or {}, **options)  # type: ignore[arg-type]


def kinds(found: Report, what: str) -> list[str]:
    return [verdict.kind for verdict in found.verdicts if verdict.what == what]


def test_healthy_nodes_are_one_row_for_each_thing() -> None:
    found = report(answers(4))
    assert found.ok
    assert (found.bad_nodes, found.slow_nodes, found.advice()) == ([], [], [])
    assert {row.kind for row in found.rows()} == {"ok"}
    assert all(row.nodes == ["n1", "n2", "n3", "n4"] for row in found.rows())
    assert found.text() == "4 nodes checked in 5 s: all fit"


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_slow_node_is_named_and_does_not_hinder(count: int) -> None:
    """With three nodes two of the three pairs are slow: it is the best pair of each node that counts."""
    given = answers(count)
    given["n2"].network.best = 0.1 * GB
    given["n3"].written = 0.1 * GB
    found = report(given)
    assert found.ok
    assert found.slow_nodes == ["n2", "n3"]
    assert "n2: network: 100 MB/s with its best partner, others 1.0 GB/s in the median" in found.text()
    assert "n3: run's folder: writes 100 MB/s to it, others 1.0 GB/s in the median" in found.text()
    assert found.advice() == ["to start without the slow n2, n3: sbatch --exclude=n2,n3, or launch.exclude=n2,n3"]


def fail(given: dict[str, Answer], *pairs: tuple[int, int]) -> None:
    for one, other in pairs:
        given[f"n{one}"].network.failed[other - 1] = "timed out"
        given[f"n{other}"].network.failed[one - 1] = "timed out"


@pytest.mark.parametrize(
    ("count", "pairs", "guilty"),
    [
        (4, [(1, 3), (2, 3), (3, 4)], ["n3"]),
        (4, [(1, 2)], ["n2"]),  # one must go: not the one that the job's batch script runs on
        (2, [(1, 2)], ["n2"]),
        (6, [(1, 2), (2, 3), (2, 5), (5, 6), (4, 5)], ["n2", "n5"]),
    ],
)
def test_the_fewest_nodes_without_which_all_can_talk(
    count: int, pairs: list[tuple[int, int]], guilty: list[str]
) -> None:
    given = answers(count)
    fail(given, *pairs)
    assert report(given).bad_nodes == guilty


def test_a_network_on_which_nobody_talks_is_no_fault_of_nodes() -> None:
    given = answers(4)
    fail(given, (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
    found = report(given)
    assert not found.ok
    assert found.bad_nodes == []
    assert found.advice() == ["no fault of single nodes, and to be mended for all: network"]


def test_a_first_node_that_nobody_reaches() -> None:
    given = answers(4)
    for name in ("n2", "n3", "n4"):
        given[name].network = Network(unreachable="n1:15000: connection refused")
    assert report(given).bad_nodes == ["n1"]
    assert "no other node reaches it" in report(given).text()
    hung = answers(2)
    hung["n1"] = replace(hung["n1"], network=Network(), doing="opening the datasets")
    hung["n2"].network = Network(unreachable="n1:15000: connection refused")
    assert report(hung).bad_nodes == ["n1"]
    one = answers(4)
    one["n4"].network = Network(unreachable="n1:15000: connection refused")
    assert report(one).bad_nodes == ["n4"]


def test_of_versions_those_that_most_nodes_have_are_right() -> None:
    given = answers(3)
    given["n1"].environment["torch"] = "2.8"
    found = report(given)
    assert found.bad_nodes == ["n1"]
    assert "n1: Python environment: torch 2.8, elsewhere 2.9" in found.text()
    two = answers(2)
    two["n2"].environment["torch"] = "2.8"
    assert report(two).bad_nodes == ["n2"]
    assert report(two).is_users, "they will have the same at the next start"
    hot = report(answers(1, gpu_faults=["7 uncorrected errors"]))
    assert (hot.ok, hot.is_users) == (False, False)


def test_silent_nodes() -> None:
    given = answers(3)
    del given["n2"]
    found = report(given, {"n2": "none within 60 s"})
    assert found.bad_nodes == ["n2"]
    nobody = judge(["n1", "n2"], {}, {"n2": "srun: error: n2: unreachable"}, **OTHER)
    assert nobody.bad_nodes == ["n2"]
    assert kinds(nobody, "answer") == ["note", "bad"]
    all_of_them = judge(["n1", "n2"], {}, {"n1": "no python", "n2": "no python"}, **OTHER)
    assert not all_of_them.ok
    assert all_of_them.bad_nodes == []


OTHER = {"checkpoint_bytes": 1, "checkpoints": 1, "wants_gpus": False, "seconds": 1.0}


def test_what_others_wait_for_is_not_their_fault() -> None:
    given = answers(3)
    del given["n3"]
    given["n1"].doing = "waiting for the others to end round 1 of 3"
    given["n2"].network = Network(lost="wait timeout")
    assert report(given, {"n3": "none within 60 s"}).bad_nodes == ["n3"]


def test_gpus() -> None:
    gpus = {"slurm_gpus": 8, "torch_gpus": 8, "cuda_build": True}
    given = answers(3, **gpus)
    given["n2"].torch_gpus = 7
    assert report(given).bad_nodes == ["n2"]
    assert "n2: GPUs: Slurm gives 8, torch sees 7" in report(given).text()
    cpu = answers(3, slurm_gpus=8)
    assert report(cpu).ok
    assert kinds(report(cpu), "GPUs") == ["note"] * 3
    wanted = report(cpu, wants_gpus=True)
    assert not wanted.ok
    assert wanted.bad_nodes == []
    sick = answers(3, **gpus)
    sick["n3"].gpu_faults = ["GPU 2: 1 uncorrected memory errors"]
    sick["n1"].gpu_throttled = ["GPU 0: hw_slowdown"]
    assert (report(sick).bad_nodes, report(sick).slow_nodes) == (["n3"], ["n1"])
    alone = answers(1, **gpus)
    alone["n1"].gpu_faults = ["GPU 2: 1 uncorrected memory errors"]
    assert report(alone).bad_nodes == ["n1"]


def test_clocks_apart_and_little_room_are_told_and_do_not_hinder() -> None:
    given = answers(3, free=25 * GB)
    given["n3"].network.clock -= 90
    found = report(given)
    assert found.ok
    assert "n3: clock: 90.0 s behind the others'" in found.text()
    assert "all 3 nodes: disk space: 25.0 GB free, 30.0 GB for 3 checkpoints more" in found.text()
    full = report(answers(3, free=5 * GB))
    assert not full.ok
    assert full.bad_nodes == []


def test_folders_and_data() -> None:
    given = answers(4)
    given["n2"].sees_marker = False
    given["n3"].data_errors = ["data.train: x: no dataset there"]
    given["n4"].folder_error = "cannot be written: Permission denied"
    found = report(given)
    assert found.bad_nodes == ["n2", "n3", "n4"]
    assert Row("data", ["n3"], "bad", "data.train: x: no dataset there") in found.rows()
    apart = answers(4)
    for name in ("n2", "n3", "n4"):
        apart[name].sees_marker = False
    assert not report(apart).ok
    assert report(apart).bad_nodes == []


def test_slurm_and_the_job_count_the_same_nodes() -> None:
    given = answers(3)
    given["n2"].nodes = 2
    assert report(given).bad_nodes == ["n2"]
    assert "n2: Slurm: 2 nodes, by the variables of its step; the job has 3" in report(given).text()


SMI = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>550.1</driver_version>
<gpu id="00000000:01:00.0">
  <clocks_event_reasons><clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown></clocks_event_reasons>
  <ecc_errors><volatile><dram_correctable>5</dram_correctable><dram_uncorrectable>0</dram_uncorrectable></volatile>
    <aggregate><dram_uncorrectable>7</dram_uncorrectable></aggregate></ecc_errors>
  <remapped_rows><remapped_row_pending>No</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
</gpu>
<gpu id="00000000:02:00.0">
  <clocks_throttle_reasons><clocks_throttle_reason_hw_thermal_slowdown>Active</clocks_throttle_reason_hw_thermal_slowdown>
  </clocks_throttle_reasons>
  <ecc_errors><volatile><sram_uncorrectable>1</sram_uncorrectable><dram_uncorrectable>2</dram_uncorrectable></volatile></ecc_errors>
  <remapped_rows><remapped_row_pending>Yes</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
</gpu>
<gpu id="00000000:03:00.0">
  <ecc_errors><volatile><dram_uncorrectable>N/A</dram_uncorrectable></volatile></ecc_errors>
  <remapped_rows>N/A</remapped_rows>
</gpu>
</nvidia_smi_log>
"""


def test_what_the_driver_says_of_gpus() -> None:
    assert gpu_health(SMI) == (
        "550.1",
        ["GPU 1: 3 uncorrected memory errors", "GPU 1: remapping of memory rows waits for a reset"],
        ["GPU 1: hw_thermal_slowdown"],
    )
