"""The live probe: every relation is attacked as the application's role, and all is undone."""
