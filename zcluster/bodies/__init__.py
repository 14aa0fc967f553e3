"""One module per kind of process; none imports another."""
