"""Processes, signals, file descriptors, locks and shared memory."""
