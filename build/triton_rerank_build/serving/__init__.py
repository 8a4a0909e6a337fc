"""The laptop server: tritonserver from PyPI, supervised, with this project's backends."""
