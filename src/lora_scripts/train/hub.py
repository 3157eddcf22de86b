"""Tells each event to every listener, in order, and collects their commands."""

from __future__ import annotations

from collections.abc import Sequence

from lora_scripts.events import Command, Event, Listener


class Hub:
    """The one seam between the loop and everything that watches it.

    A listener may tell an event itself (saving tells `Saved`); it is passed on before the outer event's next
    listener hears. An exception of a listener ends the run: nothing that was asked for fails silently.
    """

    def __init__(self, listeners: Sequence[Listener] = ()):
        self.listeners = list(listeners)
        self._commands: set[Command] = set()
        self._depth = 0

    def emit(self, event: Event) -> set[Command]:
        """Tell an event; return the commands of this and all inner events."""
        self._depth += 1
        try:
            for listener in self.listeners:
                command = listener(event)
                if command is not None:
                    self._commands.add(command)
        finally:
            self._depth -= 1
        if self._depth:
            return set()
        commands, self._commands = self._commands, set()
        return commands
