"""Search spaces, one question a file; each is a starting point for your own."""
