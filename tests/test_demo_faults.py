"""The second act of the demo: another fault of the same platform."""

from pathlib import Path

import pytest

from schema.declaration import read_platform
from schema.messages.simulation import ResearchService
from starter.faults import BEGINS_AFTER_S, BEGINS_LATER_AFTER_S, Fault, platform_of

SECOND_ACT = [fault for fault in Fault if fault is not Fault.LIMIT]


def service_of(fault: Fault, home: Path) -> ResearchService:
    service = read_platform(platform_of(fault, home)).simulation.research_service
    assert service is not None
    return service


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_begins_after_a_healthy_while_and_there_is_one(fault: Fault, tmp_path: Path) -> None:
    service = service_of(fault, tmp_path)

    instants = [value for name, value in service if name.endswith("_after_s") and value is not None]
    assert instants in ([BEGINS_AFTER_S], [BEGINS_LATER_AFTER_S])


def test_what_can_be_tuned_gives_no_hint_of_the_fault(tmp_path: Path) -> None:
    platforms = [read_platform(platform_of(fault, tmp_path)) for fault in SECOND_ACT]

    assert all(platform.parameters == platforms[0].parameters for platform in platforms)
