"""The contract: every promise of a `Memory` as a clause, in groups by what they protect."""

from __future__ import annotations

import flux_memory.testkit.contract.canary
import flux_memory.testkit.extra  # noqa: F401 - its error names the extra
from flux_memory.testkit.contract.activity import ActivityContract
from flux_memory.testkit.contract.amounts import AmountsContract
from flux_memory.testkit.contract.atomic_forks import AtomicForksContract
from flux_memory.testkit.contract.batches import BatchesContract
from flux_memory.testkit.contract.cancellation import CancellationContract
from flux_memory.testkit.contract.claims import CapabilitiesContract
from flux_memory.testkit.contract.concurrency import ConcurrencyContract
from flux_memory.testkit.contract.conditional_appends import ConditionalAppendsContract
from flux_memory.testkit.contract.connections import ConnectionsContract
from flux_memory.testkit.contract.contention import ContentionContract
from flux_memory.testkit.contract.created_by_adds import CreatedByAddsContract
from flux_memory.testkit.contract.crowded_removals import CrowdedRemovalsContract
from flux_memory.testkit.contract.current_state import CurrentStateContract
from flux_memory.testkit.contract.cut_removals import CutRemovalsContract
from flux_memory.testkit.contract.deadlines import DeadlinesContract
from flux_memory.testkit.contract.durability import DurabilityContract
from flux_memory.testkit.contract.filtering import FilteringContract
from flux_memory.testkit.contract.following import FollowingContract
from flux_memory.testkit.contract.forks import ForksContract
from flux_memory.testkit.contract.interrupted_ratings import InterruptedRatingsContract
from flux_memory.testkit.contract.interrupted_removals import InterruptedRemovalsContract
from flux_memory.testkit.contract.interrupted_updates import InterruptedUpdatesContract
from flux_memory.testkit.contract.lasting_ratings import LastingRatingsContract
from flux_memory.testkit.contract.late_closes import LateClosesContract
from flux_memory.testkit.contract.leftovers import LeftoversContract
from flux_memory.testkit.contract.lifecycle import LifecycleContract
from flux_memory.testkit.contract.limits import LimitsContract
from flux_memory.testkit.contract.list_pages import ListPagesContract
from flux_memory.testkit.contract.listing import ListingContract
from flux_memory.testkit.contract.locks import LocksContract
from flux_memory.testkit.contract.long_ids import LongIdsContract
from flux_memory.testkit.contract.lookups import LookUpsContract
from flux_memory.testkit.contract.many_ratings import ManyRatingsContract
from flux_memory.testkit.contract.merges import MergesContract
from flux_memory.testkit.contract.messages import MessagesContract
from flux_memory.testkit.contract.metadata import MetadataContract
from flux_memory.testkit.contract.modelled import ModelContract
from flux_memory.testkit.contract.moments import MomentsContract
from flux_memory.testkit.contract.network import NetworkContract
from flux_memory.testkit.contract.order import OrderContract
from flux_memory.testkit.contract.pages import PagesContract
from flux_memory.testkit.contract.pops import PopsContract
from flux_memory.testkit.contract.racing_creators import RacingCreatorsContract
from flux_memory.testkit.contract.ratings import RatingsContract
from flux_memory.testkit.contract.removals import RemovalsContract
from flux_memory.testkit.contract.revisions import RevisionsContract
from flux_memory.testkit.contract.separate_metadata import SeparateMetadataContract
from flux_memory.testkit.contract.sessions import SessionsContract
from flux_memory.testkit.contract.shutdown import ShutdownContract
from flux_memory.testkit.contract.sizes import SizesContract
from flux_memory.testkit.contract.spelling import SpellingContract
from flux_memory.testkit.contract.text import TextContract
from flux_memory.testkit.contract.times import TimesContract
from flux_memory.testkit.contract.truncation import TruncationContract
from flux_memory.testkit.contract.updates import UpdatesContract
from flux_memory.testkit.contract.workers import WorkersContract

__all__ = ["MemoryContract"]


class MemoryContract(
    # pytest runs the last base first.
    CapabilitiesContract,
    ModelContract,
    WorkersContract,
    DurabilityContract,
    LifecycleContract,
    ConnectionsContract,
    InterruptedRatingsContract,
    CutRemovalsContract,
    NetworkContract,
    LateClosesContract,
    DeadlinesContract,
    ShutdownContract,
    InterruptedRemovalsContract,
    CancellationContract,
    LeftoversContract,
    CrowdedRemovalsContract,
    LocksContract,
    ContentionContract,
    ConcurrencyContract,
    InterruptedUpdatesContract,
    ManyRatingsContract,
    LastingRatingsContract,
    RatingsContract,
    ConditionalAppendsContract,
    RevisionsContract,
    TruncationContract,
    MergesContract,
    UpdatesContract,
    RacingCreatorsContract,
    CreatedByAddsContract,
    BatchesContract,
    MessagesContract,
    CurrentStateContract,
    RemovalsContract,
    AtomicForksContract,
    ForksContract,
    PopsContract,
    LookUpsContract,
    SessionsContract,
    FilteringContract,
    ActivityContract,
    ListPagesContract,
    ListingContract,
    MomentsContract,
    TimesContract,
    PagesContract,
    FollowingContract,
    OrderContract,
    SizesContract,
    AmountsContract,
    LongIdsContract,
    LimitsContract,
    SeparateMetadataContract,
    MetadataContract,
    SpellingContract,
    TextContract,
):
    """Everything that a `Memory` promises. Subclass it and define the fixture `memory_factory`.

        class TestMine(MemoryContract):
            @pytest.fixture
            def memory_factory(self, tmp_path):
                return lambda: MyMemory(tmp_path / "chat.db")

    Each call of the factory opens another handle on the same store, which is empty at first. See `Binding` for
    the fixtures that may be overridden.
    """
