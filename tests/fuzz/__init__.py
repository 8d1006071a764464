"""Harnesses for `make fuzz`; their corpora are replayed by tests/unit/test_fuzz_corpus.py."""
