"""Reserved for the pytest plugin: the entry point of the package has to resolve from the first release on."""
