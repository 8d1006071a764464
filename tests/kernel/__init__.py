"""Tests of the BPF programs in a real kernel."""
