"""Describes the result of `flux-memory check` as one JSON object for probes and monitoring."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING, Any

from flux_memory import __version__
from flux_memory.cli.failure import causes
from flux_memory.errors import FluxMemoryError
from flux_memory.masking import mask_dsn, mask_dsns

if TYPE_CHECKING:
    from flux_memory.health import CheckReport
    from flux_memory.settings import Settings


def describe_success(report: CheckReport) -> dict[str, Any]:
    """Return the object of a check that passed; its status is `warning` if there are findings."""
    findings = [_finding("warning", warning) for warning in report.warnings]
    findings += [_finding("note", f"at first use: {statement}") for statement in report.repairs]
    if report.note:
        findings.append(_finding("note", report.note))
    return {
        "ok": True,
        "status": "warning" if report.warnings else "ok",
        "versions": _versions(),
        **dataclasses.asdict(report),
        "latency_ms": report.round_trip_ms,
        "findings": findings,
    }


def describe_failure(error: Exception, settings: Settings | None) -> dict[str, Any]:
    """Return the object of a check that failed; `settings` is `None` if they could not be read."""
    backend, target = "", ""
    if settings is not None:
        backend = settings.database_backend
        try:
            is_server = backend == "postgres"
            target = mask_dsn(settings.require_postgres_dsn()) if is_server else settings.sqlite_path
        except FluxMemoryError:
            # It is the failure itself.
            target = ""
    # The library's own messages show no password, and their advice may contain the form of a DSN.
    message = str(error) if isinstance(error, FluxMemoryError) else mask_dsns(str(error) or repr(error))
    return {
        "ok": False,
        "status": "failed",
        "versions": _versions(),
        "backend": backend,
        "target": target,
        "error": type(error).__name__,
        "message": message,
        "causes": causes(error),
        "findings": [_finding("error", message)],
    }


def _versions() -> dict[str, str]:
    return {"flux_memory": __version__, "python": platform.python_version()}


def _finding(severity: str, message: str) -> dict[str, str]:
    return {"severity": severity, "message": message}
