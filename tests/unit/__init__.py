"""Tests that need no kernel feature and no root."""
