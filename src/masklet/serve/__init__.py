"""The web page and the HTTP API. A thin adapter: it converts, calls the public API, and converts back."""
