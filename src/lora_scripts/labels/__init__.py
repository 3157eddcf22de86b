"""The use-case `label`: from a folder of pictures to a caption for each, and who wrote it."""
