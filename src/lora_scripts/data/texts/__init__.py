"""Text data: rows of files in the usual formats, feedback of people, and what is wrong with either."""
