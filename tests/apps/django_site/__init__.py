"""A small guest book in Django as a real one would be: a database, sessions, uploads and downloads, error pages."""
