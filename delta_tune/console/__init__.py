"""Progress of a study on the terminal."""
