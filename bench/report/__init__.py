"""Showing results: one set of columns and formats for the terminal and for the HTML report."""
