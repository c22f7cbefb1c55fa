"""The causes of the peers' failures, found by hand: reproductions, their output, and the clauses they explain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPRODUCTIONS: Final = Path(__file__).parent / "reproductions"
SQLITE: Final = "openai-agents SQLiteSession"
SQLALCHEMY: Final = "openai-agents SQLAlchemySession"
LANGCHAIN: Final = "langchain-postgres PostgresChatMessageHistory"
ADK: Final = "google-adk DatabaseSessionService"


@dataclass(frozen=True, slots=True)
class PeerFinding:
    """One fact. The reproduction's docstring is its sentence."""

    backend: str
    reproduction: str
    clauses: tuple[str, ...]
    printed: str


TEXTS: Final = ("FM-TXT-008", "FM-TXT-009", "FM-TXT-010", "FM-TXT-011")
STORED: Final = (
    r"[{'role': 'user', 'content': '\x00'}, {'role': 'user', 'content': '\ud800'}, {'role': '', 'content': 7}]"
)
LONG: Final = "67108865"

FINDINGS: Final = (
    PeerFinding(SQLITE, "openai_sqlite_text.py", TEXTS, STORED),
    PeerFinding(SQLITE, "openai_sqlite_long.py", ("FM-LIM-004",), LONG),
    PeerFinding(SQLITE, "openai_sqlite_limit.py", ("FM-ORD-005",), "-1 ['1', '2']\nTrue ['2']"),
    PeerFinding(SQLITE, "openai_sqlite_forgotten.py", ("FM-LIF-008",), "[]"),
    PeerFinding(SQLALCHEMY, "openai_sqlalchemy_text.py", TEXTS, STORED),
    PeerFinding(SQLALCHEMY, "openai_sqlalchemy_long.py", ("FM-LIM-004",), LONG),
    PeerFinding(SQLALCHEMY, "openai_sqlalchemy_limit.py", ("FM-ORD-005",), "1\nDBAPIError LIMIT must not be negative"),
    PeerFinding(
        SQLALCHEMY,
        "openai_sqlalchemy_loops.py",
        ("FM-LIF-009", "FM-LIF-010"),
        "RuntimeError: attached to a different loop",
    ),
    PeerFinding(
        LANGCHAIN,
        "langchain_text.py",
        TEXTS,
        "UntranslatableCharacter\nInvalidTextRepresentation\n['stored']\nValidationError False",
    ),
    PeerFinding(LANGCHAIN, "langchain_floats.py", ("FM-MET-003",), "{'score': 10000000000000000000000}"),
    PeerFinding(LANGCHAIN, "langchain_long.py", ("FM-LIM-004",), LONG),
    PeerFinding(LANGCHAIN, "langchain_race.py", ("FM-ORD-010", "FM-LIF-007"), "['UniqueViolation']"),
    PeerFinding(ADK, "adk_text.py", (*TEXTS, "FM-TXT-012"), "\n".join(["DBAPIError"] * 5 + ["[('', 'stored')]"])),
    PeerFinding(
        ADK,
        "adk_metadata.py",
        ("FM-MET-003", "FM-MET-006", "FM-LIM-005"),
        "{'score': 10000000000000000000000}\nPydanticSerializationError\n17825792",
    ),
    PeerFinding(ADK, "adk_limit.py", ("FM-ORD-005",), "True 1\n-1 ValidationError"),
    PeerFinding(
        ADK,
        "adk_stale.py",
        (
            "FM-ORD-010",
            "FM-CON-003",
            "FM-CON-004",
            "FM-CAN-009",
            "FM-CAN-011",
            "FM-LIF-005",
            "FM-LIF-006",
            "FM-DUR-005",
        ),
        "3 of 4",
    ),
    PeerFinding(ADK, "adk_race.py", ("FM-CON-002", "FM-LIF-007", "FM-DUR-004", "FM-DUR-006"), "['IntegrityError']"),
    PeerFinding(ADK, "adk_closed.py", ("FM-LIF-002", "FM-LIF-003", "FM-LIF-004"), "['after']"),
    PeerFinding(ADK, "adk_loops.py", ("FM-LIF-009", "FM-LIF-010"), "open RuntimeError\nclosed RuntimeError"),
)
