"""Reserved for the test support of programs that use zcluster."""
