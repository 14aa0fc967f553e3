"""ZeroMQ: the only package that speaks it."""
