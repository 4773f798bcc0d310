"""Write the model as a file for other programs, and check the file against the model."""
