"""Makes what a server keeps of a random password, so that a login with it costs the client almost no time.

The 4,096 rounds of PostgreSQL's default slow down guessing, and a tenth of a test's CPU time; a password of 144 random
bits cannot be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final

_ROUNDS: Final = 1
_SALT_BYTES: Final = 16


def make_verifier(password: str) -> str:
    """Return a SCRAM-SHA-256 secret, which `ALTER ROLE ... PASSWORD` takes in place of a password.

    Args:
        password: A random password of ASCII characters, which no one has to remember.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${_ROUNDS}:{salt_text}${stored_text}:{server_text}"
