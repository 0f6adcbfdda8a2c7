"""What a test got wrong: collected while it runs, and written as one page, the worst pictures first."""
