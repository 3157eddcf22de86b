"""What can be wrong with rows of text."""
