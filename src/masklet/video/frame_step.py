"""One step of tracking for many objects: which memories they read, how they are batched, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from masklet.engine import Engine
from masklet.model.neck import Features
from masklet.video.candidates import RowOutput, record_of, row_outputs
from masklet.video.memory import ObjectMemory
from masklet.video.memory_slots import MemorySlots
from masklet.video.object_frame import ObjectFrame
from masklet.video.policy import Candidates, Choice, MemoryPolicy, MemorySelection, check_choices
from masklet.video.selection import batches_of, select_memory
from masklet.video.track import Row, Track
from masklet.video.tracker import decode_with_memory, memory_maps, track_objects

RowKey = tuple[Hashable, int]
"""An object and the number of one of its rows."""
FeaturesOf = Callable[[int], Features]
"""Returns the features of a frame, encoding it if necessary."""


@dataclass(frozen=True, kw_only=True)
class FrameStep:
    """A frame that objects are tracked into, and all that tracking needs."""

    frame: int
    step: int
    """Distance from the frame before; negative when tracking backward."""
    features_of: FeaturesOf
    engine: Engine
    policy: MemoryPolicy
    max_objects: int
    """The largest batch of rows."""
    can_rewind: bool
    """Whether earlier frames can be encoded again."""
    fixed_shapes: bool
    """Whether memories are padded to fixed shapes."""
    slots: MemorySlots | None

    def select(self, row: Row) -> MemorySelection:
        """The memories of a row that the frame reads, checked. All of them are held or can be computed again."""
        return select_memory(self.policy, self.frame, row, step=self.step, can_rewind=self.can_rewind)

    def restore_maps(self, selections: Iterable[tuple[Row, MemorySelection]]) -> None:
        """Recompute the selected maps that were dropped. A frame is encoded once for all objects."""
        missing: dict[int, list[ObjectMemory]] = {}
        for row, selection in selections:
            for frame, _ in selection.maps:
                if frame not in row.maps:
                    missing.setdefault(frame, []).append(row if isinstance(row, ObjectMemory) else row.bank_of(frame))
        for frame, banks in missing.items():
            for bank in banks:
                if frame not in bank.maps:  # two rows may read one result
                    (bank.maps[frame],) = memory_maps(
                        self.engine, self.features_of(frame), [bank[frame]], is_prompted=frame in bank.prompted
                    )

    def choose(self, rows: Sequence[Candidates]) -> Sequence[Choice]:
        """The candidates of an object that the policy keeps."""
        assert self.policy.choose is not None
        choices = self.policy.choose(self.frame, rows, step=self.step)
        check_choices(choices, rows, self.frame, self.policy)
        return choices

    def track(self, tracks: Mapping[Hashable, Track]) -> dict[Hashable, ObjectFrame]:
        """Track objects into the frame in batches, and put the results into their banks."""
        rows = {
            (object_id, number): row
            for object_id, track in tracks.items()
            for number, row in enumerate(track.rows(self.frame, self.step))
        }
        selections = {key: self.select(row) for key, row in rows.items()}
        self.restore_maps((rows[key], selection) for key, selection in selections.items())
        if self.policy.choose is None:
            return self._keep_best(tracks, rows, selections)
        return self._keep_chosen(tracks, rows, selections)

    def _keep_best(
        self,
        tracks: Mapping[Hashable, Track],
        rows: Mapping[RowKey, Row],
        selections: Mapping[RowKey, MemorySelection],
    ) -> dict[Hashable, ObjectFrame]:
        """Keep each object's candidate of the highest predicted IoU, without reading anything back from the device."""
        results = {}
        for batch in self._batches(selections):
            tracked = track_objects(
                self.engine,
                self.features_of(self.frame),
                [rows[key] for key in batch],
                [selections[key] for key in batch],
                fixed_shapes=self.fixed_shapes,
                slots=self.slots,
            )
            for (object_id, _), (result, memory) in zip(batch, tracked, strict=True):
                tracks[object_id].put(self.frame, [(result, memory, None)], is_prompted=False)
                results[object_id] = result
        return results

    def _keep_chosen(
        self,
        tracks: Mapping[Hashable, Track],
        rows: Mapping[RowKey, Row],
        selections: Mapping[RowKey, MemorySelection],
    ) -> dict[Hashable, ObjectFrame]:
        """Keep the candidates that the policy chooses among those of all rows of an object."""
        features = self.features_of(self.frame)
        outputs: dict[Hashable, dict[int, RowOutput]] = {object_id: {} for object_id in tracks}
        for batch in self._batches(selections):
            own = [rows[key] for key in batch]
            chosen = [selections[key] for key in batch]
            decoded = decode_with_memory(self.engine, features, own, chosen, fixed_shapes=self.fixed_shapes)
            for (object_id, number), output in zip(batch, row_outputs(decoded, features, own), strict=True):
                outputs[object_id][number] = output
        results = {}
        for object_id, by_number in outputs.items():
            of_rows = [by_number[number] for number in sorted(by_number)]
            kept = []
            for choice in self.choose([output.candidates for output in of_rows]):
                result = of_rows[choice.row].result(choice.candidate)
                (memory,) = memory_maps(self.engine, features, [result], is_prompted=False)
                kept.append((result, memory, record_of(of_rows[choice.row].candidates, choice, self.step)))
            tracks[object_id].put(self.frame, kept, is_prompted=False)
            results[object_id] = kept[0][0]
        return results

    def _batches(self, selections: Mapping[RowKey, MemorySelection]) -> Iterator[list[RowKey]]:
        return batches_of(selections, self.max_objects, fixed=self.fixed_shapes)
