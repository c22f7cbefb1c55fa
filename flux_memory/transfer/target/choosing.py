"""Chooses how a migration works on its target: one server, or a cluster."""

from __future__ import annotations

from flux_memory.transfer.target.cluster.cluster_transfer import CLUSTER_TRANSFER
from flux_memory.transfer.target.server import Target
from flux_memory.transfer.target.transfer_path import ONE_SERVER_TRANSFER, TransferPath


def choose_path(target: Target) -> TransferPath:
    """Return the statements of a migration by the state of its target."""
    return CLUSTER_TRANSFER if target.is_distributed else ONE_SERVER_TRANSFER
