"""Tests of MOA Interceptor."""
