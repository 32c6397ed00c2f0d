"""Who may do what (contract sections 2 and 4): machines propose, people approve, viewers read."""

from __future__ import annotations

from .errors import Forbidden, SelfApproval
from .values import Actor, Principal, Role


def require_write(principal: Principal) -> None:
    """Raise `Forbidden` for a viewer."""
    if principal.role is Role.VIEWER:
        raise Forbidden("A viewer may only read.")


def require_administrator(principal: Principal) -> None:
    """Raise `Forbidden` unless the caller is an owner or an admin (or a service, which may do what an admin may)."""
    if principal.role not in (Role.OWNER, Role.ADMIN):
        raise Forbidden("Only owners and admins may read this.")


def require_person(principal: Principal) -> None:
    """Raise `Forbidden` for a service: only a person approves, rejects or decides."""
    require_write(principal)
    if principal.is_service:
        raise Forbidden("Only a person may decide.")


def require_second_person(principal: Principal, proposer: Actor, *, second_approver: bool) -> None:
    """Raise `SelfApproval` when the customer wants a second approver and `principal` proposed it."""
    if second_approver and proposer == principal.actor:
        raise SelfApproval
