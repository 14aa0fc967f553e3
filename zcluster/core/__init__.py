"""Pure decisions: no socket, process, thread, clock or randomness in here."""
