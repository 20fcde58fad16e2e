"""One file for each family of modules."""
