"""Tests with real clients, servers and agents."""
