"""What operators do from the command line: customers and members (contract section 7)."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from ..domain import views
from ..domain.clock import rfc3339
from ..domain.errors import Conflict, NotFound
from ..domain.values import Role
from ..storage import queries
from ..storage.postgres import Database
from ..storage.rows import Row, device_of

_SQL = queries.load("customers")
_DEVICES = queries.load("devices")


class CustomerExists(Conflict):
    """A customer of this id is there already."""

    code = "CUSTOMER_EXISTS"
    default_message = "A customer of this id exists already."


class MemberElsewhere(Conflict):
    """The user belongs to another customer."""

    code = "MEMBER_ELSEWHERE"
    default_message = "This user is a member of another customer; remove it there first."


class Operators:
    """Customers and their members. Everything returns the JSON that `--json` prints."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_customer(
        self, name: str, customer_id: UUID | None = None, *, second_approver: bool = False
    ) -> dict[str, Any]:
        """Make a customer. Raises `CustomerExists`, `Unavailable`."""
        row = await self._database.fetchrow(_SQL["insert_customer"], customer_id or uuid4(), name, second_approver)
        if row is None:
            raise CustomerExists
        return {"customer": _customer(row)}

    async def list_customers(self) -> dict[str, Any]:
        """All customers, in the order of their making."""
        return {"customers": [_customer(row) for row in await self._database.fetch(_SQL["list_customers"])]}

    async def add_member(self, customer_id: UUID, user_id: UUID, role: Role) -> dict[str, Any]:
        """Make a user a member, or give a member another role. Raises `NotFound`, `MemberElsewhere`."""
        await self._require_customer(customer_id)
        row = await self._database.fetchrow(_SQL["add_member"], user_id, customer_id, role.value)
        if row is None:
            raise MemberElsewhere
        return {"member": _member(row)}

    async def remove_member(self, customer_id: UUID, user_id: UUID) -> dict[str, Any]:
        """Take a user's membership away. Raises `NotFound`."""
        row = await self._database.fetchrow(_SQL["remove_member"], user_id, customer_id)
        if row is None:
            raise NotFound("This user is no member of this customer.")
        return {"removed": _member(row)}

    async def list_members(self, customer_id: UUID) -> dict[str, Any]:
        """The members of a customer. Raises `NotFound`."""
        await self._require_customer(customer_id)
        rows = await self._database.fetch(_SQL["list_members"], customer_id)
        return {"members": [_member(row) for row in rows]}

    async def list_devices(self, customer_id: UUID) -> dict[str, Any]:
        """The devices of a customer. Raises `NotFound`."""
        await self._require_customer(customer_id)
        rows = await self._database.fetch(_DEVICES["list_devices_for_operator"], customer_id)
        return {"devices": [views.device_view(device_of(row)) for row in rows]}

    async def _require_customer(self, customer_id: UUID) -> None:
        if await self._database.fetchrow(_SQL["read_customer"], customer_id) is None:
            raise NotFound("There is no such customer.")


def _customer(row: Row) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "name": row["name"],
        "requireSecondApprover": row["require_second_approver"],
        "createdAt": rfc3339(row["created_at"]),
    }


def _member(row: Row) -> dict[str, Any]:
    return {
        "userId": str(row["user_id"]),
        "customerId": str(row["customer_id"]),
        "role": row["role"],
        "createdAt": rfc3339(row["created_at"]),
    }
