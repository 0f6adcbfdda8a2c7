"""The dry run: what can go wrong is found before anything is written, and told by its config key."""
