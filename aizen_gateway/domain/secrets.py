"""Device secrets, session tokens, claim tokens and activation codes: how they are made, hashed and compared."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from .values import DEVICE_ID

# Crockford's base32 has no I, L, O and U; a person's typing of those is read as the digit it looks like.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_ALIKES = str.maketrans({"I": "1", "L": "1", "O": "0"})
_CODE_LENGTH = 10


def new_secret() -> str:
    """A device secret: 256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def new_session_token(device_id: str) -> str:
    """A session token that names its device, so that one script finds and checks it: `<deviceId>.<256 random bits>`."""
    return f"{device_id}.{secrets.token_urlsafe(32)}"


def device_of_token(token: str) -> str | None:
    """The device id that a session token names, or None when it cannot be a token of ours."""
    device_id, dot, random = token.partition(".")
    if not dot or not (40 <= len(random) <= 64) or not DEVICE_ID.match(device_id):
        return None
    return device_id


def new_claim_token() -> str:
    """The seed of the claim tokens of one claim: 192 random bits."""
    return secrets.token_urlsafe(24)


def hash_text(text: str) -> bytes:
    """SHA-256, for secrets that are random enough that nothing slower is needed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def hash_hex(text: str) -> str:
    """As `hash_text`, in hexadecimal."""
    return hash_text(text).hex()


def matches(text: str, digest: bytes | None) -> bool:
    """Whether `text` hashes to `digest`, in constant time; a missing digest costs the same and never matches."""
    return hmac.compare_digest(hash_text(text), digest or b"\0" * 32) and digest is not None


def new_activation_code() -> str:
    """`XXXXX-XXXXX`: 50 random bits in Crockford's base32 (contract section 3)."""
    code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))
    return f"{code[:5]}-{code[5:]}"


def normal_activation_code(text: str) -> str:
    """The form that is hashed: upper case, without hyphens and blanks, look-alikes read as digits."""
    return text.upper().replace("-", "").replace(" ", "").translate(_LOOK_ALIKES)
