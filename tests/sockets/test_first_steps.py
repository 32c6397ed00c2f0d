"""The sockets end to end: a command is pushed to a device, and a portal watches it."""

from __future__ import annotations

from tests.support.clients import World
from tests.support.sockets import device_socket, portal_socket


async def test_a_command_is_pushed_to_the_device_and_a_portal_sees_every_state(world: World) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as portal, device_socket(device) as socket:
        joined = await portal.ask("join_rooms", answer="rooms_joined")
        assert joined["rooms"] == ["customer"]
        session = await world.owner.open_session(device.device_id)
        command = await world.owner.submit(session["id"])
        pushed = (await socket.expect("command"))["payload"]
        assert pushed["id"] == command["id"]
        result = {
            "commandId": pushed["id"],
            "claimToken": pushed["claimToken"],
            "status": "success",
            "executedAt": "2026-01-02T03:04:05Z",
            "duration": 3,
        }
        answer = await socket.ask("command_result", result, answer="ack")
        assert answer["status"] == "succeeded"
        seen = []
        while "succeeded" not in seen:
            seen.append((await portal.expect("command_update"))["payload"]["command"]["status"])
        assert seen == ["queued", "claimed", "succeeded"]
