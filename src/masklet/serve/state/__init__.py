"""The state of a server: a database, and files beside it."""
