"""The main job end to end: a device is provisioned, registered, diagnosed, and changed with a person's approval."""

from __future__ import annotations

from tests.support.clients import World, expect


async def test_a_diagnostic_reaches_the_device_and_its_result_comes_back(world: World) -> None:
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    command = await world.owner.submit(session["id"], "ping", parameters={"host": "127.0.0.1"})
    (claimed,) = await device.claim()
    assert claimed["id"] == command["id"]
    answer = expect(await device.report(claimed, output="4 packets"), 200)
    assert answer == {"success": True, "status": "succeeded", "duplicate": False, "late": False}
    assert (await world.owner.command(command))["result"]["output"] == "4 packets"


async def test_a_remediation_runs_only_after_another_person_approved_it(world: World) -> None:
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    command = await world.owner.submit(session["id"], "restart_dhcp", parameters={"interface": "eth0"})
    assert command["status"] == "pending_approval"
    assert await device.claim() == []
    decided = expect(await world.admin.decide(session["id"], commandId=command["id"], digest=command["digest"]), 200)
    assert decided["command"] == {"id": command["id"], "status": "approved"}
    (claimed,) = await device.claim()
    assert claimed["digest"] == command["digest"]
