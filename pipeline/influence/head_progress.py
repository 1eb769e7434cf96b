"""Progress of work that fits heads: a bar that counts heads and shows the passes of each."""

from dataclasses import dataclass

from pipeline.runtime.progress import Progress


@dataclass
class HeadProgress:
    """Observer of head problems (`head.problem.Watch`) that moves a bar of heads."""

    bar: Progress
    name: str = ""
    passes: int = 0
    counts: bool = True

    def begin(self, name: str, *, counts: bool = True) -> None:
        """Name the heads that are fitted from here on; ``counts``: each moves the bar."""
        self.name, self.counts, self.passes = name, counts, 0
        self._show(0)

    def passed(self) -> None:
        """Show one more pass of the head."""
        self.passes += 1
        self._show(0)

    def fitted(self) -> None:
        """Count a head; further passes are solves with it, and belong to the same name."""
        self._show(int(self.counts))

    def skip(self, heads: int) -> None:
        """Count heads that need not be fitted."""
        self._show(heads)

    def _show(self, heads: int) -> None:
        self.bar.advance(
            heads, note=f"{self.name}, pass {self.passes}" if self.passes else self.name
        )
