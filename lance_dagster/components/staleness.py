"""What is out of date, partition by partition: which input of an artifact is not the one it was made of.

Dagster records with every materialisation the code version and, per input, the newest event of that input
(``dagster/input_event_pointer/…``). An artifact is out of date if one of its inputs got another data version after
that event, or if its code version is another one now. This is how Dagster itself decides what the web UI shows for a
partition; it is read here from the events so that checks, reports and automation can say it too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

import dagster as dg

from lance_dagster.storage.experiment_store import SHARED_ASSETS, iteration_key

_DATA, _CODE, _POINTER = "dagster/data_version", "dagster/code_version", "dagster/input_event_pointer/"
SETTINGS = "settings or templates"  # the reason of an asset whose code version changed

Place = tuple[dg.AssetKey, str | None]  # an asset and a partition of it


@dataclass(frozen=True)
class Wiring:
    """The edges of the graph as far as staleness needs them.

    ``crossings`` are edges from the iteration before; ``rejoined`` names, for an observed asset, the asset that
    reports it: the edge that Dagster is not told of.
    """

    parents: Mapping[dg.AssetKey, tuple[dg.AssetKey, ...]]
    code_versions: Mapping[dg.AssetKey, str | None]
    partitions: Mapping[dg.AssetKey, tuple[str, ...] | None]  # None: the asset has no iterations
    crossings: frozenset[tuple[dg.AssetKey, dg.AssetKey]]  # (asset, input)
    rejoined: Mapping[dg.AssetKey, dg.AssetKey]

    @classmethod
    def of(
        cls, assets: Iterable[dg.AssetsDefinition | dg.SourceAsset], rejoined: Mapping[dg.AssetKey, dg.AssetKey]
    ) -> Self:
        """From an experiment's assets; ``rejoined`` maps observed assets to those that report them."""
        specs: list[dg.AssetSpec] = []
        for asset in assets:
            if isinstance(asset, dg.SourceAsset):
                specs.append(dg.AssetSpec(asset.key, partitions_def=asset.partitions_def))
            else:
                specs += asset.specs
        crossings = {
            (spec.key, dep.asset_key)
            for spec in specs
            for dep in spec.deps
            if isinstance(dep.partition_mapping, dg.StaticPartitionMapping)
        }
        return cls(
            parents={spec.key: tuple(dep.asset_key for dep in spec.deps) for spec in specs},
            code_versions={spec.key: spec.code_version for spec in specs},
            partitions={**_shared(specs), **{spec.key: _keys(spec.partitions_def) for spec in specs}},
            crossings=frozenset(crossings),
            rejoined=rejoined,
        )

    def is_observed(self, asset: dg.AssetKey) -> bool:
        """Content of the asset is observed, not materialised; a branch observes that of another experiment."""
        return any(asset.path[-1] == own.path[-1] for own in self.rejoined)

    def inputs(self, place: Place) -> list[Place]:
        """The partitions that one partition is made of."""
        asset, partition = place
        found: list[Place] = []
        for parent in self.parents.get(asset, ()):
            keys = self.partitions[parent]
            if keys is None:
                found.append((parent, None))
            elif partition is None:
                found += [(parent, key) for key in keys]
            elif (asset, parent) not in self.crossings:
                found.append((parent, partition))
            elif iteration_key(int(partition) - 1) in keys:
                found.append((parent, iteration_key(int(partition) - 1)))
        return found

    def places(self, asset: dg.AssetKey) -> list[Place]:
        keys = self.partitions[asset]
        return [(asset, None)] if keys is None else [(asset, key) for key in keys]


def _keys(partitions: dg.PartitionsDefinition | None) -> tuple[str, ...] | None:
    return None if partitions is None else tuple(partitions.get_partition_keys())


def _shared(specs: Sequence[dg.AssetSpec]) -> dict[dg.AssetKey, tuple[str, ...] | None]:
    """Inputs that another experiment makes: those of a branch, and the checkpoints whose steps a control matches."""
    own = {spec.key for spec in specs}
    found: dict[dg.AssetKey, tuple[str, ...] | None] = {}
    for spec in specs:
        keys = _keys(spec.partitions_def)
        for dep in spec.deps:
            if dep.asset_key in own:
                continue
            if dep.asset_key.path[-1] in SHARED_ASSETS or keys is None:
                found[dep.asset_key] = None
            elif isinstance(dep.partition_mapping, dg.StaticPartitionMapping):
                found[dep.asset_key] = (iteration_key(int(keys[0]) - 1),)
            else:
                found[dep.asset_key] = keys
    return found


class Event(NamedTuple):
    """The newest materialisation (or observation) of a partition. ``pointers``: newest event of each input then."""

    storage_id: int
    version: str
    code_version: str | None
    pointers: Mapping[str, int | None]
    run: str


class _Memory(NamedTuple):
    """Events never change, so what was read once is kept for the life of the process."""

    latest: dict[Place, Event]
    earlier: dict[tuple[Place, int], str | None]


_MEMORIES: dict[str, _Memory] = {}


@dataclass(frozen=True)
class Events:
    """Newest events of an instance, one query per asset and only what is new read in full."""

    instance: dg.DagsterInstance
    wiring: Wiring
    _found: dict[dg.AssetKey, dict[str | None, Event]] = field(default_factory=dict)

    def latest(self, place: Place) -> Event | None:
        """The newest event of a partition, None if it was never made."""
        asset, partition = place
        if asset not in self._found:
            self._found[asset] = self._read(asset)
        return self._found[asset].get(partition)

    def version_at(self, place: Place, storage_id: int) -> str | None:
        """The data version that a partition had at some event."""
        known = self._memory.earlier
        if (place, storage_id) not in known:
            records = self._fetch(place[0], before_storage_id=storage_id + 1, partition=place[1], limit=1)
            known[place, storage_id] = records[0].version if records else None
        return known[place, storage_id]

    @cached_property
    def _memory(self) -> _Memory:
        if not self.instance.is_persistent:
            return _Memory({}, {})
        return _MEMORIES.setdefault(str(self.instance.get_ref()), _Memory({}, {}))

    def _read(self, asset: dg.AssetKey) -> dict[str | None, Event]:
        if self.wiring.partitions[asset] is None:
            newest = self._fetch(asset, limit=1)
            return {None: newest[0]} if newest else {}
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION
        if self.wiring.is_observed(asset):
            kind = dg.DagsterEventType.ASSET_OBSERVATION
        ids = self.instance.get_latest_storage_id_by_partition(asset, kind)
        remembered = self._memory.latest
        new = [
            storage_id
            for key, storage_id in ids.items()
            if (known := remembered.get((asset, key))) is None or known.storage_id != storage_id
        ]
        if new:
            by_id = {event.storage_id: event for event in self._fetch(asset, storage_ids=new, limit=len(new))}
            remembered |= {(asset, key): by_id[each] for key, each in ids.items() if each in by_id}
        return {key: remembered[asset, key] for key in ids}

    def _fetch(
        self,
        asset: dg.AssetKey,
        limit: int,
        partition: str | None = None,
        before_storage_id: int | None = None,
        storage_ids: list[int] | None = None,
    ) -> list[Event]:
        wanted = dg.AssetRecordsFilter(
            asset_key=asset,
            asset_partitions=None if partition is None else [partition],
            before_storage_id=before_storage_id,
            storage_ids=storage_ids,
        )
        observed = self.wiring.is_observed(asset)
        fetch = self.instance.fetch_observations if observed else self.instance.fetch_materializations
        found = []
        for record in fetch(wanted, limit=limit).records:
            happened = record.asset_observation if observed else record.asset_materialization
            found.append(_event(record.storage_id, record.run_id, happened.tags if happened and happened.tags else {}))
        return found


def _event(storage_id: int, run: str, tags: Mapping[str, str]) -> Event:
    pointers = {
        name.removeprefix(_POINTER): None if value == "NULL" else int(value)
        for name, value in tags.items()
        if name.startswith(_POINTER)
    }
    return Event(storage_id, tags.get(_DATA, ""), tags.get(_CODE), pointers, run)


def moved_inputs(events: Events, place: Place) -> list[str]:
    """Why one partition is out of date: the inputs that moved, and SETTINGS. Empty if it is current or missing."""
    own = events.latest(place)
    if own is None:
        return []
    wiring = events.wiring
    asset = place[0]
    moved = [SETTINGS] if own.code_version != wiring.code_versions[asset] else []
    for each in wiring.inputs(place):
        newest = events.latest(each)
        if newest is None:
            continue
        pointer = own.pointers.get(each[0].to_user_string())
        if pointer is not None and newest.storage_id <= pointer:
            continue
        if pointer is None or events.version_at(each, pointer) != newest.version:
            moved.append(name_of(each))
    return moved


def name_of(place: Place) -> str:
    """``reviewed_seed[001]``"""
    asset, partition = place
    return asset.path[-1] + ("" if partition is None else f"[{partition}]")


@dataclass(frozen=True)
class Situation:
    """An experiment at one moment: what is out of date, and what waits for something that is.

    ``making`` are partitions that a run or backfill has still to make, ``unfinished`` the runs that go on.
    """

    events: Events
    making: frozenset[Place] = frozenset()
    unfinished: frozenset[str] = frozenset()
    _moved: dict[Place, list[str]] = field(default_factory=dict)
    _waits: dict[Place, bool] = field(default_factory=dict)
    _first: dict[Place, Place | None] = field(default_factory=dict)

    def busy(self, place: Place) -> bool:
        """The partition is being made, or the run that made it has not ended: its checks may be still to come."""
        newest = self.events.latest(place)
        return place in self.making or (newest is not None and newest.run in self.unfinished)

    def moved(self, place: Place) -> list[str]:
        """``moved_inputs`` of a partition."""
        if place not in self._moved:
            known = place[0] in self.events.wiring.code_versions and place[0] not in self.events.wiring.rejoined
            self._moved[place] = moved_inputs(self.events, place) if known else []
        return self._moved[place]

    def waits(self, place: Place) -> bool:
        """Something that the partition is made of, however far up and in earlier iterations too, will change or may."""
        if place not in self._waits:
            self._waits[place] = any(
                self.busy(each) or bool(self.moved(each)) or self.waits(each) for each in self._above(place)
            )
        return self._waits[place]

    def cause(self, place: Place) -> Place | None:
        """Why a partition might be another one if it were made now: the first above it that moved, or itself.

        None for what is current, and for what was never made.
        """
        if self.events.latest(place) is None:
            return None
        for each in self.events.wiring.places(place[0]):  # in order: what is above lies at most one iteration deeper
            found = self._first_above(each)
            if each == place:
                return found or (place if self.moved(place) else None)
        return None

    def outdated(self, asset: dg.AssetKey) -> list[Place]:
        """Partitions of an asset that have a cause to be made again."""
        return [place for place in self.events.wiring.places(asset) if self.cause(place) is not None]

    def _first_above(self, place: Place) -> Place | None:
        if place not in self._first:
            found = None
            for each in self._above(place):
                found = self._first_above(each) or (each if self.moved(each) else None)
                if found is not None:
                    break
            self._first[place] = found
        return self._first[place]

    def ready(self, asset: dg.AssetKey) -> list[Place]:
        """Partitions that are out of date while everything above them is settled, and that no run is making."""
        return [
            place
            for place in self.events.wiring.places(asset)
            if not self.busy(place) and self.moved(place) and not self.waits(place)
        ]

    def report_due(self, report: dg.AssetKey) -> list[Place]:
        """The report, if what it reads is other than what it was made of, or it was never made.

        It does not wait for later iterations, only for those that are half evaluated.
        """
        place: Place = (report, None)
        inputs = self.events.wiring.inputs(place)
        evaluated: dict[str | None, set[bool]] = {}
        for each in inputs:
            evaluated.setdefault(each[1], set()).add(each in self.making)
        half_made = any(len(busy) > 1 for busy in evaluated.values())
        found = {each[0] for each in inputs if self.events.latest(each) is not None}
        if self.busy(place) or half_made or found != set(self.events.wiring.parents[report]):
            return []
        return [place] if self.events.latest(place) is None or self.moved(place) else []

    def fingerprint(self, place: Place) -> str:
        """What a run of this partition would start from; another value after any change of it."""
        wiring = self.events.wiring
        versions = [
            event.version if (event := self.events.latest(each)) else "missing" for each in wiring.inputs(place)
        ]
        return "|".join([str(wiring.code_versions[place[0]]), *versions])

    def _above(self, place: Place) -> list[Place]:
        asset, partition = place
        if asset in self.events.wiring.rejoined:
            return [(self.events.wiring.rejoined[asset], partition)]
        return self.events.wiring.inputs(place)


def outdated_iterations(situation: Situation) -> list[str]:
    """One line per iteration that is out of date, with what moved first: nothing above it is out of date itself."""
    causes: dict[str, list[str]] = {}
    for asset, keys in situation.events.wiring.partitions.items():
        for place in situation.outdated(asset) if keys is not None else []:
            cause = situation.cause(place)
            if cause is not None:
                line = f"{', '.join(situation.moved(cause))} changed after {name_of(cause)} was made"
                causes.setdefault(str(place[1]), []).append(line)
    first = {key: "; ".join(dict.fromkeys(lines)) for key, lines in sorted(causes.items())}
    return [f"Iteration {key} is out of date: {lines}." for key, lines in first.items()]
