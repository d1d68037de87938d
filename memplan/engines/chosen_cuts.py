"""Cuts in C while that can be, in Python else: before serving begins, while the engine has children,
and where marks cannot be set back."""

from __future__ import annotations

from collections.abc import Callable

from memplan.compiled import Compiled
from memplan.engines.cuts import CutTensors, Ended, PythonCuts, Slices
from memplan.engines.family import Family
from memplan.engines.native_cuts import NativeCuts, largest_resident_bytes
from memplan.engines.raw_segments import RawEnded
from memplan.process_tree import lists_children


class ChosenCuts:
    """``library`` is that of ``native_cuts``, or the reason why there is none."""

    def __init__(self, family: Family, library: Compiled, *, epoch_s: float) -> None:
        self._family = family
        self._library = library
        self._epoch_s = epoch_s
        self._earlier_bytes = largest_resident_bytes()
        self._cut_tensors: CutTensors | None = None
        self._c_function: tuple[int, int] | None = None
        self._is_slicing = self._is_paused = False
        self._ended: list[Ended] = []
        self._now: PythonCuts | NativeCuts = self._in_python(())
        self.end: Callable[[], tuple[float, int, float]] = self._end_in_python
        """As in ``Cuts``."""
        self._why_not = self._why_not_native()

    @property
    def way(self) -> str:
        """In words."""
        if isinstance(self._now, NativeCuts):
            return "in C"
        return f"in Python: {self._why_not or 'the engine has child processes'}"

    def count_tensors(self, cut: CutTensors | None, c_function: tuple[int, int] | None) -> None:
        """From the open segment on; ``c_function`` does in C what ``cut`` does, if there is one."""
        self._cut_tensors, self._c_function = cut, c_function
        self._hand_over(self._in_python(self._now.stop()))

    def slice_long_segments(self) -> None:
        """From now on; to be called between two segments."""
        self._is_slicing = True
        self._family.look_for_children()
        self._go_native()

    def end_otherwise(self) -> tuple[float, int, float]:
        """Where ``end`` returned a time below 0; never does so itself."""
        self._ended += self._now.taken()
        ended = self._now.end()
        if ended[0] < 0:
            self._family.look_for_children()
            self._hand_over(self._in_python(self._now.stop()))
            ended = self.end()
        return ended

    def taken(self) -> list[Ended]:
        ended, self._ended = [*self._ended, *self._now.taken()], []
        return ended

    def taken_raw(self) -> RawEnded:
        """The same, for ``raw_segments.unpacked_segments``."""
        raw = self._now.raw() if isinstance(self._now, NativeCuts) and not self._ended else None
        if raw is not None:
            return raw
        return [(one.slices, dict(one.gauges_of()), one.tensors) for one in self.taken()]

    def pause(self, *, is_paused: bool) -> None:
        self._is_paused = is_paused
        self._now.pause(is_paused=is_paused)

    def stop(self) -> Slices:
        return self._now.stop()

    # --- steps -----------------------------------------------------------------------------

    def _end_in_python(self) -> tuple[float, int, float]:
        ended = self._now.end()
        if self._is_slicing and self._why_not is None and self._family.is_alone:
            self._go_native()
        return ended

    def _why_not_native(self) -> str | None:
        if not self._family.is_exact:
            return "marks are not set back"
        if not lists_children():
            return "this kernel keeps no list of children"
        if self._cut_tensors is not None and self._c_function is None:
            return "tensors are counted in Python"
        return self._library.reason if self._library.path is None else None

    def _in_python(self, slices: Slices) -> PythonCuts:
        return PythonCuts(
            self._family,
            epoch_s=self._epoch_s,
            slices=slices,
            cut_tensors=self._cut_tensors,
            is_slicing=self._is_slicing,
        )

    def _go_native(self) -> None:
        """If that can be, and nobody has cut a slice of the new segment yet; in Python else."""
        self._why_not = self._why_not_native()
        began_s = self._now.cut_s
        slices = self._now.stop()
        way: PythonCuts | NativeCuts | None = None
        if self._why_not is None and self._family.is_alone and not slices:
            try:
                way = NativeCuts(
                    self._library,
                    epoch_s=self._epoch_s,
                    cut_s=began_s,
                    earlier_bytes=self._earlier_bytes,
                    count_tensors=self._c_function,
                )
            except OSError as error:
                self._library = Compiled(path=None, reason=str(error.strerror))
                self._why_not = self._why_not_native()
        self._hand_over(way or self._in_python(slices))

    def _hand_over(self, way: PythonCuts | NativeCuts) -> None:
        """The way until now has been stopped."""
        self._ended += self._now.taken()
        self._now = way
        self.end = way.end if isinstance(way, NativeCuts) else self._end_in_python
        way.pause(is_paused=self._is_paused)
